"""Which real images the samples of a run are compared with where both are streamed, and which ones make the floor.

The reference is what is named, or else the run's own folder: its images that were not trained on if there is a split of them, else
all. The floor is made of training images, where those are others.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from drifting import config as configuration
from drifting.config import Decoder, ImageFilesData, ImagesData, LatentsData, RunConfig
from drifting.data.image_files import ImageFiles
from drifting.data.images import ImageSet
from drifting.data.readers import folder as folders
from drifting.data.shuffle import shuffled_indices
from drifting.data.source import Source
from drifting.errors import InputError
from drifting.evaluation import Judge, see
from drifting.evaluation.statistics import SUFFIXES, cached_seen, read_statistics
from drifting.evaluation.streaming import KEPT, Batch, Seen, check_feature_size
from drifting.training.progress import show_images

_SEED = 0
# Of latents that stand for real images: streams that training does not use.
_REFERENCE_STREAM, _FLOOR_STREAM = 10**6, 10**6 + 1
_HELD_OUT = ("test", "val")


@runtime_checkable
class Images(Protocol):
    """Images by position, and their classes where they have any."""

    @property
    def labels(self) -> Int[Tensor, " s"] | None:
        """Class of each."""
        ...

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def read(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """Return some of them."""
        ...

    def fingerprint(self) -> str:
        """Return what stands for them."""
        ...


@runtime_checkable
class Side(Protocol):
    """Real images of an evaluation, for one side of a comparison; `name` is shown beside the figures."""

    name: str

    def see(self, count: int, batch_size: int, *, everything: bool) -> Seen:
        """Look at `count` images, as far as they reach, or at everything where there is an end to it."""
        ...


@dataclass
class Kept:
    """Statistics of a file."""

    name: str
    seen: Seen

    def see(self, count: int, batch_size: int, *, everything: bool) -> Seen:
        """Return them."""
        return self.seen


@dataclass
class Streamed:
    """Images that are read as they are looked at, in an order of chance; what was seen is kept.

    Attributes:
        name: for the figures.
        images: where they come from.
        origin: their place, which stands for them together with their fingerprint.
        judge: who looks.
        cache: folder of what was seen before.
        labelled: whether their classes are those of the run.
    """

    name: str
    images: Images
    origin: str
    judge: Judge
    cache: Path
    labelled: bool = True

    def see(self, count: int, batch_size: int, *, everything: bool) -> Seen:
        """Look at the first of the order, or find what was seen before."""
        total = len(self.images) if everything else min(count, len(self.images))
        facts = (self.origin, self.images.fingerprint(), total, KEPT, self.labelled, _SEED, self.judge.name)
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        batches = show_images(self._batches(total, batch_size), total, what=self.name)
        return cached_seen(self.cache / f"{self.judge.name}-{digest}.safetensors", digest, lambda: see(batches, self.judge))

    def _batches(self, total: int, batch_size: int) -> Iterator[Batch]:
        labels = self.images.labels if self.labelled else None
        for part in shuffled_indices(len(self.images), 0, total, _SEED).split(batch_size):
            yield self.images.read(part), None if labels is None else labels[part]


@dataclass
class DecodedLatents:
    """Real latents as an auto-encoder decodes them, which are no real images, drawn with repetition."""

    source: Source
    decode: Decoder
    judge: Judge
    stream: int
    name: str = "decoded latents"

    def see(self, count: int, batch_size: int, *, everything: bool) -> Seen:
        """Look at `count` of them."""
        return see(show_images(self._batches(count, batch_size), count, what=self.name), self.judge)

    def _batches(self, count: int, batch_size: int) -> Iterator[Batch]:
        rng = torch.Generator().manual_seed(self.stream)
        for start in range(0, count, batch_size):
            yield self.decode(self.source.draw_unconditional(1, min(batch_size, count - start), rng)[0]), None


class _InMemory:
    """Images in memory, read as those of files are."""

    def __init__(self, images: ImageSet) -> None:
        self._images, self.labels, self.fingerprint = images.images, images.labels, images.fingerprint

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        return self._images[indices]


def real_images(config: RunConfig, real: str | None, judge: Judge, decode: Decoder, *, cache: Path) -> tuple[Side, Side | None]:
    """Return the reference of an evaluation, and what makes its floor; None where there are no other real images.

    Args:
        config: of a run of images.
        real: folder of images, or file of statistics; None for the run's own.
        judge: who looks.
        decode: samples -> bytes.
        cache: folder for what was seen.

    Raises:
        InputError: if there are no real images, or they are not such as the run makes.
    """
    shape = configuration.exported_shape(config)
    if real is None and isinstance(config.data, LatentsData):
        if not judge.name.startswith("pixels"):
            without = f"real is not given, and the latents of '{config.data.path}' hold no real images"
            raise InputError(
                f"{without}: pass --real FOLDER or a file of statistics, or look at decoded latents with --judge pixels"
            )
        source = configuration.build_source(config)
        reference, floor = (DecodedLatents(source, decode, judge, stream) for stream in (_REFERENCE_STREAM, _FLOOR_STREAM))
        return reference, floor
    if real is not None and Path(real).suffix in SUFFIXES:
        seen = read_statistics(Path(real))
        check_feature_size(judge, shape, seen, real)
        return Kept(f"statistics {Path(real).name}", seen), _trained_on(config, judge, cache)
    own = real is None
    place = Path(real or getattr(config.data, "path", None) or "").expanduser()
    if shape[0] != 3 or shape[1] != shape[2]:
        raise InputError(
            f"real is '{place}', whose images are read as squares in colour, but the run makes {shape}: name statistics"
        )
    if not own and not place.is_dir():
        raise InputError(
            f"real is '{place}', which is no folder: name one of images, or statistics of them ({', '.join(SUFFIXES)})"
        )
    known = folders.splits(place) if place.is_dir() else []
    held_out = next((split for split in _HELD_OUT if split in known), "train")

    def side(split: str) -> Streamed:
        if own and isinstance(config.data, ImageFilesData):
            files = configuration.open_files(config.data, split)
        else:
            files = ImageFiles(place, image_size=shape[1], split=split)
        return Streamed(f"images {place.name}/{split}", files, str(place.resolve()), judge, cache, labelled=own)

    floor = side("train") if held_out != "train" and "train" in known else None
    return side(held_out), floor if floor or own else _trained_on(config, judge, cache, apart_from=place)


def _trained_on(config: RunConfig, judge: Judge, cache: Path, apart_from: Path | None = None) -> Streamed | None:
    """Return the training images of a run, None where it knows none, or none apart from those of a folder."""
    match config.data:
        case ImagesData() as data:
            train = configuration.load_split(data, "train")
            return Streamed("training images", _InMemory(train), data.path or data.name, judge, cache, labelled=False)
        case ImageFilesData(path=str(path)) as data:
            own, other = Path(path).resolve(), None if apart_from is None else apart_from.resolve()
            if not own.is_dir() or (other and (own.is_relative_to(other) or other.is_relative_to(own))):
                return None
            return Streamed("training images", configuration.open_files(data), str(own), judge, cache, labelled=False)
        case _:
            return None
