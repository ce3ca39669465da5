import numpy as np
import pytest
import torch

from drifting.checkpoint import load_tensors, save_tensors
from drifting.errors import InputError
from drifting.evaluation.statistics import ImageStatistics, cached_statistics, load_statistics, read_statistics, save_statistics
from drifting.metrics.frechet import gaussian_of, load_gaussian, save_gaussian

FEATURES = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
SEEN = ImageStatistics(gaussian_of(FEATURES), FEATURES[:10].clone(), accuracy=0.7, inception_score=2.5)
BARE = ImageStatistics(gaussian_of(FEATURES))


def _same(first: ImageStatistics, second: ImageStatistics) -> bool:
    tensors = [
        (seen.gaussian.mean, seen.gaussian.covariance, torch.zeros(0) if seen.features is None else seen.features)
        for seen in (first, second)
    ]
    figures = [(seen.gaussian.count, seen.accuracy, seen.inception_score) for seen in (first, second)]
    return all(map(torch.equal, *tensors)) and figures[0] == pytest.approx(figures[1])


@pytest.mark.parametrize("seen", [SEEN, BARE], ids=["all", "statistics"])
def test_saved_statistics_come_back(seen, tmp_path):
    path = tmp_path / "seen.safetensors"
    save_statistics(path, seen, fingerprint="abc")
    found, fingerprint = load_statistics(path)
    assert fingerprint == "abc"
    assert _same(found, seen)
    assert _same(read_statistics(path), seen)
    assert torch.equal(load_gaussian(path)[0].mean, seen.gaussian.mean)


def test_gaussian_of_a_file_without_more_is_read(tmp_path):
    save_gaussian(tmp_path / "gaussian.safetensors", SEEN.gaussian)
    assert _same(read_statistics(tmp_path / "gaussian.safetensors"), BARE)


def test_computed_once_for_each_fingerprint(tmp_path):
    computed = []

    def compute():
        computed.append(1)
        return SEEN

    path = tmp_path / "deep" / "seen.safetensors"
    for fingerprint, times in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        assert _same(cached_statistics(path, fingerprint, compute), SEEN)
        assert len(computed) == times
    path.write_bytes(path.read_bytes()[:-3])
    assert _same(cached_statistics(path, "b", compute), SEEN)
    assert len(computed) == 3


def test_nothing_is_computed_that_could_not_be_kept(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="where nothing can be written"):
        cached_statistics(tmp_path / "file" / "x.safetensors", "a", lambda: pytest.fail("looked at images"))


def test_published_statistics_are_those_of_the_arrays(tmp_path):
    mean, covariance = FEATURES.numpy().mean(0), np.cov(FEATURES.numpy(), rowvar=False)
    np.savez(tmp_path / "real.npz", mu=mean, sigma=covariance, mu_s=np.zeros(3), arr_0=np.zeros((2, 3), np.uint8))
    seen = read_statistics(tmp_path / "real.npz")
    assert (seen.gaussian.count, seen.features, seen.gaussian.mean.dtype) == (0, None, torch.float64)
    torch.testing.assert_close(seen.gaussian.mean, SEEN.gaussian.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(seen.gaussian.covariance, SEEN.gaussian.covariance, atol=1e-6, rtol=1e-6)


class _Code:
    def __reduce__(self):
        return pytest.fail, ("the code of a file was run",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(4), "sigma": np.eye(4)}, r"which holds no statistics \(no mu and sigma\): name another file"),
        ({"mu": np.array([_Code()], object), "sigma": np.eye(1)}, r"which holds no statistics \(Object arrays cannot be loaded"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, r"which holds no statistics \(could not convert string"),
        (
            {"mu": np.zeros((1, 4)), "sigma": np.eye(4)},
            r"whose mean and covariance are \(1, 4\) and \(4, 4\): pass \[d\] and \[d, d\]",
        ),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, r"whose mean and covariance are \(4,\) and \(3, 3\)"),
        ({"mu": np.zeros(4), "sigma": np.full((4, 4), np.nan)}, "whose statistics are not finite: fetch or compute them again"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"whose mean and covariance are \(0,\) and \(0, 0\)"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 0.5], [0, 1]])}, "whose covariance is none, not symmetric"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "whose covariance is none, .* with a negative variance: name another file"),
        ({"mu": np.zeros(2) + 1j, "sigma": np.eye(2)}, r"which holds no statistics \(mu or sigma is complex\)"),
    ],
)
def test_bad_arrays(arrays, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=rf"^real is '.*bad.npz', {message}"):
        read_statistics(tmp_path / "bad.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damaged_byte_of_published_statistics_ends_in_another_error(save, tmp_path):
    save(tmp_path / "real.npz", mu=np.zeros(2), sigma=np.eye(2))
    whole, refused = (tmp_path / "real.npz").read_bytes(), 0
    for place in range(0, len(whole)):
        (tmp_path / "real.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_statistics(tmp_path / "real.npz")
        except InputError:
            refused += 1
    assert refused > len(whole) / 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": torch.zeros(2)}, "which holds no statistics"),
        ({"count": torch.tensor(float("nan"))}, "which holds no statistics"),
        ({"count": torch.tensor(float("inf"))}, "which holds no statistics"),
        ({"accuracy": torch.zeros(2)}, "which holds no statistics .*accuracy and inception_score are not single numbers"),
        ({"features": torch.zeros(5, 3)}, "whose features do not fit its mean or are not finite: compute them again"),
        ({"features": torch.full((5, 4), float("nan"))}, "whose features do not fit its mean or are not finite"),
    ],
)
def test_bad_statistics_of_ours(changes, message, tmp_path):
    save_statistics(tmp_path / "seen.safetensors", SEEN)
    save_tensors(tmp_path / "seen.safetensors", {**load_tensors(tmp_path / "seen.safetensors"), **changes})
    with pytest.raises(InputError, match=f"^real is '.*seen.safetensors', {message}"):
        read_statistics(tmp_path / "seen.safetensors")


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"words"])
def test_files_that_are_something_else(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"^real is '.*', which holds no statistics .*: name another file$"):
        read_statistics(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(
        InputError, match=r"which is not a file: name a folder of images, or statistics of them \(.safetensors, .npz\)"
    ):
        read_statistics(tmp_path / "none.npz")
