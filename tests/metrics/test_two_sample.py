import itertools
import math

import pytest
import torch

from drifting.metrics import distances, two_sample
from drifting.metrics.two_sample import energy_distance, energy_distances, mean_distance


def _points(count: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def _loop(x: torch.Tensor, y: torch.Tensor) -> float:
    return sum(math.dist(first, second) for first in x.tolist() for second in y.tolist()) / (len(x) * len(y))


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (7, 4, 2), (5, 9, 64)])
def test_distance_equals_the_loop(n, m, d):
    x, y = _points(n, d, 0), _points(m, d, 1) + 1
    assert mean_distance(x, y) == pytest.approx(_loop(x, y), rel=1e-12)
    assert energy_distance(x, y) == pytest.approx(2 * _loop(x, y) - _loop(x, x) - _loop(y, y), rel=1e-12)


def test_distance_of_a_set_to_itself_is_zero():
    x = _points(50, 3, 0)
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert energy_distance(x, x[torch.randperm(50)]) == pytest.approx(0, abs=1e-12)


def test_distance_is_symmetric_never_negative_and_grows_with_the_shift():
    x, y = _points(30, 2, 0), _points(40, 2, 1)
    distances = [energy_distance(x, y + shift) for shift in (0.0, 0.5, 1.0, 4.0)]
    assert energy_distance(y, x) == pytest.approx(distances[0])
    assert distances[0] >= 0
    assert distances == sorted(distances)


def test_distance_ignores_translation_and_rotation_and_scales_with_the_units():
    x, y = _points(20, 2, 0), _points(25, 2, 1) + 1
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    expected = energy_distance(x, y)
    assert energy_distance(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-5)
    assert energy_distance(3 * x, 3 * y) == pytest.approx(3 * expected, rel=1e-5)
    assert energy_distance(x.double() + 1e6, y.double() + 1e6) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dim", [2, 20])
def test_many_distances_are_those_of_every_pair(dim):
    xs, ys = [_points(20, dim, seed) for seed in range(2)], [_points(25, dim, seed) for seed in range(2, 5)]
    found = energy_distances(xs, ys)
    assert found.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        expected = 2 * _loop(xs[i], ys[j]) - _loop(xs[i], xs[i]) - _loop(ys[j], ys[j])
        assert float(found[i, j]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 20])
def test_distance_does_not_depend_on_the_chunks(monkeypatch, dim):
    x, y = _points(23, dim, 0), _points(17, dim, 1)
    expected = energy_distance(x, y)
    monkeypatch.setattr(two_sample, "_CHUNK", 40)
    monkeypatch.setattr(distances, "_CHUNK", 40)
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_floor_of_two_samples_of_one_distribution_is_as_told():
    """Two samples of sizes n and m: (1/n + 1/m) E|x - x'|, which is 2 / sqrt(pi) for standard normal numbers."""
    n, m, repeats = 40, 60, 300
    found = [energy_distance(_points(n, 1, 2 * seed), _points(m, 1, 2 * seed + 1)) for seed in range(repeats)]
    expected = (1 / n + 1 / m) * 2 / math.pi**0.5
    spread = torch.tensor(found).std() / repeats**0.5
    assert abs(sum(found) / repeats - expected) < 4 * float(spread)


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("near", [0.0, 1e-9, 1e-6, 1e-3, 1.0])
def test_distances_in_many_dimensions_are_those_by_subtraction_however_near(near, offset):
    x = _points(20, 300, 0).double() + offset
    y = torch.cat([x[:12] + near * _points(12, 300, 1).double(), _points(5, 300, 2).double() + offset])
    for first, second in ((x, y), (x[:12], y[:12]), (x[:1], y[:1]), (x, x)):
        expected = float((first[:, None] - second).square().sum(2).sqrt().mean())
        assert mean_distance(first, second) == pytest.approx(expected, rel=1e-11, abs=0)


def test_half_precision_is_measured_in_float64():
    x, y = _points(30, 2, 0).bfloat16(), _points(30, 2, 1).bfloat16()
    assert energy_distance(x, y) == pytest.approx(energy_distance(x.double(), y.double()), rel=1e-12)


def test_no_gradient_is_kept():
    assert isinstance(energy_distance(_points(3, 2, 0).requires_grad_(), _points(3, 2, 1)), float)
