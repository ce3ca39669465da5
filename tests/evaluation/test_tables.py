"""Tables of figures: their floors, their directions, and diversity beside accuracy."""

import pytest
import torch

from drifting.errors import InputError
from drifting.evaluation.tables import direction, in_order, lines, read_figures
from drifting.metrics import within_class_distance


def test_diversity_stands_behind_the_accuracies():
    names = ["num_samples", "logistic_accuracy", "logistic_accuracy_floor", "nearest_accuracy", "energy_distance", "recall"]
    assert in_order(names) == ["num_samples", "logistic_accuracy", "nearest_accuracy", "recall", "energy_distance"]
    assert in_order([*names, "within_class_distance"])[3] == "within_class_distance"
    assert in_order(["recall", "accuracy"]) == ["accuracy", "recall"]
    assert in_order(["recall", "energy_distance"]) == ["recall", "energy_distance"]
    assert in_order(["accuracy", "energy_distance"]) == ["accuracy", "energy_distance"]


def test_every_line_has_its_floor_and_direction():
    metrics = {"num_samples": 10, "accuracy": 1.0, "accuracy_floor": 0.98, "frechet_distance": 2.0, "color_mean": [0.5, -0.25]}
    found = lines({**metrics, "color_mean_floor": [0.25, 0.0], "reference": "digits"})
    assert [tuple(line) for line in found] == [
        ("num_samples", "10", "", ""),
        ("accuracy", "1", "0.98", "more"),
        ("frechet_distance", "2", "", "less"),
        ("color_mean", "0.5 -0.25", "0.25 0", "as real"),
        ("reference", "digits", "", ""),
    ]
    assert direction("nearest_neighbor_accuracy", has_floor=False) == "more"


@pytest.mark.parametrize(
    "curve", ['"frechet_curve": [1.0]', '"frechet_curve": [1.0], "frechet_curve_steps": 3', '"frechet_curve_steps": []']
)
def test_curve_without_a_step_for_every_figure_is_refused(tmp_path, curve):
    (tmp_path / "metrics.json").write_text(f"{{{curve}}}")
    with pytest.raises(
        InputError, match=r"metrics\.json', where frechet_curve_steps and frechet_curve differ in length: measure it$"
    ):
        read_figures(tmp_path / "metrics.json", "measure it")


def test_distance_within_classes_is_that_of_pairs_of_one_class():
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 4, generator=rng, dtype=torch.float64), torch.arange(30) % 3
    labels[0] = 7  # one sample of a class makes no pair
    pairs = [
        torch.stack([(features[i] - features[j]).norm() for i in members for j in members if i != j]).mean()
        for label in range(3)
        if (members := (labels == label).nonzero()[:, 0].tolist())
    ]
    assert within_class_distance(features, labels) == pytest.approx(float(sum(pairs)) / 3, rel=1e-12)
    assert within_class_distance(features[:3], torch.arange(3)) is None
    collapsed = torch.randn(3, 4, generator=rng)[torch.arange(30) % 3]
    assert within_class_distance(collapsed, torch.arange(30) % 3) == 0
