import dataclasses
import itertools
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch

from drifting.config import RunConfig
from drifting.data import PointsData, ToyData
from drifting.data.images import load_digits
from drifting.data.points import toy
from drifting.errors import InputError
from drifting.evaluation import evaluate_digits, evaluate_points, mode_shares
from drifting.metrics.distances import energy_distance
from drifting.runs.evaluate import build_evaluation
from drifting.runs.train import resolve

MODES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])


def _eight(count: int, seed: int) -> torch.Tensor:
    return toy("eight_gaussians").draw(count, torch.Generator().manual_seed(seed))


def test_mode_shares_are_relative_to_equal_shares():
    samples = torch.cat([MODES[:1].expand(6, 2), MODES[1:2].expand(3, 2)]) + 0.1
    assert mode_shares(samples, MODES).tolist() == pytest.approx([2, 1, 0])


def test_shares_of_real_data_are_one():
    shares = mode_shares(_eight(8000, 0), toy("eight_gaussians").modes)
    torch.testing.assert_close(shares, torch.ones(8), rtol=0, atol=0.15)


def _measured(config: RunConfig, sampler: Callable, dataset: str = "eight_gaussians", count: int = 300) -> dict:
    """Measure a sampler against a toy, with fewer points than usual."""
    loss = dataclasses.replace(config.loss, temperatures=(0.05, 0.2, 0.8))
    data = ToyData(dataset=dataset)
    measure = build_evaluation(dataclasses.replace(config, data=data, loss=loss), modes=data.modes)
    measure.keywords["count"] = count
    return measure(sampler)


def test_perfect_samples_are_at_the_floors_and_bad_ones_far_above(tiny_toy):
    perfect = _measured(tiny_toy, lambda count, seed: _eight(count, 100 + seed))
    shifted = _measured(tiny_toy, lambda count, seed: _eight(count, 100 + seed) + 1)
    floors = [name for name in perfect if name.endswith("_floor")]
    assert "energy_distance_floor" in floors
    for floor in floors:
        name = floor.removesuffix("_floor")
        assert perfect[name] == pytest.approx(perfect[floor], rel=2)
        assert shifted[floor] == pytest.approx(perfect[floor])
        if name in ("precision", "recall", "density", "coverage"):
            assert shifted[name] < shifted[floor] / 2
        else:
            assert shifted[name] > 2 * shifted[floor]
    assert shifted["energy_distance"] > 50 * shifted["energy_distance_floor"]
    assert perfect["num_samples"] == 300
    assert perfect["mode_shares"] == pytest.approx([1] * 8, abs=0.6)


def test_shares_are_left_out_where_there_are_no_modes(tiny_toy):
    assert "mode_shares" not in _measured(tiny_toy, _eight, dataset="moons", count=50)


def test_own_points_are_measured_in_two_halves(tiny_toy, own_points):
    config = resolve(dataclasses.replace(tiny_toy, data=PointsData(path=str(own_points))))
    source = config.data.source(config.seed)
    measure = build_evaluation(config)
    metrics = measure(lambda count, seed: source.draw(None, count, torch.Generator().manual_seed(seed))[0])
    assert metrics["num_samples"] == 60
    assert metrics["energy_distance"] < 4 * metrics["energy_distance_floor"]


@pytest.mark.parametrize("count", [1, 0])
def test_single_point_has_no_drift_to_be_measured(tiny_toy, count):
    with pytest.raises(InputError, match=f"num_samples is {count}: ask for at least 2"):
        build_evaluation(tiny_toy, count)


@pytest.mark.parametrize("count", [2, 3])
def test_few_own_points_are_refused_in_a_sentence(tiny_toy, tmp_path, count):
    np.save(tmp_path / "few.npy", np.arange(2 * count).reshape(count, 2) ** 2.0)
    config = resolve(dataclasses.replace(tiny_toy, data=PointsData(path=str(tmp_path / "few.npy"))))
    with pytest.raises(InputError, match=f"of {count} points, of which one half is compared with the other: .* at least 4"):
        build_evaluation(config)


def test_distances_are_medians_over_all_pairs_of_draws():
    def points(seed):
        return torch.randn(40, 2, generator=torch.Generator().manual_seed(seed))

    def measured(**more):
        samplers = [lambda count, seed, offset=offset: points(offset + seed)[:count] for offset in (50, 0)]
        return evaluate_points(*samplers, count=20, drift=lambda generated, positives: generated, batch=10, **more)

    metrics = measured()
    halves = [points(seed).split(20) for seed in range(5)]
    samples = [points(50 + seed)[:20] for seed in range(5)]
    pairs = [energy_distance(sample, half) for sample in samples for half, _ in halves]
    floors = [[energy_distance(other, half) for _, other in halves] for half, _ in halves]
    assert metrics["energy_distance"] == pytest.approx(statistics.median(pairs))
    assert metrics["energy_distance_floor"] == pytest.approx(statistics.median(itertools.chain(*floors)))
    finite = measured(endless=False)
    assert finite["energy_distance_floor"] == pytest.approx(statistics.median(floors[seed][seed] for seed in range(5)))


def test_real_points_differ_from_those_of_training_and_pictures(tiny_toy):
    real = build_evaluation(tiny_toy).keywords["real"]
    source = tiny_toy.data.source(tiny_toy.seed)
    seen = [source.draw(None, 50, torch.Generator().manual_seed(seed))[0] for seed in range(10)]
    assert not torch.isin(real(50, 0), torch.cat(seen)).any()
    assert torch.equal(real(50, 0), real(50, 0))
    assert not torch.equal(real(50, 0), real(50, 1))


def _held_out_as_samples(count: int, seed: int) -> torch.Tensor:
    split = load_digits()
    members = [split.held_out[split.held_out_labels == label] for label in range(10)]
    return torch.stack([members[index % 10][index // 10 % len(members[index % 10])] for index in range(count)])


def test_real_digits_reach_the_floors():
    metrics = evaluate_digits(_held_out_as_samples, load_digits())
    for name in ("nearest_neighbor", "logistic"):
        assert metrics[f"{name}_accuracy"] == pytest.approx(metrics[f"{name}_accuracy_floor"], abs=0.02)
        assert metrics[f"{name}_accuracy_floor"] > 0.95
    assert metrics["energy_distance"] < metrics["energy_distance_floor"]
    assert metrics["within_class_distance"] == pytest.approx(metrics["within_class_distance_floor"], rel=0.05)
    assert metrics["nearest_distance"] == pytest.approx(metrics["nearest_distance_floor"], rel=0.05)


def test_gray_images_are_far_from_the_floors():
    metrics = evaluate_digits(lambda count, seed: torch.zeros(count, 1, 8, 8), load_digits())
    assert metrics["logistic_accuracy"] == pytest.approx(0.1, abs=0.01)
    assert metrics["nearest_neighbor_accuracy"] == pytest.approx(0.1, abs=0.01)
    assert metrics["energy_distance"] > 50 * metrics["energy_distance_floor"]
    assert metrics["nearest_distance"] > metrics["nearest_distance_floor"]


def test_one_digit_of_each_class_is_recognized_but_covers_no_data():
    split = load_digits()
    examples = torch.stack([split.train[split.train_labels == digit][0] for digit in range(10)])
    metrics = evaluate_digits(lambda count, seed: examples[torch.arange(count) % 10], split)
    assert metrics["nearest_neighbor_accuracy"] == 1
    assert metrics["within_class_distance"] == 0 < metrics["within_class_distance_floor"]
    assert metrics["recall"] < 0.05
    assert metrics["recall_floor"] > 0.8
    assert metrics["coverage"] < 0.5 < metrics["coverage_floor"]


def test_copies_of_the_training_digits_are_found_out():
    split = load_digits()
    metrics = evaluate_digits(lambda count, seed: split.train[:count], split)
    assert metrics["nearest_distance"] == 0
