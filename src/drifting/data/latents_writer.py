"""Write a cache of latents, shard by shard; an interrupted command can be resumed.

Existing shards are kept if they belong to the same cache and their checksums match. See `data.latents` for the files.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from drifting._checks import check_counts, check_device
from drifting._files import atomic_path, check_space, check_writable, clear_scratch, hold, remedy, storage_fault
from drifting._json import save_json
from drifting._progress import CountProgress
from drifting.data.image_folder import ImageFiles
from drifting.data.latents import DTYPE, INDEX, CacheIndex, open_shard, read_index, row_checks, shard_facts, shard_path
from drifting.data.pixels import VAE, load_vae, to_signed
from drifting.errors import InputError, StorageError

_SHARDS = "shard-*.safetensors"

# Differences that are reported first, in words; others are reported by the name of the field.
_WORDS = {"vae_fingerprint": "VAE", "image_size": "image size", "split": "split", "files": "list of files"}


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """How latents are computed and stored.

    Attributes:
        image_size: side in pixels after a center crop to a square.
        split: split of the folder of images; without split folders, "train" is everything.
        batch_size: number of images in one pass.
        device: device of the auto-encoder.
        shard_size: number of images in one file.
    """

    image_size: int = 256
    split: str = "train"
    batch_size: int = 32
    device: str = "cpu"
    shard_size: int = 4096


def write_latents(
    data: str | Path, vae: VAE | str | Path, out: str | Path, settings: CacheSettings | None = None, *, overwrite: bool = False
) -> CacheIndex:
    """Write the latents of a folder of images and their mirror images into a cache, or complete the cache.

    Args:
        data: a folder with one sub-folder per class, optionally inside train/ and val/.
        vae: the auto-encoder, or its name or folder, see `data.pixels.load_vae`.
        out: folder of the cache.
        settings: settings of images, files and device.
        overwrite: whether to delete an existing cache.

    Raises:
        InputError: before any work, if an argument does not fit or `out` holds another cache; later, if an image is damaged.
    """
    settings, out = settings or CacheSettings(), Path(out)
    check_counts({name: getattr(settings, name) for name in ("batch_size", "shard_size")})
    check_device(settings.device)
    check_writable(out, "out")
    files = ImageFiles(data, image_size=settings.image_size, split=settings.split)
    encoder = vae if isinstance(vae, VAE) else load_vae(vae)
    index = CacheIndex(
        vae=encoder.origin,
        vae_fingerprint=encoder.fingerprint(),
        scale=encoder.scale,
        shift=encoder.shift,
        latent_shape=encoder.latent_shape(settings.image_size),
        image_size=settings.image_size,
        split=settings.split,
        count=len(files),
        class_names=files.class_names,
        files=files.names_fingerprint(),
        shard_size=settings.shard_size,
    )
    with hold(out, "out"):
        _claim(out, index, overwrite=overwrite)
        missing = _missing(out, index, files)
        _check_space(out, index, missing)
        save_json(out / INDEX, index.to_json())
        done = index.count - sum(len(index.shards[number]) for number in missing)
        with _explaining_faults(out), CountProgress("writing latents", index.count, done=done) as progress:
            for number in missing:
                _write_shard(out, index, number, files, encoder.to(settings.device), settings.batch_size, progress)
    return index


@contextmanager
def _explaining_faults(out: Path) -> Iterator[None]:
    """Turn an error of the disk into a StorageError that says what is kept and how to continue."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (fault := storage_fault(error)) is None:
            raise
        kept = f"what is written in '{out}' is kept" if out.is_dir() else f"the folder '{out}' is gone"
        raise StorageError(f"{fault}; {kept}. {remedy(error)}, then start the same command again") from error


def _claim(out: Path, index: CacheIndex, *, overwrite: bool) -> None:
    """Prepare the folder of the cache, or raise InputError if it holds another cache and `overwrite` is False."""
    fix = "pass --overwrite, or name another folder"
    if overwrite:
        for path in (out / INDEX, *out.glob(_SHARDS)):
            path.unlink(missing_ok=True)
    elif (out / INDEX).exists():
        found = read_index(out, argument="out", fix=fix)
        names = [*_WORDS, *(field.name for field in fields(index) if field.name not in (*_WORDS, "vae"))]
        for name in names:
            before, now = getattr(found, name), getattr(index, name)
            if before != now:
                other = f"which holds latents of another {_WORDS.get(name, name)} ({before}, not {now})"
                raise InputError(f"out is '{out}', {other}: {fix}")
    elif next(out.glob(_SHARDS), None) is not None:
        raise InputError(f"out is '{out}', which holds shards but no {INDEX}: {fix}")
    out.mkdir(parents=True, exist_ok=True)
    clear_scratch(out)


def _missing(out: Path, index: CacheIndex, files: ImageFiles) -> list[int]:
    """Return the shards that must be written: missing and damaged ones, and those whose images have changed."""
    there = [number for number in range(len(index.shards)) if shard_path(out, number).is_file()]
    whole = set()
    with CountProgress("checking latents", len(there), unit="files") as progress:
        for done, number in enumerate(there, 1):
            if _is_whole(out, index, number, files):
                whole.add(number)
            progress.advance(done)
    return [number for number in range(len(index.shards)) if number not in whole]


def _is_whole(out: Path, index: CacheIndex, number: int, files: ImageFiles) -> bool:
    try:
        shard = open_shard(out, index, number)
    except InputError:
        return False
    checksum, *sizes = shard_facts(shard)[2:] or [""]
    # Shards of earlier versions do not store the sizes of their images.
    if sizes and sizes != [files.sizes_fingerprint(index.shards[number])]:
        return False
    return checksum == _checksum({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _check_space(out: Path, index: CacheIndex, missing: list[int]) -> None:
    sizes = (torch.Size(index.shard_shape(number)).numel() * DTYPE.itemsize for number in missing)
    check_space(out, sum(sizes), "out")


def _write_shard(
    out: Path, index: CacheIndex, number: int, files: ImageFiles, vae: VAE, batch_size: int, progress: CountProgress
) -> None:
    rows = index.shards[number]
    moments = torch.empty(index.shard_shape(number), dtype=DTYPE)
    done = 0
    for images in _read_ahead(files, rows, batch_size):
        moments[done : done + len(images)] = _moments(vae, images)
        done += len(images)
        progress.advance(rows.start + done)
    if not bool(moments.isfinite().all()):
        raise InputError(f"vae is '{index.vae}', whose moments are NaN or beyond the range of {DTYPE}: name another")
    tensors = {"moments": moments, "checks": row_checks(moments)}
    if files.labels is not None:
        tensors["labels"] = files.labels[rows.start : rows.stop].clone()
    facts = f"{index.fingerprint()} {number} {_checksum(tensors)} {files.sizes_fingerprint(rows)}"
    with atomic_path(shard_path(out, number)) as scratch:
        save_file(tensors, scratch, metadata={"latents": facts})


def _read_ahead(files: ImageFiles, rows: range, batch_size: int) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
    """Yield the images of rows in batches; the next batch is decoded while the last one is encoded."""
    batches = torch.arange(rows.start, rows.stop).split(batch_size)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(files.read, batches[0])
        for following in batches[1:]:
            images, waiting = waiting.result(), thread.submit(files.read, following)
            yield images
        yield waiting.result()


def _moments(vae: VAE, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 _ y x"]:
    device = next(vae.parameters()).device
    signed = to_signed(images.to(device))
    return torch.stack([vae.moments(signed), vae.moments(signed.flip(-1))], 1).to("cpu", DTYPE)
