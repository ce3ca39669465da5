import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from drifting.errors import InputError
from drifting.metrics import distances as measuring
from drifting.metrics import images as memorizing
from drifting.metrics.images import memorization, nearest

# Since torch 2.9 every device has a setting of its own.
NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _features(count: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "total", "d"), [(30, 50, 4), (5, 1, 3), (1, 7, 1), (40, 3, 100)])
def test_nearest_equals_that_of_scikit_learn(count, total, d, monkeypatch):
    monkeypatch.setattr(measuring, "_CHUNK", 450)
    samples, train = _features(count, d, 0), _features(total, d, 1)
    distances, indices = nearest(samples, train)
    expected, where = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train.double()).kneighbors(samples.double())
    assert indices.tolist() == where[:, 0].tolist()
    assert distances.tolist() == pytest.approx(expected[:, 0], rel=1e-12)
    assert distances.dtype == torch.float64


def test_a_copy_is_found_at_exactly_zero_wherever_the_data_lies():
    train = _features(500, 30, 0) + 1000
    order = torch.randperm(500)
    distances, indices = nearest(train[order], train)
    assert indices.tolist() == order.tolist()
    assert distances.eq(0).all()


def test_of_equal_training_samples_the_first_is_named():
    train = _features(10, 5, 0)[torch.tensor([3, 1, 4, 1, 5, 1])]
    _, indices = nearest(train, train)
    assert indices.tolist() == [0, 1, 2, 1, 4, 1]


def test_neighbors_nearer_than_the_rounding_of_the_product_are_told_apart():
    """Pairs 1e-3 apart and thousands from the mean: their squared distance is lost in float32 products."""
    centers = 4096 * _features(20, 8, 0).round()
    train = torch.cat([centers, centers + 2.0**-9])
    distances, indices = nearest(centers + 2.0**-10 * 0.75, train)
    assert indices.tolist() == list(range(20))
    assert distances.tolist() == pytest.approx([2.0**-10 * 0.75 * 8**0.5] * 20, rel=0.5)


def test_new_samples_are_at_the_floor():
    train, test, samples = _features(2000, 4, 0), _features(2000, 4, 1), _features(2000, 4, 2)
    found = memorization(samples, train, test)
    assert found.distance == pytest.approx(found.distance_floor, rel=0.1)
    assert found.copy_share == pytest.approx(0.01, abs=0.01)
    assert found.copy_share_floor == 0.01


def test_figures_are_those_of_the_distances():
    samples, train, test = 0.5 * _features(101, 3, 0), _features(80, 3, 1), _features(200, 3, 2)
    found = memorization(samples, train, test, quantile=0.1)
    distances, indices = nearest(samples, train)
    real = sorted(nearest(test, train)[0].tolist())
    assert found.distance == sorted(distances.tolist())[50]
    assert found.distance_floor == pytest.approx((real[99] + real[100]) / 2, rel=1e-12)
    assert found.copy_share == sum(value <= real[19] for value in distances.tolist()) / 101
    assert found.copy_share_floor == 0.1
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.distances, distances)
    assert 0.1 < found.copy_share < 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_copies_are_counted(share):
    train, test, samples = _features(1000, 16, 0), _features(1000, 16, 1), _features(500, 16, 2)
    copies = int(share * len(samples))
    samples[:copies] = train[:copies] + 1e-4
    found = memorization(samples, train, test)
    assert found.copy_share == pytest.approx(share, abs=0.02)
    assert found.indices[:copies].tolist() == list(range(copies))
    assert (found.distance < 0.1 * found.distance_floor) == (share > 0.5)


def test_copies_are_counted_even_where_the_test_data_repeats_the_training_data():
    """The quantile is then 0, which no distance is below: equal ones count, on both sides."""
    train, test = _features(200, 5, 0), _features(200, 5, 1)
    test[:20] = train[:20]
    found = memorization(train[:50], train, test)
    assert found.copy_share == 1
    assert found.copy_share_floor == 0.1


def test_figures_scale_with_the_units_and_ignore_shift():
    samples, train, test = 0.5 * _features(50, 3, 0), _features(80, 3, 1), _features(90, 3, 2)
    found, other = memorization(samples, train, test), memorization(*(4 * part + 64 for part in (samples, train, test)))
    assert other.distance == pytest.approx(4 * found.distance, rel=1e-4)
    assert other.distance_floor == pytest.approx(4 * found.distance_floor, rel=1e-4)
    assert other.copy_share == found.copy_share


def test_wrong_sets_are_refused():
    features = _features(6, 3, 0)
    with pytest.raises(InputError, match="train \\(6, 2\\)"):
        memorization(features, features[:, :2], features)
    with pytest.raises(InputError, match="at least one"):
        nearest(features, features[:0])
    with pytest.raises(InputError, match="test has 1 rows of 6"):
        memorization(features, features, features.index_fill(0, torch.tensor([0]), torch.nan))
    with pytest.raises(InputError, match=r"quantile is 1\.5"):
        memorization(features, features, features, quantile=1.5)


@pytest.fixture
def few(monkeypatch):
    """Search by directions, of few samples in few dimensions."""
    for name, value in {"_DIRECTIONS": 3, "_MANY_SAMPLES": 1, "_MANY_FEATURES": 1, "_CHOOSING": 20}.items():
        monkeypatch.setattr(memorizing, name, value)
    monkeypatch.setattr(measuring, "_CPU_CACHE", 84)
    monkeypatch.setattr(measuring, "_CHUNK", 450)


def _spread_unevenly(count: int, seed: int) -> torch.Tensor:
    return _features(count, 12, seed) * torch.logspace(0, -2, 12)


@pytest.mark.parametrize("most", [0, 4, 500])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_change_nothing(few, monkeypatch, most, even, dtype):
    monkeypatch.setattr(memorizing, "_MOST_PAIRS", most)
    make = (lambda count, seed: _features(count, 12, seed)) if even else _spread_unevenly
    samples, train = make(40, 0).to(dtype) + 5, make(70, 1).to(dtype) + 5
    samples[3] = train[20] = train[50]
    distances, indices = nearest(samples, train)
    expected, where = measuring.nearest_pairs(samples, train)
    assert torch.equal(distances, expected)
    assert torch.equal(indices, where)
    assert (distances[3], indices[3]) == (0, 20)


def test_directions_leave_few_pairs_where_the_spread_is_uneven(few, monkeypatch):
    measured, kept = [], measuring.Pairs._measured
    monkeypatch.setattr(measuring.Pairs, "_measured", lambda self, a, b: measured.append(len(a)) or kept(self, a, b))
    monkeypatch.setattr(memorizing, "nearest_pairs", lambda samples, train: pytest.fail("searched all pairs"))
    nearest(_spread_unevenly(100, 0), _spread_unevenly(1000, 1))
    assert 100 < sum(measured) < 5000


@pytest.mark.parametrize("scale", [0.0, 1e-2])
def test_directions_of_samples_that_are_all_alike(few, scale):
    train = 1000 + scale * _features(30, 12, 0)
    distances, indices = nearest(train[5:], train)
    assert distances.eq(0).all()
    assert indices.tolist() == (list(range(5, 30)) if scale else [0] * 25)


def test_samples_far_away_from_all_training_samples(few):
    train = _spread_unevenly(60, 0)
    samples = _spread_unevenly(20, 1) + 1e4
    distances, _ = nearest(samples, train)
    expected = (samples[:, None].double() - train.double()).norm(dim=2).amin(1)
    assert distances.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_exact_whatever_was_switched_on_for_all_of_torch(few, monkeypatch, precision):
    seen, projected = [], memorizing._projected

    def watching(*sets):
        seen.append(torch.backends.cuda.matmul.allow_tf32 if not NEW else torch.backends.cuda.matmul.fp32_precision != "ieee")
        return projected(*sets)

    monkeypatch.setattr(memorizing, "_projected", watching)
    samples, train = _features(60, 40, 0), _features(70, 40, 1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        distances, _ = nearest(samples, train)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [False]
    torch.testing.assert_close(distances, torch.cdist(samples.double(), train.double()).amin(1), rtol=1e-12, atol=0)
