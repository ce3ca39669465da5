import itertools
import math

import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from drifting.errors import InputError
from drifting.metrics import distances as module
from drifting.metrics.distances import (
    Pairs,
    energy_distance,
    energy_distances,
    mean_distance,
    nearest_pairs,
    squared_radii,
    within_class_distance,
)


def _features(count: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [2**22, 7])
def test_chunks_cover_all_rows_within_the_error_that_they_tell(monkeypatch, block):
    monkeypatch.setattr(module, "_CHUNK", 20)
    monkeypatch.setattr(module, "_BLOCK", block)
    first, second = _features(11, 3, 0) + 100, _features(5, 3, 1) + 100
    rows, parts, errors = zip(*Pairs(first, second).chunks(), strict=True)
    assert [part.stop - part.start for part in rows] == [4, 4, 3]
    off = torch.cat(parts) - torch.from_numpy(cdist(first, second, "sqeuclidean"))
    assert (off.abs() <= torch.cat(errors)).all()
    assert float(torch.cat(errors).max()) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("d", [2, 300])
def test_error_told_is_no_less_than_that_made(dtype, offset, d):
    first, second = 10 * _features(60, d, 0) + offset, _features(70, d, 1)
    second[:60] = first + 1e-6 * second[:60]
    for rows, squared, error in Pairs(first, second, dtype).chunks():
        exact = torch.from_numpy(cdist(first[rows], second, "sqeuclidean"))
        assert ((squared - exact).abs() <= error).all()


def test_squared_distances_of_copies_are_never_negative():
    features = 1000 * _features(200, 7, 0).float()
    assert all((squared >= 0).all() for _, squared, _ in Pairs(features, features.clone(), torch.float32).chunks())


@pytest.mark.parametrize("many", [1, 10**9])
def test_pairs_are_measured_by_subtraction(monkeypatch, many):
    monkeypatch.setattr(module, "_MANY_PAIRS", many)
    monkeypatch.setattr(module, "_CPU_CACHE", 60)
    first, second = _features(30, 9, 0).float() + 1000, _features(20, 9, 1).float() + 1000
    first[7] = first[3] = second[5]
    second[6] = second[5]
    rows, columns = torch.cartesian_prod(torch.arange(30), torch.arange(20)).unbind(1)
    measured = Pairs(first, second).measure(rows, columns).view(30, 20)
    torch.testing.assert_close(measured, torch.from_numpy(cdist(first, second, "sqeuclidean")), rtol=1e-13, atol=0)
    assert measured[[3, 7]][:, [5, 6]].eq(0).all()


def test_copies_are_measured_once(monkeypatch):
    monkeypatch.setattr(module, "_MANY_PAIRS", 1)
    measured = []
    kept = Pairs._measured
    monkeypatch.setattr(Pairs, "_measured", lambda self, rows, columns: measured.append(len(rows)) or kept(self, rows, columns))
    collapsed = torch.full((200, 5), 0.3)
    assert squared_radii(collapsed, (3,))[0].eq(0).all()
    assert measured == [1]


def test_radii_are_those_of_scikit_learn():
    features = _features(60, 4, 0)
    expected = NearestNeighbors(n_neighbors=5).fit(features).kneighbors()[0]  # a point is not its own neighbor
    narrow, wide = squared_radii(features, (3, 5))
    assert narrow.sqrt().tolist() == pytest.approx(expected[:, 2])
    assert wide.sqrt().tolist() == pytest.approx(expected[:, 4])


def test_radii_of_clusters_far_apart_in_float32_are_exact():
    features = torch.cat([_features(40, 8, seed) + offset for seed, offset in ((0, 0.0), (1, 1e6))]).float()
    alone = torch.cat([torch.from_numpy(cdist(part, part)).sort().values[:, 3] for part in features.split(40)])
    torch.testing.assert_close(squared_radii(features, (3,))[0].sqrt(), alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("copies", [1, 9])
def test_nearest_of_clusters_far_apart_is_exact_and_the_first_of_its_copies(copies):
    train = torch.cat([_features(40, 8, seed) + offset for seed, offset in ((0, 0.0), (1, 1e7))]).float().repeat(copies, 1)
    samples = train[:80] + 1e-2 * _features(80, 8, 2).float()
    between = torch.from_numpy(cdist(samples, train))
    distances, indices = nearest_pairs(samples, train)
    torch.testing.assert_close(distances, between.amin(1), rtol=1e-12, atol=0)
    assert torch.equal(indices, between.argmin(1))
    assert int(indices.max()) < 80


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
    monkeypatch.setattr(module, "_DIRECT_CHUNK", 40)
    monkeypatch.setattr(module, "_CHUNK", 40)
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


_ODD_SETS = [
    (torch.full((3, 2), torch.nan), "x has 3 rows of 3 with a value that is not finite"),
    (torch.zeros(0, 2), r"x \(0, 2\) and y \(3, 2\): pass \[n, d\] with at least one of each"),
    (torch.zeros(3, 4), r"x \(3, 4\) and y \(3, 2\): compute all with the same encoder"),
    (torch.zeros(3), r"x \(3,\) and y \(3, 2\): pass \[n, d\]"),
    (torch.zeros(3, 2, dtype=torch.uint8), "x is torch.uint8: pass floating point features"),
]


@pytest.mark.parametrize(("x", "message"), _ODD_SETS)
def test_sets_that_cannot_be_compared_are_refused(x, message):
    y = _points(3, 2, 0)
    for distance in (mean_distance, energy_distance, lambda x, y: energy_distances([x], [y])):
        with pytest.raises(InputError, match=message):
            distance(x, y)


def test_labels_of_a_distance_within_classes_are_one_for_each_sample():
    with pytest.raises(InputError, match=r"labels have shape \(2,\): pass \(3,\), one for each sample"):
        within_class_distance(_points(3, 2, 0), torch.zeros(2))
    with pytest.raises(InputError, match="features has 3 rows of 3 with a value that is not finite"):
        within_class_distance(torch.full((3, 2), torch.inf), torch.zeros(3))


def test_no_gradient_is_kept():
    assert isinstance(energy_distance(_points(3, 2, 0).requires_grad_(), _points(3, 2, 1)), float)
