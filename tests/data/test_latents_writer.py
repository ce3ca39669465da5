"""A folder of images into a cache of latents: what is in it, that it is resumed, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from drifting.data import latents_writer
from drifting.data.image_folder import ImageFiles
from drifting.data.latents import LatentCache
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.pixels import load_vae, to_signed
from drifting.errors import InputError, StorageError
from tests.support.image_folders import write_images
from tests.support.tiny_vae import write_vae

SETTINGS = CacheSettings(image_size=8, batch_size=2, shard_size=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images/, vae/, and cache/ of seven images in three shards; copy the last before changing it."""
    folder = tmp_path_factory.mktemp("latents")
    write_images(folder / "images", {"train/a": 4, "train/b": 3, "val/a": 2, "val/b": 1}, channels=3)
    write_vae(folder / "vae")
    write_latents(folder / "images", folder / "vae", folder / "cache", SETTINGS)
    return folder


@pytest.fixture
def copy(place, tmp_path):
    return shutil.copytree(place / "cache", tmp_path / "cache")


def _write(place, out, settings=SETTINGS, **options):
    return write_latents(place / "images", place / "vae", out, settings, **options)


def test_cache_holds_the_moments_of_every_image_and_of_its_mirror_image(place):
    cache, vae, files = LatentCache(place / "cache"), load_vae(place / "vae"), ImageFiles(place / "images", image_size=8)
    images, rows = to_signed(files.read(torch.arange(7))), torch.arange(7)
    for mirrored, seen in ((0, images), (1, images.flip(-1))):
        found = cache.read(rows, torch.full((7,), mirrored))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, vae.moments(seen), rtol=2**-11, atol=1e-6)
    assert not torch.equal(cache.read(rows, rows * 0), cache.read(rows, rows * 0 + 1))
    assert (len(cache), len(cache.class_names), cache.labels.tolist()) == (7, 2, [0, 0, 0, 0, 1, 1, 1])


def test_damage_that_leaves_the_size_is_reported_when_the_row_is_read(place, copy):
    path = copy / "shard-00001.safetensors"
    content, moments = bytearray(path.read_bytes()), load_file(path)["moments"]
    # The last value of the mirror image of the second of its images, the fifth of all.
    content[content.index(moments.numpy().tobytes()) + 2 * moments.nbytes // 3 - 1] ^= 1
    path.write_bytes(content)
    cache = LatentCache(copy)
    cache.read(torch.tensor([4, 3, 5]), torch.tensor([0, 1, 1]))
    with pytest.raises(
        InputError, match=r"shard-00001\.safetensors', whose image 1 is damaged: delete it and run drifting latents"
    ):
        cache.read(torch.tensor([4]), torch.tensor([1]))
    path.unlink()
    _write(place, copy)
    assert path.read_bytes() == (place / "cache" / path.name).read_bytes()
    LatentCache(copy).read(torch.tensor([4]), torch.tensor([1]))


def test_index_tells_of_what_the_cache_is(place):
    index = LatentCache(place / "cache").index
    vae = load_vae(place / "vae")
    assert (index.vae, index.vae_fingerprint) == (str(place / "vae"), vae.fingerprint())
    assert (index.scale, index.shift, index.latent_shape, index.image_size) == (0.5, 0.0, (4, 4, 4), 8)
    assert (index.split, index.count, index.class_names, index.shard_size) == ("train", 7, ("a", "b"), 3)
    assert index.files == ImageFiles(place / "images", image_size=8).names_fingerprint()
    assert sorted(path.name for path in (place / "cache").iterdir()) == [
        "index.json",
        *(f"shard-0000{number}.safetensors" for number in range(3)),
    ]
    assert [len(shard) for shard in index.shards] == [3, 3, 1]


def test_shards_of_images_that_were_replaced_are_written_again(place, tmp_path, monkeypatch):
    images, out, read, asked = Path(shutil.copytree(place / "images", tmp_path / "images")), tmp_path / "cache", ImageFiles.read, []
    write_latents(images, place / "vae", out, SETTINGS)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.copy(place / "images" / "val" / "a" / "000.png", images / "train" / "a" / "003.png")
    (images / "train" / "a" / "003.png").open("ab").write(b"another size")
    monkeypatch.setattr(ImageFiles, "read", lambda files, indices: asked.extend(indices.tolist()) or read(files, indices))
    write_latents(images, place / "vae", out, SETTINGS)
    assert asked == [3, 4, 5]
    assert {name for name, content in before.items() if (out / name).read_bytes() != content} == {"shard-00001.safetensors"}


def test_shards_of_an_earlier_version_are_kept(place, copy, monkeypatch):
    for path in copy.glob("shard-*"):
        with safe_open(path, "pt") as shard:
            facts, tensors = shard.metadata()["latents"], load_file(path)
        save_file(tensors, path, metadata={"latents": " ".join(facts.split()[:3])})
    monkeypatch.setattr(ImageFiles, "read", lambda files, indices: pytest.fail("an image was read"))
    _write(place, copy)


def test_other_splits_and_images_without_classes(place, tmp_path):
    assert _write(place, tmp_path / "val", CacheSettings(image_size=8, split="val")).count == 3
    assert LatentCache(tmp_path / "val").labels.tolist() == [0, 0, 1]
    write_images(tmp_path / "loose", {".": 3})
    write_latents(tmp_path / "loose", place / "vae", tmp_path / "other", SETTINGS)
    cache = LatentCache(tmp_path / "other")
    assert (cache.labels, cache.class_names) == (None, None)


def test_interrupted_cache_keeps_its_whole_shards_and_ends_bit_for_bit_the_same(place, tmp_path, monkeypatch):
    out, read, asked = tmp_path / "cache", ImageFiles.read, []

    def stopping(files, indices):
        asked.append(indices.tolist())
        if indices[0] >= 3:
            raise KeyboardInterrupt
        return read(files, indices)

    monkeypatch.setattr(ImageFiles, "read", stopping)
    with pytest.raises(KeyboardInterrupt):
        _write(place, out)
    assert sorted(path.name for path in out.iterdir()) == ["index.json", "shard-00000.safetensors"]
    with pytest.raises(InputError, match=r"lacks shard-00001\.safetensors and so 2 of 3 shards: run drifting latents again, which"):
        LatentCache(out)
    (out / ".writing-killed").mkdir()
    asked.clear()
    monkeypatch.setattr(ImageFiles, "read", lambda files, indices: asked.append(indices.tolist()) or read(files, indices))
    _write(place, out)
    assert [index for indices in asked for index in indices] == [3, 4, 5, 6]
    for path in out.iterdir():
        assert path.read_bytes() == (place / "cache" / path.name).read_bytes()
    asked.clear()
    _write(place, out)
    assert asked == []


@pytest.mark.parametrize("damage", ["truncated", "changed", "of another cache"])
def test_damaged_shards_are_written_again(place, copy, tmp_path, damage):
    path = copy / "shard-00001.safetensors"
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[:-1])
    elif damage == "changed":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        _write(place, tmp_path / "other", CacheSettings(image_size=8, shard_size=3, split="val"))
        shutil.copy(tmp_path / "other" / "shard-00000.safetensors", path)
    _write(place, copy)
    assert path.read_bytes() == whole


def test_progress_is_reported(place, tmp_path, capsys):
    _write(place, tmp_path / "cache")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("writing latents 7/7  ")
    assert line.endswith("images/s  0 s left")


def test_another_cache_is_refused_before_any_work_unless_it_may_be_overwritten(place, copy, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in copy.iterdir()}
    other = write_vae(tmp_path / "vae", seed=1)
    more = shutil.copytree(place / "images", tmp_path / "more")
    write_images(more / "train" / "c", {".": 1}, channels=3)
    monkeypatch.setattr(latents_writer, "_moments", None)
    for arguments, words in {
        (place / "images", other, SETTINGS): r"latents of another VAE \(\w+, not \w+\)",
        (place / "images", place / "vae", CacheSettings(image_size=16, shard_size=3)): r"another image size \(8, not 16\)",
        (more, place / "vae", SETTINGS): r"another list of files \(\w+, not \w+\)",
        (place / "images", place / "vae", CacheSettings(image_size=8, shard_size=3, split="val")): "another split",
        (place / "images", place / "vae", CacheSettings(image_size=8)): r"another shard_size \(3, not 4096\)",
    }.items():
        data, vae, settings = arguments
        with pytest.raises(
            InputError, match=rf"out is '.*cache', which holds {words if 'latents' in words else 'latents of ' + words}"
        ):
            write_latents(data, vae, copy, settings)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
    monkeypatch.undo()
    index = write_latents(more, other, copy, CacheSettings(image_size=4), overwrite=True)
    assert (index.count, LatentCache(copy).index) == (8, index)
    assert sorted(path.name for path in copy.iterdir()) == ["index.json", "shard-00000.safetensors"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 9}, "image_size is 9: pass a multiple of 2"),
        ({"batch_size": 0}, "batch_size is 0: pass at least 1"),
        ({"shard_size": 0}, "shard_size is 0: pass at least 1"),
        ({"device": "tpu"}, "device is 'tpu': pass cpu"),
        ({"split": "test"}, "split is 'test', but data '.*' has train, val"),
    ],
)
def test_bad_settings_are_reported_and_nothing_is_written(place, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        _write(place, tmp_path / "cache", CacheSettings(**{"image_size": 8, **settings}))
    assert not (tmp_path / "cache").exists()


def test_folders_that_cannot_be_used_are_reported(place, copy, tmp_path, monkeypatch):
    (copy / "index.json").write_text("no JSON")
    with pytest.raises(InputError, match=r"out is '.*', whose index\.json is damaged .*: pass --overwrite, or name another folder"):
        _write(place, copy)
    (copy / "index.json").unlink()
    with pytest.raises(InputError, match=r"out is '.*', which holds shards but no index\.json: pass --overwrite"):
        _write(place, copy)
    _write(place, copy, overwrite=True)
    with pytest.raises(InputError, match=r"vae is '.*images', which cannot be loaded"):
        write_latents(place / "images", place / "images", tmp_path / "x", SETTINGS)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"out is '.*', where 0 MB are needed and 0 MB free: make room"):
        _write(place, tmp_path / "x")


def test_damaged_image_ends_it_and_what_is_done_stays(place, tmp_path):
    images = shutil.copytree(place / "images", tmp_path / "images")
    path = images / "train" / "b" / "002.png"
    whole = path.read_bytes()
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"train/b/002\.png', which is truncated or corrupted"):
        write_latents(images, place / "vae", tmp_path / "cache", SETTINGS)
    assert sorted(path.name for path in (tmp_path / "cache").glob("shard*")) == [f"shard-0000{i}.safetensors" for i in range(2)]
    path.write_bytes(whole)
    write_latents(images, place / "vae", tmp_path / "cache", SETTINGS)
    assert len(LatentCache(tmp_path / "cache")) == 7


def test_moments_beyond_float16_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(latents_writer, "_moments", lambda vae, images: torch.full((len(images), 2, 8, 4, 4), 1e9))
    with pytest.raises(InputError, match=r"vae is '.*vae', whose moments are NaN or beyond the range of torch\.float16"):
        _write(place, tmp_path / "cache")


def test_command_line(place, tmp_path, command):
    arguments = ("--data", place / "images", "--vae", place / "vae", "--out", tmp_path / "cache")
    result = command("latents", *arguments, "--image-size", 8, "--shard-size", 3)
    assert result.status == 0
    assert result.out.splitlines()[-2:] == ["7 images, latents (4, 4, 4)", str(tmp_path / "cache")]
    result = command("latents", *arguments, "--image-size", 16, "--shard-size", 3)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("drifting: out is '")
    assert command("latents", *arguments, "--image-size", 16, "--overwrite").status == 0
    assert LatentCache(tmp_path / "cache").index.latent_shape == (4, 8, 8)
