import pytest
import torch

from drifting.errors import InputError
from drifting.training.positives import FeatureCache

SAMPLES = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([[3, 3, 29], [0, 17, 8]])


class Encoder:
    """Two features by a convolution, counting the samples it has seen."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.network = torch.nn.Conv2d(1, 3, 2, 2)
        self.seen = 0

    def __call__(self, samples):
        self.seen += len(samples)
        map = self.network(samples).flatten(2).transpose(1, 2)
        return {"map/all": map, "mean": map.mean(1, keepdim=True)}


def _on_the_fly(encoder, samples, batch_size):
    parts = [encoder(part) for part in samples.split(batch_size)]
    return {name: torch.cat([part[name] for part in parts]).detach() for name in parts[0]}


@pytest.mark.parametrize("batch_size", [7, 30, 100])
@pytest.mark.parametrize("byte_budget", [2**20, 0])
def test_cache_is_encoding_on_the_fly_bit_for_bit(batch_size, byte_budget, tmp_path):
    encoder = Encoder()
    cache = FeatureCache(encoder, SAMPLES, batch_size=batch_size, byte_budget=byte_budget, folder=tmp_path)
    found = cache.lookup(INDICES)
    assert set(cache.names) == {"map/all", "mean"}
    assert (cache.path is None) == (byte_budget > 0)
    assert cache.nbytes == 30 * (4 * 3 + 3) * 4
    for name, value in _on_the_fly(encoder, SAMPLES, batch_size).items():
        assert torch.equal(found[name], value[INDICES])
        assert found[name].shape[:2] == INDICES.shape
        assert not found[name].requires_grad


@pytest.mark.parametrize("byte_budget", [2**20, 0])
def test_every_batch_is_reported_once_it_is_encoded_and_none_of_a_cache_that_is_found(byte_budget, tmp_path):
    progress, encoder = [], Encoder()
    options = {"batch_size": 12, "byte_budget": byte_budget, "folder": tmp_path}
    FeatureCache(encoder, SAMPLES, on_progress=lambda done: progress.append((done, encoder.seen - 8)), **options)
    assert progress == [(12, 12), (24, 24), (30, 30)]
    FeatureCache(encoder, SAMPLES, on_progress=progress.append, **options)
    assert len(progress) == (3 if byte_budget == 0 else 6)


def test_any_batch_gives_the_same_to_rounding():
    encoder = Encoder()
    found = FeatureCache(encoder, SAMPLES, batch_size=7).lookup(INDICES)
    for name, value in encoder(SAMPLES[INDICES.flatten()]).items():
        torch.testing.assert_close(found[name].flatten(0, 1), value.detach())


def test_mapped_files_are_found_again(tmp_path):
    first, second = Encoder(), Encoder()
    one = FeatureCache(first, SAMPLES, byte_budget=0, folder=tmp_path / "new")
    two = FeatureCache(second, SAMPLES, byte_budget=0, folder=tmp_path / "new")
    assert first.seen == 8 + 30
    assert second.seen == 8
    assert one.path == two.path
    for name, value in one.lookup(INDICES).items():
        assert torch.equal(value, two.lookup(INDICES)[name])


def test_other_samples_weights_and_batches_have_files_of_their_own(tmp_path):
    changed = SAMPLES.clone()
    changed[-1, 0, 0, 0] += 1e-3
    arguments = {"byte_budget": 0, "folder": tmp_path}
    caches = [
        FeatureCache(Encoder(), SAMPLES, **arguments),
        FeatureCache(Encoder(1), SAMPLES, **arguments),
        FeatureCache(Encoder(), changed, **arguments),
        FeatureCache(Encoder(), SAMPLES, batch_size=3, **arguments),
        FeatureCache(Encoder(), SAMPLES, prepare=lambda rows: 2 * rows, **arguments),
    ]
    assert len({cache.path for cache in caches}) == 5


def test_interrupted_writing_leaves_nothing_behind(tmp_path):
    encoder = Encoder()

    def failing(samples):
        if encoder.seen > 8:
            raise KeyboardInterrupt
        return encoder(samples)

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(failing, SAMPLES, byte_budget=0, folder=tmp_path, batch_size=4)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_prepared_first():
    pixels = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
    cache = FeatureCache(Encoder(), pixels, prepare=lambda rows: rows.float() / 255)
    torch.testing.assert_close(cache.lookup(torch.tensor([[1]]))["mean"][0], Encoder()(pixels[1:].float() / 255)["mean"].detach())


def test_what_cannot_work_is_refused():
    with pytest.raises(InputError, match="features take 1800 bytes, over byte_budget 100"):
        FeatureCache(Encoder(), SAMPLES, byte_budget=100)
    with pytest.raises(InputError, match="data is empty"):
        FeatureCache(Encoder(), SAMPLES[:0])
