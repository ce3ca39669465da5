import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from drifting.errors import InputError
from drifting.metrics import frechet
from drifting.metrics.frechet import (
    Gaussian,
    RunningGaussian,
    frechet_distance,
    gaussian_of,
    kernel_distance,
    load_gaussian,
    save_gaussian,
    unreliable,
)


def _features(count: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mixed(count: int, dimensions: int, seed: int) -> torch.Tensor:
    return _features(count, dimensions, seed) @ _features(dimensions, dimensions, seed + 100) + seed


def _gaussian(mean: list[float], covariance: torch.Tensor) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), covariance.double(), 100)


def _assert_same(first: Gaussian, second: Gaussian, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(first.mean, second.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(first.covariance, second.covariance, rtol=tolerance, atol=tolerance)
    assert first.count == second.count


def test_gaussian_is_that_of_numpy():
    features = _mixed(30, 4, 0)
    found = gaussian_of(features.float())
    assert found.count == 30
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, features.float().double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.float().double(), rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("sizes", [[1] * 50, [50], [7, 0, 1, 42], [25, 25]])
def test_batches_equal_one_go(sizes):
    features = _mixed(50, 6, 1)
    running = RunningGaussian()
    for batch in features.split(sizes):
        running.add(batch)
    _assert_same(running.gaussian(), gaussian_of(features))


def test_a_large_shift_costs_no_digits():
    features = _features(60, 3, 3).mul(1024).round() / 1024  # exact after the shift
    running = RunningGaussian()
    for batch in (features + 2.0**30).split(13):
        running.add(batch)
    torch.testing.assert_close(running.gaussian().covariance, gaussian_of(features).covariance, rtol=1e-6, atol=1e-8)


def test_result_does_not_change_when_more_is_added():
    running = RunningGaussian()
    running.add(_features(5, 2, 0))
    kept = running.gaussian()
    mean, covariance = kept.mean.clone(), kept.covariance.clone()
    running.add(_features(5, 2, 1))
    assert torch.equal(kept.mean, mean)
    assert torch.equal(kept.covariance, covariance)


@pytest.mark.parametrize("count", [0, 1])
def test_covariance_needs_two_samples(count):
    with pytest.raises(InputError, match=f"of {count} samples"):
        gaussian_of(_features(count, 3, 0))


def test_wrong_features_are_refused():
    running = RunningGaussian()
    running.add(_features(5, 3, 0))
    with pytest.raises(InputError, match="4 columns, those before 3"):
        running.add(_features(5, 4, 0))
    with pytest.raises(InputError, match="1 rows of 5 with a value that is not finite"):
        running.add(_features(5, 3, 0).index_fill(0, torch.tensor([2]), torch.nan))
    with pytest.raises(InputError, match="flattened"):
        running.add(torch.zeros(5, 3, 2))
    with pytest.raises(InputError, match="floating"):
        running.add(torch.zeros(5, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match="same encoder"):
        frechet_distance(gaussian_of(_features(5, 3, 0)), gaussian_of(_features(5, 4, 0)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"weights have shape \(2,\): pass \(3,\), one for each sample"),
        ([1.0, math.nan, 2.0], "weights has nan: pass finite numbers from 0 on"),
        ([1.0, math.inf, 2.0], "weights has inf: pass finite numbers from 0 on"),
        ([1.0, 2.0, -0.5], r"weights has -0\.5: pass finite numbers from 0 on"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        gaussian_of(_features(3, 2, 0), torch.tensor(weights))


def test_distance_of_one_dimension_is_the_closed_form():
    found = frechet_distance(_gaussian([1.0], torch.tensor([[4.0]])), _gaussian([3.0], torch.tensor([[9.0]])))
    assert found == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2, rel=1e-14)


def test_distance_of_commuting_covariances_is_the_closed_form():
    turn, _ = torch.linalg.qr(_features(5, 5, 0))
    first, second = torch.tensor([1.0, 2.0, 3.0, 0.0, 5.0]).double(), torch.tensor([2.0, 0.5, 3.0, 1.0, 0.0]).double()
    a = _gaussian([0.0] * 5, turn @ first.square().diag() @ turn.T)
    b = _gaussian([1.0, 0.0, 0.0, 0.0, 2.0], turn @ second.square().diag() @ turn.T)
    assert frechet_distance(a, b) == pytest.approx(float((first - second).square().sum()) + 5, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_distance_equals_that_of_the_matrix_square_root(seed):
    a, b = gaussian_of(_mixed(80, 12, seed)), gaussian_of(_mixed(50, 12, seed + 7))
    root = sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-9)


def test_distance_to_itself_is_zero_and_never_negative():
    for seed, count in enumerate([3, 20, 200]):
        gaussian = gaussian_of(_mixed(count, 20, seed))
        assert 0 <= frechet_distance(gaussian, gaussian) < 1e-13 * float(gaussian.covariance.trace())


def test_distance_of_singular_covariances_is_exact():
    """Rank one each: S = u u^T and v v^T, whose cross term is |u.v|; roots of squares would be 1e-8 off."""
    first, second = _features(2, 300, 0)
    a, b = _gaussian([0.0] * 300, torch.outer(first, first)), _gaussian([0.0] * 300, torch.outer(second, second))
    expected = float(first @ first + second @ second - 2 * (first @ second).abs())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    second = second - first * (first @ second) / (first @ first)
    b = _gaussian([0.0] * 300, torch.outer(second, second))
    assert frechet_distance(a, b) == pytest.approx(float(first @ first + second @ second), rel=1e-12)
    point = _gaussian([0.0] * 300, torch.zeros(300, 300))
    assert frechet_distance(a, point) == pytest.approx(float(first @ first), rel=1e-12)
    assert frechet_distance(point, point) == 0


def test_distance_of_disjoint_singular_covariances_has_no_cross_term():
    a, b = _gaussian([0.0] * 4, torch.tensor([3.0, 2.0, 0, 0]).diag()), _gaussian([0.0] * 4, torch.tensor([0, 0, 1.0, 7.0]).diag())
    assert frechet_distance(a, b) == pytest.approx(13, rel=1e-14)


def _from_covariances(a: Gaussian, b: Gaussian) -> float:
    """Return the distance from d x d matrices, with a root by as many eigenvalues as the samples leave above 0."""
    roots = []
    for gaussian in (a, b):
        values, vectors = torch.linalg.eigh(gaussian.covariance)
        rank = min(gaussian.count - 1, len(values))
        roots.append(vectors[:, -rank:] * values[-rank:].sqrt())
    overlap = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    return float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap)


@pytest.mark.parametrize("counts", [(2, 2), (3, 30), (40, 20), (30, 40), (39, 41), (100, 25)])
def test_fewer_samples_than_features_give_the_same_distance_from_small_matrices(counts):
    basis = _features(40, 40, 5)
    a, b = (gaussian_of(_features(count, 40, seed) @ basis + seed) for seed, count in enumerate(counts))
    assert [gaussian.parts()[0] for gaussian in (a, b)] == ["root" if count <= 40 else "covariance" for count in counts]
    found, expected = frechet_distance(a, b), _from_covariances(a, b)
    assert found == pytest.approx(expected, rel=1e-9)
    whole = (Gaussian(gaussian.mean, gaussian.covariance, gaussian.count) for gaussian in (a, b))
    assert found == pytest.approx(frechet_distance(*whole), rel=1e-9)


def test_wide_features_make_no_matrix_of_their_own_size(monkeypatch):
    """A covariance of 200,000 features would take 320 GB."""
    x, y = (torch.randn(count, 200_000, generator=torch.Generator().manual_seed(count)) for count in (6, 9))
    a, b = gaussian_of(x), gaussian_of(y)
    products = [(values.double() - values.double().mean(0)) for values in (x, y)]
    overlap = torch.linalg.svdvals(products[0] @ products[1].T).sum() / (5 * 8) ** 0.5
    spread = products[0].square().sum() / 5 + products[1].square().sum() / 8
    expected = (x.double().mean(0) - y.double().mean(0)).square().sum() + spread - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    monkeypatch.setattr(frechet, "LARGEST", 200_000 * 5)
    with pytest.raises(InputError, match=r"6 samples of 200000 features need 0 GB for their covariance: use at most 5 samples or"):
        gaussian_of(x)


def test_root_is_kept_in_the_file(tmp_path):
    gaussian = gaussian_of(_features(5, 30, 0))
    save_gaussian(tmp_path / "a.safetensors", gaussian)
    kept, _ = load_gaussian(tmp_path / "a.safetensors")
    assert torch.equal(kept.root(), gaussian.root())
    _assert_same(kept, gaussian)


def test_covariance_and_root_exclude_each_other():
    for given in ({}, {"covariance": torch.eye(2), "root": torch.eye(2)}):
        with pytest.raises(InputError, match="pass one of them"):
            Gaussian(torch.zeros(2), **given)


def test_distance_ignores_rotation_and_a_common_shift_and_scales_with_the_square():
    x, y = _mixed(60, 5, 0), _mixed(70, 5, 1)
    turn, _ = torch.linalg.qr(_features(5, 5, 9))
    expected = frechet_distance(gaussian_of(x), gaussian_of(y))
    assert expected > 1
    assert frechet_distance(gaussian_of(x @ turn + 3), gaussian_of(y @ turn + 3)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(gaussian_of(3 * x), gaussian_of(3 * y)) == pytest.approx(9 * expected, rel=1e-10)


@pytest.mark.parametrize(("count", "warned"), [(2, True), (64, True), (65, False), (1000, False)])
def test_too_few_samples_are_reported(count, warned):
    sentence = unreliable(count, 64)
    assert (sentence is not None) == warned
    rank = torch.linalg.matrix_rank(gaussian_of(_features(count, 64, 0)).covariance)
    assert (rank < 64) == warned
    if warned:
        assert f"{count} samples of 64 features" in sentence


def _kernel_loop(x, y):
    def kernel(first, second):
        return (float(first @ second) / len(first) + 1) ** 3

    def within(points):
        pairs = [kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j]
        return sum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (9, 6, 3), (5, 11, 20)])
def test_kernel_distance_equals_the_loop(n, m, d):
    x, y = _features(n, d, 0), _features(m, d, 1) + 0.5
    assert kernel_distance(x, y) == pytest.approx(_kernel_loop(x, y), rel=1e-10)
    assert kernel_distance(y, x) == pytest.approx(_kernel_loop(x, y), rel=1e-10)


def test_kernel_distance_equals_that_of_scikit_learn_in_any_chunks(monkeypatch):
    x, y = _features(40, 8, 0).float(), _features(30, 8, 1).float() + 1
    within = [polynomial_kernel(part.double(), degree=3, coef0=1) for part in (x, y)]
    expected = sum((kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in within)
    expected -= 2 * polynomial_kernel(x.double(), y.double(), degree=3, coef0=1).mean()
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-11)
    monkeypatch.setattr(frechet, "_CHUNK", 100)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_is_unbiased():
    """Its mean over samples of one distribution is 0; with the pairs of a sample with itself it would be well above."""
    found = torch.tensor([kernel_distance(_features(10, 3, 2 * seed), _features(15, 3, 2 * seed + 1)) for seed in range(400)])
    error = float(found.std()) / 400**0.5
    assert abs(float(found.mean())) < 4 * error
    assert float(found.min()) < 0
    itself = (_features(1000, 3, 0).square().mean(1) + 1).pow(3).mean() - 1
    assert float(itself) * (1 / 10 + 1 / 15) > 10 * error


def test_kernel_distance_refuses_single_samples():
    with pytest.raises(InputError, match="1 and 5 samples"):
        kernel_distance(_features(1, 3, 0), _features(5, 3, 0))


def test_gaussian_survives_the_disk(tmp_path):
    gaussian = gaussian_of(_mixed(20, 5, 0))
    save_gaussian(tmp_path / "folder" / "real.safetensors", gaussian, fingerprint="mnist, 20")
    found, fingerprint = load_gaussian(tmp_path / "folder" / "real.safetensors")
    _assert_same(found, gaussian, 0)
    assert fingerprint == "mnist, 20"


def test_unreadable_gaussians_are_reported(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_gaussian(tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"not this")
    with pytest.raises(InputError, match="delete it"):
        load_gaussian(tmp_path / "damaged.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="delete it"):
        load_gaussian(tmp_path / "other.safetensors")
