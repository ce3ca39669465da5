import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from drifting.errors import InputError
from drifting.metrics import distances as module
from drifting.metrics.distances import precision_recall
from tests.support.covering import pairwise


def _features(count: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _oracle(generated, real, k=3, wide=5):
    """Follow the definitions point by point."""
    generated, real = generated.tolist(), real.tolist()

    def radius(points, index, count):
        return sorted(math.dist(points[index], other) for place, other in enumerate(points) if place != index)[count - 1]

    def share(points, centers):
        radii = [radius(centers, index, k) for index in range(len(centers))]
        hits = [any(math.dist(point, center) <= reach for center, reach in zip(centers, radii, strict=True)) for point in points]
        return sum(hits) / len(hits)

    radii = [radius(real, index, wide) for index in range(len(real))]
    inside = [[math.dist(point, center) <= reach for point in generated] for center, reach in zip(real, radii, strict=True)]
    density = sum(map(sum, inside)) / (wide * len(generated))
    return share(generated, real), share(real, generated), density, sum(map(any, inside)) / len(real)


@pytest.mark.parametrize(("n", "m", "d", "shift"), [(30, 30, 2, 0.5), (12, 41, 3, 1.0), (40, 9, 1, 0.0), (25, 25, 10, 0.2)])
def test_figures_equal_the_loop(n, m, d, shift):
    generated, real = 0.8 * _features(n, d, 0) + shift, _features(m, d, 1)
    found = precision_recall(generated, real)
    assert tuple(found) == pytest.approx(_oracle(generated, real), abs=1e-12)
    assert 0 < found.precision < 1 or 0 < found.recall < 1
    other = precision_recall(generated, real, neighbors=2, density_neighbors=1)
    assert tuple(other) == pytest.approx(_oracle(generated, real, 2, 1), abs=1e-12)
    assert other != found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_identical_sets_are_perfect(dtype, offset):
    real = (_features(100, 16, 0) + offset).to(dtype)
    found = precision_recall(real[torch.randperm(100)], real)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx(1.2, abs=1e-12)  # a ball holds its center and 5 neighbors, the last one on its border


def _of_scipy(generated, real, k=3, wide=5):
    """Follow the definitions with the distances of scipy; a tie is what differs by rounding alone."""
    generated, real = generated.double().numpy(), real.double().numpy()

    def radii(points, count):
        distances = cdist(points, points)
        np.fill_diagonal(distances, np.inf)
        return np.sort(distances, 1)[:, count - 1] * (1 + 1e-13)

    between = cdist(real, generated)
    inside = between <= radii(real, wide)[:, None]
    precise, recalled = (between <= radii(real, k)[:, None]).any(0), (between <= radii(generated, k)).any(1)
    return precise.mean(), recalled.mean(), inside.sum() / (wide * len(generated)), inside.any(1).mean()


def _copies(count, d, seed):
    """Return samples of which many are copies of others."""
    picked = torch.randint(count // 3, (count,), generator=torch.Generator().manual_seed(seed))
    return _features(count // 3, d, seed)[picked]


def _levels(count, d, seed):
    return torch.randint(4, (count, d), generator=torch.Generator().manual_seed(seed)).double()


TIES = {
    "levels": lambda count, seed: _levels(count, 3, seed),
    "tenths": lambda count, seed: _levels(count, 3, seed) / 10,
    "tenths far away": lambda count, seed: 1000 + _levels(count, 4, seed) / 8,
    "truths": lambda count, seed: (_levels(count, 64, seed) > 1).double(),
    "copies": lambda count, seed: _copies(count, 300, seed),
    "far clusters of copies": lambda count, seed: 1e4 * _levels(count, 2, seed % 2) + 1e-3 * _copies(count, 2, seed),
    "one point": lambda count, seed: torch.full((count, 50), 0.1, dtype=torch.float64),
}


@pytest.mark.parametrize(*pairwise(kind=list(TIES), dtype=(torch.float32, torch.float64), many=(1, 10**9), chunk=(2**22, 999)))
def test_ties_are_those_of_scipy(monkeypatch, kind, dtype, many, chunk):
    monkeypatch.setattr(module, "_MANY_PAIRS", many)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    monkeypatch.setattr(module, "_BLOCK", 40 * chunk)
    generated, real = (TIES[kind](count, seed).to(dtype) for count, seed in ((120, 1), (100, 2)))
    generated[:30] = real[10:40]
    assert tuple(precision_recall(generated, real)) == pytest.approx(_of_scipy(generated, real), abs=1e-12)
    assert tuple(precision_recall(real, real)) == pytest.approx(_of_scipy(real, real), abs=1e-12)


def test_copies_in_turn_have_the_density_of_their_originals():
    """Real samples against themselves in another order, among distances that a product in float32 could not tell apart."""
    real = (_features(400, 200, 0) + 100).float()
    found = precision_recall(real.flip(0), real)
    assert found == precision_recall(real, real)
    assert found.density == pytest.approx(1.2, abs=1e-12)


def test_disjoint_sets_share_nothing():
    real = _features(50, 8, 0)
    assert tuple(precision_recall(real + 1000, real)) == (0, 0, 0, 0)


def test_a_collapsed_generator_is_precise_but_reaches_little():
    real = _features(200, 4, 0)
    found = precision_recall(real[7:8] + 1e-3 * _features(100, 4, 1), real)
    assert found.precision == 1
    assert found.recall < 0.02
    assert found.coverage < 0.2


def test_wide_samples_reach_everything_but_are_imprecise():
    found = precision_recall(5 * _features(300, 4, 1), _features(300, 4, 0))
    assert found.recall > 0.8
    assert found.precision < 0.3
    assert found.density < 0.3


def test_precision_and_recall_change_places_with_the_sets():
    generated, real = 0.5 * _features(60, 3, 0), _features(60, 3, 1)
    found, swapped = precision_recall(generated, real), precision_recall(real, generated)
    assert (found.precision, found.recall) == (swapped.recall, swapped.precision)
    assert found.precision != found.recall


def test_equal_distributions_have_the_density_and_coverage_told():
    """Density 1; coverage 1 minus the chance that all of the k points nearest to a real one are real: 1 - 2^-5 for many."""
    repeats, n, m, k = 40, 120, 80, 5
    found = [precision_recall(_features(n, 3, 2 * seed), _features(m, 3, 2 * seed + 1)) for seed in range(repeats)]
    density = torch.tensor([figures.density for figures in found])
    coverage = torch.tensor([figures.coverage for figures in found])
    missed = math.prod((m - 1 - i) / (m + n - 1 - i) for i in range(k))
    assert abs(float(density.mean()) - 1) < 4 * float(density.std()) / repeats**0.5
    assert abs(float(coverage.mean()) - (1 - missed)) < 4 * float(coverage.std()) / repeats**0.5


def test_figures_ignore_rotation_shift_scale_and_order():
    generated, real = 0.7 * _features(50, 4, 0), _features(50, 4, 1)
    turn, _ = torch.linalg.qr(_features(4, 4, 2))
    expected = tuple(precision_recall(generated, real))
    assert tuple(precision_recall(3 * generated @ turn + 5, 3 * real @ turn + 5)) == pytest.approx(expected, abs=1e-12)
    assert tuple(precision_recall(generated.flip(0), real[torch.randperm(50)])) == pytest.approx(expected, abs=1e-12)


def test_figures_do_not_depend_on_the_chunks(monkeypatch):
    generated, real = 0.7 * _features(53, 4, 0), _features(47, 4, 1)
    expected = precision_recall(generated, real)
    for chunk in (1, 150, 500):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        monkeypatch.setattr(module, "_BLOCK", chunk)
        assert tuple(precision_recall(generated, real)) == pytest.approx(tuple(expected), abs=1e-12)


def test_half_precision_is_measured_as_its_numbers_are():
    generated, real = _features(40, 4, 0).half(), _features(40, 4, 1).half()
    assert precision_recall(generated, real) == precision_recall(generated.float(), real.float())


def test_wrong_sets_are_refused():
    features = _features(6, 3, 0)
    assert precision_recall(features[:4], features).recall >= 0
    with pytest.raises(InputError, match="real has 5 samples"):
        precision_recall(features, features[:5])
    with pytest.raises(InputError, match="generated has 3 samples"):
        precision_recall(features[:3], features)
    with pytest.raises(InputError, match="at least 1"):
        precision_recall(features, features, density_neighbors=0)
    with pytest.raises(InputError, match=r"neighbors is 2\.5 and density_neighbors 5: pass whole numbers, at least 1"):
        precision_recall(features, features, neighbors=2.5)
    with pytest.raises(InputError, match="same encoder"):
        precision_recall(features[:, :2], features)
    with pytest.raises(InputError, match="generated has 1 rows of 6"):
        precision_recall(features.index_fill(0, torch.tensor([0]), torch.inf), features)
    with pytest.raises(InputError, match="flattened"):
        precision_recall(features.unflatten(1, (3, 1)), features)
