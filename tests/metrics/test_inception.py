import hashlib
import io
import urllib.error
import urllib.request

import pytest
import torch
from torch import nn

from drifting.errors import InputError
from drifting.metrics import inception
from drifting.metrics.inception import RunningInceptionScore, load_inception


class _Network(nn.Module):
    """Stand in for the Inception: the mean, the largest value and the batch size, if features are asked for."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        assert images.dtype == torch.float32
        assert images.shape[1] == 3
        if not return_features:
            return (images.mean([2, 3]) * (1.0 if no_output_bias else 2.0)).softmax(1)
        size = torch.full([images.shape[0], 1], float(images.shape[0]))
        return torch.cat([images.mean([2, 3]) * self.scale, images.amax([1, 2, 3])[:, None], size], 1)


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "stand-in.pt"
    torch.jit.script(_Network()).save(path)
    return path


@pytest.fixture
def published(monkeypatch, network_file):
    """Make the stand-in the published file."""
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(network_file.read_bytes()).hexdigest())


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def _images(count: int, channels: int) -> torch.Tensor:
    return torch.randint(256, (count, channels, 5, 7), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_those_of_the_network_for_bytes_as_they_are(channels, network_file, published):
    images = _images(5, channels)
    features = load_inception(network_file, batch_size=2)(images)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features[:, :3], images.float().mean([2, 3]).expand(-1, 3))
    assert features[:, 3].tolist() == images.flatten(1).amax(1).tolist()
    assert features[:, 4].tolist() == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_are_those_without_the_bias_of_the_last_layer(channels, network_file, published):
    images = _images(5, channels)
    found = load_inception(network_file, batch_size=2).probabilities(images)
    torch.testing.assert_close(found, images.float().mean([2, 3]).expand(-1, 3).softmax(1))
    assert not found.requires_grad
    with pytest.raises(InputError, match=r"images are torch.float32 of the shape \(5, 3, 5, 7\): pass uint8"):
        load_inception(network_file).probabilities(_images(5, 3).float())


def test_a_file_of_another_hash_is_refused_before_it_is_loaded(network_file, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("the code of an unknown file was run"))
    with pytest.raises(InputError, match="check_hash=False") as caught:
        load_inception(network_file)
    assert hashlib.sha256(network_file.read_bytes()).hexdigest()[:16] in str(caught.value)
    assert str(network_file) in str(caught.value)


def test_the_hash_check_can_be_overridden(network_file):
    assert load_inception(network_file, check_hash=False)(_images(2, 3)).shape == (2, 5)


def test_the_hash_and_the_address_are_the_published_ones():
    assert inception.SHA256 == "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    assert inception.URL.startswith("https://nvlabs-fi-cdn.nvidia.com/")


def test_missing_files_and_other_files_are_reported(tmp_path):
    with pytest.raises(InputError, match="which is not a file"):
        load_inception(tmp_path / "none.pt")
    (tmp_path / "other.pt").write_text("not this")
    with pytest.raises(InputError, match="not a TorchScript"):
        load_inception(tmp_path / "other.pt", check_hash=False)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4).byte(), torch.zeros(3, 4, 4).byte(), torch.zeros(0, 3, 4, 4).byte()]
)
def test_images_that_are_no_bytes_are_refused(images, network_file, published):
    with pytest.raises(InputError, match="uint8 \\[n, c, h, w\\]"):
        load_inception(network_file)(images)


def test_the_file_is_downloaded_once(network_file, published, cache, monkeypatch):
    opened = []

    def open_address(address, timeout):
        opened.append(address)
        return io.BytesIO(network_file.read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", open_address)
    for _ in range(2):
        assert load_inception(None)(_images(2, 3)).shape == (2, 5)
    assert opened == [inception.URL]
    assert [file.name for file in cache.iterdir()] == ["inception-2015-12-05.pt"]


def test_a_truncated_download_is_refused_and_not_kept(network_file, published, cache, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO(network_file.read_bytes()[:-1]))
    with pytest.raises(InputError, match="its sha256 is"):
        load_inception(None)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route to host"), TimeoutError("timed out"), PermissionError("read-only")]
)
def test_without_a_network_the_fix_is_named(error, cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match="cannot be downloaded") as caught:
        load_inception(None)
    assert inception.URL in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.mark.network
@pytest.mark.slow
def test_the_published_file_gives_2048_features():
    features = load_inception(None)
    images = _images(2, 3)
    assert features(images).shape == (2, 2048)
    torch.testing.assert_close(features(images[:, :1]), features(images[:, :1].expand(-1, 3, -1, -1)))


RNG = torch.Generator().manual_seed(0)
PROBABILITIES = torch.randn(40, 6, generator=RNG).mul(2).softmax(1)


def _score(probabilities: torch.Tensor) -> float:
    """Return the score of one part, as the definition has it, in float64."""
    mean = probabilities.double().mean(0)
    return float((probabilities.double() * (probabilities.double() / mean).log()).sum(1).mean().exp())


def _running(probabilities: torch.Tensor, size: int, part: int) -> float:
    running = RunningInceptionScore(part)
    for batch in probabilities.split(size):
        running.add(batch)
    return running.score()


@pytest.mark.parametrize("size", [1, 3, 10, 40])
@pytest.mark.parametrize("part", [10, 20, 40, 100])
def test_score_is_the_mean_of_those_of_its_parts_in_any_batches(size, part):
    expected = [_score(some) for some in PROBABILITIES.split(part)]
    assert _running(PROBABILITIES, size, part) == pytest.approx(sum(expected) / len(expected), rel=1e-9)


def test_last_part_that_is_not_full_is_left_out():
    assert _running(PROBABILITIES, 7, 30) == pytest.approx(_score(PROBABILITIES[:30]), rel=1e-9)


@pytest.mark.parametrize(("rows", "score"), [(torch.eye(5), 5), (torch.eye(5)[:1].repeat(9, 1), 1), (torch.full((9, 4), 0.25), 1)])
def test_certain_classes_count_and_doubt_does_not(rows, score):
    assert _running(rows, 4, 100) == pytest.approx(score)


def test_nothing_has_no_score():
    with pytest.raises(InputError, match="probabilities are of 0 samples: the score needs at least 1"):
        RunningInceptionScore().score()
