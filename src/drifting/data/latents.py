"""A cache of latents on disk: of every image and of its mirror image the mean and log-variance that an auto-encoder gives.

The folder holds index.json, which says of what the cache is, and shards of `shard_size` images, `shard-00000.safetensors` and on. A
shard has `moments` [n, 2, 2k, y, x] (image, mirror image; mean, then log-variance, neither shifted nor scaled) and, where images
have classes, `labels` [n]; `checks` [n, 2] of each, by which it is checked when it is read.
Shards name the cache that they are of. `drifting.data.latents_writer` writes all this.

float16 keeps every number to 0.05 %: a latent of unit spread moves by less than 0.0005 or so, where the bytes of an image are in
steps of 0.004 of its range; and a log-variance of -20 by 0.008, its standard deviation by 0.4 %.

Shapes: s images, b of them at once, k channels of a latent, y x x its places.
"""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drifting._json import parse_json, read_dataclass
from drifting.errors import InputError, one_line, reason

VERSION = 1
INDEX = "index.json"
DTYPE, _DTYPE_NAME = torch.float16, "F16"
# Of any size in an index; beyond are damaged ones, whose shards would fill the memory when they are counted.
_LARGEST = 10**8


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """Of what a cache is.

    Attributes:
        vae: name or folder of the auto-encoder.
        vae_fingerprint: of its weights.
        scale, shift: of its latents, see `data.vae`.
        latent_shape: channels, height and width of a latent.
        image_size: pixels to a side of the images.
        split: of the folder of images.
        count: of images.
        class_names: of the labels; None where there are none.
        files: stands for the names of all files, in their order.
        shard_size: images of each shard but the last.
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
        """The images of every shard."""
        starts = range(0, self.count, self.shard_size)
        return [range(start, min(start + self.shard_size, self.count)) for start in starts]

    def shard_shape(self, number: int) -> tuple[int, ...]:
        """Return the shape of the moments of a shard."""
        channels, height, width = self.latent_shape
        return len(self.shards[number]), 2, 2 * channels, height, width

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for all of it but where the auto-encoder was found."""
        facts = {name: value for name, value in asdict(self).items() if name != "vae"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, with the version."""
        return {"version": VERSION, "type": "latents", **asdict(self)}


def read_index(folder: Path, *, argument: str = "data", fix: str = "pass a folder that drifting latents wrote") -> CacheIndex:
    """Return what a cache is of; raises InputError if there is none in the folder, it is damaged or of a newer version."""
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
    """Return where a shard lies."""
    return folder / f"shard-{number:05d}.safetensors"


def open_shard(folder: Path, index: CacheIndex, number: int) -> Any:
    """Return a shard mapped into memory; raises InputError unless its header says that it is that one of this cache."""
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
        # Caches of before there were checks have none.
        if "checks" in shard.keys() and shard.get_slice("checks").get_shape() != [len(index.shards[number]), 2]:  # noqa: SIM118
            raise InputError(f"data holds '{path}', whose checks are not two for each image: {fix}")
    except (SafetensorError, OSError) as error:
        raise InputError(f"data holds '{path}', which is truncated or corrupted ({reason(error)}): {fix}") from None
    return shard


def shard_facts(shard: Any) -> list[str]:
    """Return what a shard tells: the fingerprint of its cache, its number, the checksum of its tensors, the sizes of its images."""
    # In one line, for the order of several is left to chance, and so would be the bytes of the file.
    return (shard.metadata() or {}).get("latents", "").split()


def row_checks(moments: Float[Tensor, "s 2 _ y x"]) -> Int[Tensor, "s 2"]:
    """Return a checksum of the bytes of every image and of its mirror image."""
    return torch.tensor([[_check(side) for side in row] for row in moments], dtype=torch.long)


def _check(row: Tensor) -> int:
    return zlib.crc32(row.contiguous().numpy().data)


class LatentCache:
    """A complete cache, opened for reading; its moments stay on disk.

    Args:
        path: of the folder.
        vae_fingerprint: of the auto-encoder that it must have been made with; None for any.
        latent_shape: what its latents must be; None for any.
        files: what must stand for the names of its files; None for any.

    Attributes:
        path: of the folder.
        index: of what it is.
        labels: the class of every image; None where there are none.

    Raises:
        InputError: if a shard is missing or not as the index says, or the cache was made with another VAE or size.
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
        asked = {"VAE": vae_fingerprint, "size of latents": latent_shape, "list of files": files}
        for name, value in asked.items():
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
    def num_classes(self) -> int | None:
        """Number of classes; None where there are no labels."""
        return None if self.index.class_names is None else len(self.index.class_names)

    def read(self, indices: Int[Tensor, " b"], mirrored: Int[Tensor, " b"]) -> Float[Tensor, "b _ y x"]:
        """Return the moments of images, or of their mirror images where `mirrored` is 1, in float32; InputError for damage."""
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
