"""A cache of latents on disk: the means and log-variances that an auto-encoder gives for every image and its mirror image.

The folder holds index.json, which describes the cache, and shards of `shard_size` images: `shard-00000.safetensors` and so on. A
shard has `moments` [n, 2, 2k, y, x] (image, mirror image; mean, then log-variance, neither shifted nor scaled), `checks` [n, 2]
(checksums of the moments, compared when they are read) and, if the images have classes, `labels` [n]. Its metadata name the cache.
`drifting.data.latents_writer` writes the cache.

float16 has a relative error of 0.05 %. A latent of unit standard deviation changes by less than about 0.0005, while the bytes of an
image have steps of 0.004 of its range. A log-variance of -20 changes by 0.008, which is 0.4 % of the standard deviation.

Shapes: s images, b images of a batch, k channels of a latent, y x x its places.
"""

import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drifting._json import parse_json, read_dataclass
from drifting.data.dataset import Decoder, as_notes, describe_classes, describe_shape, found, read_once
from drifting.data.pixels import VAE, draw_latents, full_name, load_vae, to_bytes
from drifting.data.streamed import DiskRows, StreamedData, mirrored, row_streams
from drifting.errors import InputError, one_line, reason

VERSION = 1
INDEX = "index.json"
DTYPE, _DTYPE_NAME = torch.float16, "F16"
# Largest size in an index. Larger ones are damage, and listing their shards would fill the memory.
_LARGEST = 10**8
# Number of latents that one thread draws, or that are decoded together.
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """The description of a cache.

    Attributes:
        vae: name or folder of the auto-encoder.
        vae_fingerprint: fingerprint of its weights.
        scale, shift: scale and shift of its latents, see `data.pixels`.
        latent_shape: channels, height and width of a latent.
        image_size: side of the images in pixels.
        split: split of the folder of images.
        count: number of images.
        class_names: name of each label; None without labels.
        files: fingerprint of all files, in their order.
        shard_size: number of images of each shard except the last.
    """

    vae: str
    vae_fingerprint: str
    scale: float
    shift: float
    latent_shape: tuple[int, int, int]
    image_size: int
    split: str
    count: int
    class_names: tuple[str, ...] | None
    files: str
    shard_size: int

    @property
    def shards(self) -> list[range]:
        """Indices of the images of each shard."""
        starts = range(0, self.count, self.shard_size)
        return [range(start, min(start + self.shard_size, self.count)) for start in starts]

    def shard_shape(self, number: int) -> tuple[int, ...]:
        """Return the shape of the moments of a shard."""
        channels, height, width = self.latent_shape
        return len(self.shards[number]), 2, 2 * channels, height, width

    def fingerprint(self) -> str:
        """Return a fingerprint of all fields except `vae`, 16 hexadecimal digits."""
        facts = {name: value for name, value in asdict(self).items() if name != "vae"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the index and the version of the format as JSON values."""
        return {"version": VERSION, "type": "latents", **asdict(self)}


def read_index(folder: Path, *, argument: str = "data", fix: str = "pass a folder that drifting latents wrote") -> CacheIndex:
    """Return the index of a cache, or raise InputError if it is missing, damaged or of a newer version."""
    path = folder / INDEX
    try:
        values = parse_json(path.read_text())
        version, kind = values.pop("version"), values.pop("type")
    except FileNotFoundError:
        raise InputError(f"{argument} is '{folder}', which holds no cache of latents (no {INDEX}): {fix}") from None
    except (ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        found = f"is damaged ({type(error).__name__} {reason(error)})"
        raise InputError(f"{argument} is '{folder}', whose {INDEX} {found}: {fix}") from None
    if kind != "latents" or type(version) is not int or version > VERSION:
        named = one_line(f"is of '{kind}' in version {version}", 60)
        found = f"{named}, where version {VERSION} of 'latents' is read"
        raise InputError(f"{argument} is '{folder}', whose {INDEX} {found}: update drifting, or {fix}")
    try:
        index = read_dataclass(CacheIndex, values)
        sizes = {name: getattr(index, name) for name in ("count", "shard_size", "image_size")}
        for name, size in {**sizes, **{f"latent_shape[{axis}]": side for axis, side in enumerate(index.latent_shape)}}.items():
            if not 1 <= size <= _LARGEST:
                raise InputError(f"{name} is {size}, not a size from 1 to {_LARGEST}")
    except InputError as error:
        raise InputError(f"{argument} is '{folder}', whose {INDEX} is damaged ({error}): {fix}") from None
    return index


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard."""
    return folder / f"shard-{number:05d}.safetensors"


def open_shard(folder: Path, index: CacheIndex, number: int) -> Any:
    """Return a memory-mapped shard, or raise InputError unless its header names this shard of this cache."""
    path, fix = shard_path(folder, number), "delete it and run drifting latents again"
    try:
        shard = safe_open(path, "pt")
        if shard_facts(shard)[:2] != [index.fingerprint(), str(number)]:
            raise InputError(f"data holds '{path}', which is of another cache of latents, or another shard: {fix}")
        moments = shard.get_slice("moments")
        found, expected = (tuple(moments.get_shape()), moments.get_dtype()), (index.shard_shape(number), _DTYPE_NAME)
        if found != expected:
            raise InputError(f"data holds '{path}' of moments {found}, not {expected}: {fix}")
        if index.class_names is not None and shard.get_slice("labels").get_shape() != [len(index.shards[number])]:
            raise InputError(f"data holds '{path}', whose labels are not one for each image: {fix}")
        # Caches of earlier versions have no checks.
        if "checks" in shard.keys() and shard.get_slice("checks").get_shape() != [len(index.shards[number]), 2]:  # noqa: SIM118
            raise InputError(f"data holds '{path}', whose checks are not two for each image: {fix}")
    except (SafetensorError, OSError) as error:
        raise InputError(f"data holds '{path}', which is truncated or corrupted ({reason(error)}): {fix}") from None
    return shard


def shard_facts(shard: Any) -> list[str]:
    """Return the facts in a shard: the fingerprint of its cache, its number, its checksum, and the sizes of its images."""
    # One entry, because the order of several entries, and so the bytes of the file, would be random.
    return (shard.metadata() or {}).get("latents", "").split()


def row_checks(moments: Float[Tensor, "s 2 _ y x"]) -> Int[Tensor, "s 2"]:
    """Return checksums of the bytes of the moments of every image and its mirror image."""
    return torch.tensor([[_check(side) for side in row] for row in moments], dtype=torch.long)


def _check(row: Tensor) -> int:
    return zlib.crc32(row.contiguous().numpy().data)


class LatentCache:
    """A complete cache, opened for reading. The moments stay on disk.

    Args:
        path: folder of the cache.
        vae_fingerprint: fingerprint of the required auto-encoder; None for any.
        latent_shape: required shape of a latent; None for any.
        files: required fingerprint of the files; None for any.

    Attributes:
        path: folder of the cache.
        index: description of the cache.
        labels: class of every image; None without labels.

    Raises:
        InputError: if a shard is missing or does not fit the index, or if the cache was made with another VAE, size or list of
            files.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        vae_fingerprint: str | None = None,
        latent_shape: tuple[int, int, int] | None = None,
        files: str | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.index = index = read_index(self.path)
        found = {"VAE": index.vae_fingerprint, "size of latents": index.latent_shape, "list of files": index.files}
        required = {"VAE": vae_fingerprint, "size of latents": latent_shape, "list of files": files}
        for name, value in required.items():
            if value is not None and value != found[name]:
                other = f"a cache of latents made with another {name} ({found[name]}, not {value})"
                raise InputError(f"data is '{path}', {other}: name the cache that was used, or run drifting latents again")
        numbers = range(len(self.index.shards))
        missing = [number for number in numbers if not shard_path(self.path, number).is_file()]
        if missing:
            lacks = f"which lacks {shard_path(self.path, missing[0]).name} and so {len(missing)} of {len(numbers)} shards"
            raise InputError(f"data is '{path}', {lacks}: run drifting latents again, which makes the rest")
        self._shards = [open_shard(self.path, self.index, number) for number in numbers]
        self._moments = [shard.get_slice("moments") for shard in self._shards]
        self._checks = [shard.get_tensor("checks") if "checks" in shard.keys() else None for shard in self._shards]  # noqa: SIM118
        self.labels: Int[Tensor, " s"] | None = None if index.class_names is None else self._read_labels(len(index.class_names))

    def __len__(self) -> int:
        """Return the number of images."""
        return self.index.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        return self.index.latent_shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of each label; None without labels."""
        return self.index.class_names

    def read(self, indices: Int[Tensor, " b"], mirrored: Int[Tensor, " b"]) -> Float[Tensor, "b _ y x"]:
        """Return the moments of images, or of their mirror images if `mirrored` is 1, in float32, or raise InputError."""
        rows = []
        for index, side in zip(indices.tolist(), mirrored.tolist(), strict=True):
            number, place = divmod(index, self.index.shard_size)
            rows.append(self._moments[number][place, side])
            checks = self._checks[number]
            if checks is not None and _check(rows[-1]) != int(checks[place, side]):
                damaged = f"'{shard_path(self.path, number)}', whose image {place} is damaged"
                raise InputError(f"data holds {damaged}: delete it and run drifting latents again")
        return torch.stack(rows).float()

    def _read_labels(self, num_classes: int) -> Int[Tensor, " s"]:
        labels = torch.cat([shard.get_tensor("labels") for shard in self._shards]).long()
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise InputError(
                f"data is '{self.path}', whose labels do not fit its {num_classes} classes: run drifting latents again"
            )
        return labels


class LatentRows(DiskRows):
    """Rows of a `LatentCache`, drawn from the distribution of an image or, at random, of its mirror image."""

    dtype = torch.float32

    def take(self, indices: Int[Tensor, " b"], positions: Int[Tensor, " b"]) -> Float[Tensor, "b *sample"]:
        """Return shifted and scaled latents. Large batches use several threads, because numpy releases Python's lock."""
        if len(indices) <= _AT_ONCE:
            return self._taken(indices, positions)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return torch.cat(list(pool.map(self._taken, indices.split(_AT_ONCE), positions.split(_AT_ONCE))))

    def _taken(self, indices: Int[Tensor, " b"], positions: Int[Tensor, " b"]) -> Float[Tensor, "b *sample"]:
        streams = row_streams(self._seed, positions)
        moments, index = self._opened.read(indices, mirrored(streams, self._flip)), self._opened.index
        noise = np.stack([stream.standard_normal(self.shape, dtype=np.float32) for stream in streams])
        return draw_latents(moments, torch.from_numpy(noise), scale=index.scale, shift=index.shift)


_open_cache = read_once(2)(LatentCache)


@read_once(1)
def _open_vae(name: str) -> tuple[VAE, str]:
    vae = load_vae(name)
    return vae, vae.fingerprint()


def open_vae(name_or_folder: str) -> tuple[VAE, str]:
    """Return an auto-encoder and its fingerprint, read once until `forget_data`; raises InputError as `load_vae` does."""
    return _open_vae(full_name(name_or_folder))


@dataclass(frozen=True, kw_only=True)
class LatentsData(StreamedData):
    """Latents of images, computed by `drifting latents`.

    Attributes:
        vae: name or folder of the auto-encoder that decodes samples; found in the cache and saved with the run.
        vae_fingerprint: fingerprint of the auto-encoder that made the cache, found in the same way.
    """

    vae: str | None = None
    vae_fingerprint: str | None = found()

    latent: ClassVar[bool] = True
    _place: ClassVar[str] = "a cache that drifting latents wrote"
    _rows: ClassVar[type[DiskRows]] = LatentRows

    @property
    def title(self) -> str:
        """Name of the data in pictures, which show decoded latents."""
        return f"{super().title}, decoded latents"

    def _facts(self, opened: LatentCache) -> dict[str, Any]:
        index = opened.index
        return super()._facts(opened) | {
            "vae": self.vae or index.vae,
            "vae_fingerprint": index.vae_fingerprint,
            "files": index.files,
        }

    def open(self) -> LatentCache:
        """Return the cache, opened once per process, or raise InputError if it is not that of the run."""
        return _open_cache(self.path or "", vae_fingerprint=self.vae_fingerprint, latent_shape=self.image_shape, files=self.files)

    def load_vae(self, device: str | None = None) -> VAE:
        """Return the auto-encoder of the latents, moved to a device if one is given; raises InputError if it is another one."""
        if self.vae is None:
            raise InputError(f"data is '{self.path}', whose VAE is not known yet: resolve the configuration first")
        vae, found = open_vae(self.vae)
        if self.vae_fingerprint not in (None, found):
            other = f"which is not the one that made the latents ({found}, not {self.vae_fingerprint})"
            raise InputError(f"vae is '{self.vae}', {other}: bring that back")
        if self.image_shape is not None and vae.latent_channels != self.image_shape[0]:
            channels = f"decodes latents of {vae.latent_channels} channels, but those of the run have {self.image_shape[0]}"
            raise InputError(f"vae is '{self.vae}', which {channels}: name the one that the latents were made with")
        return vae if device is None else vae.to(device)

    def report(self) -> list[str]:
        """Return a description of the latents, see `Data.report`."""
        if self.image_shape is None:
            return []
        cache = self.open()
        classes, doubts = describe_classes(cache.labels if self.conditional else None, self.class_names, len(cache))
        return [f"{len(cache)} latents of {describe_shape(self.image_shape)}, {classes}", *as_notes(doubts)]

    def exported_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of decoded images. Errors are those of `decoder`."""
        _, height, width = self.sample_shape
        vae = self.load_vae()
        return vae.channels, height * vae.reduction, width * vae.reduction

    def decoder(self, device: str = "cpu") -> Decoder:
        """Return the function from latents to bytes of images; see `ImageData.decoder`."""
        vae = self.load_vae(device)
        # Decoded in parts, so that only the bytes of many images are in memory together.
        return lambda latents: torch.cat([to_bytes(vae.decode(part)) for part in latents.split(_AT_ONCE)])
