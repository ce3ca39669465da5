import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from drifting.data.latents import LatentCache, shard_path
from drifting.errors import InputError
from tests.support.latent_caches import make_index, told_apart, write_cache

LABELS = torch.arange(12) % 3


@pytest.fixture
def folder(tmp_path):
    """A cache of twelve images in shards of five."""
    write_cache(tmp_path / "cache", told_apart(12), LABELS)
    return tmp_path / "cache"


def test_rows_come_by_index_from_any_shard_and_side(folder):
    cache = LatentCache(folder)
    rows, sides = torch.tensor([11, 0, 4, 5, 5]), torch.tensor([0, 1, 0, 0, 1])
    found = cache.read(rows, sides)
    assert (found.shape, found.dtype) == ((5, 4, 3, 3), torch.float32)
    assert found[:, 0, 0, 0].tolist() == [12, -1, 5, 6, -6]
    assert torch.equal(cache.labels, LABELS)
    assert (len(cache), len(cache.class_names)) == (12, 3)


def test_moments_are_not_read_on_opening(folder, monkeypatch):
    cache = LatentCache(folder)
    # What is on disk changes below it: nothing was kept.
    path = shard_path(folder, 0)
    content = bytearray(path.read_bytes())
    start = content.index(told_apart(12)[:5].half().numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x00" * 2)
    assert cache.read(torch.tensor([0]), torch.tensor([0]))[0, 0].flatten().tolist() == [0] + [1] * 8


def test_fingerprint_is_of_everything_but_the_place_of_the_vae():
    first = make_index(12, classes=3)
    assert first.fingerprint() == make_index(12, classes=3, vae="elsewhere").fingerprint()
    changed = [{"vae_fingerprint": "beef"}, {"scale": 1.0}, {"files": "x"}, {"shard_size": 4}, {"split": "val"}, {"image_size": 12}]
    assert len({first.fingerprint(), *(make_index(12, classes=3, **change).fingerprint() for change in changed)}) == 7


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"vae_fingerprint": "beef"}, r"made with another VAE \(f00d, not beef\): name the cache that was used, or run"),
        ({"latent_shape": (4, 32, 32)}, r"made with another size of latents \(\(2, 3, 3\), not \(4, 32, 32\)\)"),
        ({"files": "f11e"}, r"made with another list of files \(beef, not f11e\)"),
    ],
)
def test_cache_of_another_kind_is_refused(folder, asked, message):
    LatentCache(folder, vae_fingerprint="f00d", latent_shape=(2, 3, 3), files="beef")
    with pytest.raises(InputError, match=rf"data is '.*cache', a cache of latents {message}"):
        LatentCache(folder, **asked)


def _changed(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _rewritten(folder, change, facts=None):
    path = shard_path(folder, 1)
    index = make_index(12, classes=3)
    tensors = change(load_file(path))
    save_file(tensors, path, metadata={"latents": facts or f"{index.fingerprint()} 1 unchecked"})


def _swapped(folder):
    """Leave what belongs to the second shard in the place of the first."""
    shard_path(folder, 0).write_bytes(shard_path(folder, 1).read_bytes())


def _cut(folder):
    shard_path(folder, 1).write_bytes(shard_path(folder, 1).read_bytes()[:-1])


SECOND = r"shard-00001\.safetensors'"
BROKEN = {
    r"holds no cache of latents \(no index\.json\): pass a folder that": lambda folder: (folder / "index.json").unlink(),
    r"whose index\.json is damaged \(JSONDecodeError": lambda folder: (folder / "index.json").write_text("{"),
    r"whose index\.json is damaged \(KeyError 'type'\)": lambda folder: (folder / "index.json").write_text('{"version": 1}'),
    r"whose index\.json is damaged \(TypeError": lambda folder: (folder / "index.json").write_text("[]"),
    r"whose index\.json is damaged \(more is unknown to CacheIndex": lambda folder: _changed(folder, more=1),
    r"whose index\.json is damaged \(count is 0, not a size from 1 to": lambda folder: _changed(folder, count=0),
    r"whose index\.json is damaged \(count is 'x', not a whole number": lambda folder: _changed(folder, count="x"),
    r"index\.json is damaged \(count is 10+, not a size from 1 to 100000000\): pass": lambda folder: _changed(folder, count=10**15),
    r"index\.json is damaged \(count is 12\.0, not a whole number": lambda folder: _changed(folder, count=12.0),
    r"index\.json is damaged \(ValueError it is nested too": lambda folder: (folder / "index.json").write_text("[" * 100_000),
    "is of 'latents' in version 2, where version 1": lambda folder: _changed(folder, version=2),
    "is of 'images' in version 1": lambda folder: _changed(folder, type="images"),
    r"lacks shard-00001\.safetensors and so 1 of 3 shards": lambda folder: shard_path(folder, 1).unlink(),
    f"{SECOND}, which is truncated or corrupted": _cut,
    r"shard-00000\.safetensors', which is truncated or corrupted": lambda folder: shard_path(folder, 0).write_bytes(b""),
    f"{SECOND}, which is of another cache of latents, or another shard": lambda folder: _rewritten(folder, dict, "beef 1 x"),
    r"shard-00000\.safetensors', which is of another cache": _swapped,
    rf"{SECOND} of moments \(\(4, 2, 4, 3, 3\), 'F16'\), not \(\(5, 2, 4, 3, 3\), 'F16'\)": lambda folder: _rewritten(
        folder, lambda tensors: {**tensors, "moments": tensors["moments"][:4].clone()}
    ),
    rf"{SECOND} of moments \(\(5, 2, 4, 3, 3\), 'F32'\), not": lambda folder: _rewritten(
        folder, lambda tensors: {**tensors, "moments": tensors["moments"].float()}
    ),
    rf"{SECOND}, which is truncated or corrupted \(.*labels": lambda folder: _rewritten(
        folder, lambda tensors: {"moments": tensors["moments"]}
    ),
    f"{SECOND}, whose labels are not one for each image": lambda folder: _rewritten(
        folder, lambda tensors: {**tensors, "labels": tensors["labels"][:4].clone()}
    ),
    f"{SECOND}, whose checks are not two for each image": lambda folder: _rewritten(
        folder, lambda tensors: {**tensors, "checks": torch.zeros(5, dtype=torch.long)}
    ),
    "whose labels do not fit its 3 classes: run drifting latents again": lambda folder: _rewritten(
        folder, lambda tensors: {**tensors, "labels": tensors["labels"] + 1}
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_cache_is_reported(folder, message):
    BROKEN[message](folder)
    with pytest.raises(InputError, match=message):
        LatentCache(folder)
