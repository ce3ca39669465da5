import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from drifting.errors import InputError
from drifting.metrics import precision_recall as module
from drifting.metrics.precision_recall import distance_chunks, precision_recall


def _features(count: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _oracle(generated, real, k=3, wide=5):
    """Follow the definitions point by point."""
    generated, real = generated.tolist(), real.tolist()

    def radius(points, index, count):
        return sorted(math.dist(points[index], other) for place, other in enumerate(points) if place != index)[count - 1]

    def share(points, centres):
        radii = [radius(centres, index, k) for index in range(len(centres))]
        hits = [any(math.dist(point, centre) <= reach for centre, reach in zip(centres, radii, strict=True)) for point in points]
        return sum(hits) / len(hits)

    radii = [radius(real, index, wide) for index in range(len(real))]
    inside = [[math.dist(point, centre) <= reach for point in generated] for centre, reach in zip(real, radii, strict=True)]
    density = sum(map(sum, inside)) / (wide * len(generated))
    return share(generated, real), share(real, generated), density, sum(map(any, inside)) / len(real)


@pytest.mark.parametrize(("n", "m", "d", "shift"), [(30, 30, 2, 0.5), (12, 41, 3, 1.0), (40, 9, 1, 0.0), (25, 25, 10, 0.2)])
def test_figures_equal_the_loop(n, m, d, shift):
    generated, real = 0.8 * _features(n, d, 0) + shift, _features(m, d, 1)
    found = precision_recall(generated, real)
    assert tuple(found) == pytest.approx(_oracle(generated, real), abs=1e-12)
    assert 0 < found.precision < 1 or 0 < found.recall < 1
    other = precision_recall(generated, real, neighbours=2, density_neighbours=1)
    assert tuple(other) == pytest.approx(_oracle(generated, real, 2, 1), abs=1e-12)
    assert other != found


def test_radii_are_those_of_scikit_learn():
    features = _features(60, 4, 0)
    expected = NearestNeighbors(n_neighbors=5).fit(features).kneighbors()[0]  # a point is not its own neighbour
    narrow, wide = module._squared_radii(features, (3, 5))
    assert narrow.sqrt().tolist() == pytest.approx(expected[:, 2])
    assert wide.sqrt().tolist() == pytest.approx(expected[:, 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_identical_sets_are_perfect(dtype, offset):
    real = (_features(100, 16, 0) + offset).to(dtype)
    found = precision_recall(real[torch.randperm(100)], real)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # a ball holds its centre and 5 neighbours; rounding decides over the one on its border
    assert 1 - 1e-9 <= found.density <= 1.2 + 1e-9


def test_disjoint_sets_share_nothing():
    real = _features(50, 8, 0)
    assert tuple(precision_recall(real + 1000, real)) == (0, 0, 0, 0)


def test_far_apart_sets_in_float32_still_have_their_own_radii():
    """The radii of each set are measured about its own mean, so the other set's distance costs them nothing."""
    real = _features(80, 8, 0).float()
    near = module._squared_radii(real.double(), (3,))[0]
    far = module._squared_radii((real + 4096).float().double(), (3,))[0]
    torch.testing.assert_close(module._squared_radii((real + 4096).float(), (3,))[0].double(), far, rtol=1e-4, atol=0)
    torch.testing.assert_close(far, near, rtol=1e-2, atol=0)


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
        assert tuple(precision_recall(generated, real)) == pytest.approx(tuple(expected), abs=1e-12)


def test_half_precision_is_measured_in_float32():
    generated, real = _features(40, 4, 0).half(), _features(40, 4, 1).half()
    assert precision_recall(generated, real) == precision_recall(generated.float(), real.float())


def test_chunks_cover_all_rows_with_squared_distances(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 20)
    first, second = _features(11, 3, 0) + 100, _features(5, 3, 1) + 100
    rows, parts = zip(*distance_chunks(first, second), strict=True)
    assert [part.stop - part.start for part in rows] == [4, 4, 3]
    torch.testing.assert_close(torch.cat(parts), torch.cdist(first, second).square(), rtol=1e-8, atol=1e-8)


def test_squared_distances_of_copies_are_never_negative():
    features = 1000 * _features(200, 7, 0).float()
    assert all((squared >= 0).all() for _, squared in distance_chunks(features, features.clone()))


def test_wrong_sets_are_refused():
    features = _features(6, 3, 0)
    assert precision_recall(features[:4], features).recall >= 0
    with pytest.raises(InputError, match="real has 5 samples"):
        precision_recall(features, features[:5])
    with pytest.raises(InputError, match="generated has 3 samples"):
        precision_recall(features[:3], features)
    with pytest.raises(InputError, match="at least 1"):
        precision_recall(features, features, density_neighbours=0)
    with pytest.raises(InputError, match="same encoder"):
        precision_recall(features[:, :2], features)
    with pytest.raises(InputError, match="generated has 1 rows of 6"):
        precision_recall(features.index_fill(0, torch.tensor([0]), torch.inf), features)
    with pytest.raises(InputError, match="flattened"):
        precision_recall(features.unflatten(1, (3, 1)), features)
