import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from drifting.metrics import distances as module
from drifting.metrics.distances import Pairs, nearest_pairs, squared_radii


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
