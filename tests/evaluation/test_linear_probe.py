import pytest
import torch

from drifting.errors import InputError
from drifting.evaluation.extractors import linear_probe


def _classes(count: int, seed: int, distance: float = 6.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centers = distance * torch.eye(3, 5)
    return centers[labels] + torch.randn(count, 5, generator=rng), labels


def test_separate_classes_are_named_right():
    assert linear_probe(*_classes(300, 0), *_classes(90, 1)) == 1


def test_classes_that_are_alike_are_guessed():
    assert linear_probe(*_classes(300, 0, 0.0), *_classes(900, 1, 0.0)) == pytest.approx(1 / 3, abs=0.08)


def test_ring_around_a_class_is_not_linear():
    rng = torch.Generator().manual_seed(0)
    angles = 6.2832 * torch.rand(400, generator=rng)
    radii = torch.cat([torch.zeros(200), torch.ones(200)])
    points = torch.stack([angles.cos(), angles.sin()], 1) * radii[:, None]
    labels = radii.long()
    assert linear_probe(points, labels, points, labels) < 0.8


def test_scale_and_offset_of_a_feature_do_not_matter():
    (train, labels), (test, named) = _classes(150, 0, 2.0), _classes(90, 1, 2.0)
    factor, offset = torch.tensor([1e-4, 1.0, 1e4, 1.0, 1.0]), torch.tensor([0.0, 1e3, 0.0, 0.0, 0.0])
    moved = linear_probe(train * factor + offset, labels, test * factor + offset, named)
    assert moved == pytest.approx(linear_probe(train, labels, test, named), abs=0.02)


def test_bad_features_and_labels_are_refused():
    features, labels = _classes(30, 0)
    with pytest.raises(InputError, match="features hold NaN"):
        linear_probe(features.log(), labels, features, labels)
    with pytest.raises(InputError, match="at least two classes"):
        linear_probe(features, labels * 0, features, labels)
