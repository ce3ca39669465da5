"""Which real images the samples of a run are compared with where both are streamed, and which ones make the floor.

The reference is what is named, or else the run's own folder: its images that were not trained on if there is a split of them, else
all. The floor is made of other images: of the training split beside the reference, or of the training images of the run. No copy of
an image of the reference is among them, and none that the extractor was trained on; where there are no others, there is no floor.
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from drifting._progress import show_images
from drifting._seeds import stream_seed
from drifting.config import RunConfig
from drifting.data import Decoder, ImageFilesData, LatentsData
from drifting.data.image_folder import ImageFiles, splits_of
from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.data.shuffle import shuffled_indices
from drifting.data.streamed import Rows
from drifting.errors import InputError
from drifting.evaluation import Extractor, see
from drifting.evaluation.images import KEPT, NO_FLOOR, Batch, Seen, check_feature_size
from drifting.evaluation.references import digests, images_in_shares
from drifting.evaluation.statistics import SUFFIXES, cached_seen, read_statistics

_SEED = stream_seed(0, "real images")

# Raised whenever images are decoded, cropped, resized or prepared for an extractor in another way than before.
_EXTRACTION = 2
_POSITIONS = 2**62  # of rows of a cache that stand for real images; training does not use them

# Images that may make a floor, for each that is wanted: some are copies of the reference, or a classifier was trained on them.
_CANDIDATES, _CANDIDATES_OF_A_CLASSIFIER = 2, 8
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

    def state(self, indices: Int[Tensor, " b"]) -> str:
        """Return what stands for the contents of some of them."""
        ...


@runtime_checkable
class Reference(Protocol):
    """Real images that samples are compared with."""

    @property
    def name(self) -> str:
        """What is shown beside the figures."""
        ...

    @property
    def shares(self) -> Int[Tensor, " r"] | None:
        """Classes of the run, in whose shares samples are made; None where they are not known."""
        ...

    def see(self, batch_size: int) -> Seen:
        """Look at them, so many at a time."""
        ...


@runtime_checkable
class Floor(Protocol):
    """Other real images."""

    def see(self, batch_size: int, real: Seen) -> Seen | None:
        """Look at those that are none of a reference; None, with a warning, where there are none."""
        ...


@dataclass
class Kept:
    """Statistics of a file."""

    name: str
    seen: Seen
    shares: Int[Tensor, " r"] | None

    def see(self, batch_size: int) -> Seen:
        """Return them."""
        return self.seen


@dataclass
class NoFloor:
    """Why there is no floor."""

    reason: str

    def see(self, batch_size: int, real: Seen) -> None:
        """Warn of it."""
        warnings.warn(f"{NO_FLOOR}: {self.reason}", stacklevel=2)


class _NothingLeftError(Exception):
    """Fewer than two images are none of those to be left out."""


@dataclass(kw_only=True)
class Streamed:
    """Images that are read as they are looked at; what was seen is kept.

    Attributes:
        name: for the figures.
        images: where they come from.
        origin: their place, which stands for them together with the state of the files.
        order: which images, in their order.
        count: how many of those to look at, at most.
        extractor: the feature space.
        cache: folder of what was seen before.
        labels: class of every image, where they are those of the run.
        shares: classes in whose shares samples are to be compared with them.
    """

    name: str
    images: Images
    origin: str
    order: Int[Tensor, " o"]
    count: int
    extractor: Extractor
    cache: Path
    labels: Int[Tensor, " s"] | None = None
    shares: Int[Tensor, " r"] | None = None

    def see(self, batch_size: int, known: Int[Tensor, " k"] | None = None) -> Seen:
        """Look at the first of the order, copies of known images left out, or find what was seen before.

        Raises:
            _NothingLeftError: if fewer than two are left.
        """
        order, extractor = self.order[: self.count] if known is None else self.order, self.extractor
        facts = (
            *(_EXTRACTION, extractor.name, extractor.classify is None, extractor.probabilities is None, KEPT, self.count),
            *(self.origin, self.images.state(order), _digest(self.labels), _digest(None if known is None else known.unique())),
        )
        digest = hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:16]
        batches = show_images(self._batches(order, batch_size, known), min(self.count, len(order)), what=self.name)
        path = self.cache / f"{self.extractor.name}-{digest}.safetensors"
        return cached_seen(path, digest, lambda: see(batches, self.extractor, remember=True))

    def _batches(self, order: Int[Tensor, " o"], batch_size: int, known: Int[Tensor, " k"] | None) -> Iterator[Batch]:
        left = self.count
        for part in order.split(batch_size):
            images, labels = self.images.read(part), None if self.labels is None else self.labels[part]
            if known is not None:
                fresh = (~torch.isin(digests(images), known)).nonzero()[:left, 0]
                images, labels = images[fresh], None if labels is None else labels[fresh]
            left -= len(images)
            if len(images):
                yield images, labels
            del images
            if left == 0:
                return
        if known is not None and self.count - left < 2:
            raise _NothingLeftError


@dataclass
class OtherImages:
    """Images that make a floor."""

    images: Streamed

    def see(self, batch_size: int, real: Seen) -> Seen | None:
        """Look at those that are none of the reference, and that the extractor was not trained on."""
        if real.digests is None:
            return NoFloor("the statistics do not tell of which images they are, so they may be the same").see(batch_size, real)
        trained_on = self.images.extractor.trained_on
        try:
            return self.images.see(batch_size, real.digests if trained_on is None else torch.cat([real.digests, trained_on]))
        except _NothingLeftError:
            return NoFloor(f"all {self.images.name} are in the reference, or trained the extractor").see(batch_size, real)


@dataclass
class DecodedLatents:
    """Some real latents as an auto-encoder decodes them, which are no real images."""

    rows: Rows
    indices: Int[Tensor, " r"]
    decode: Decoder
    extractor: Extractor
    device: str
    name: str = "decoded latents"

    @property
    def shares(self) -> Int[Tensor, " r"] | None:
        """Class of each."""
        return None if self.rows.labels is None else self.rows.labels[self.indices]

    def see(self, batch_size: int, real: Seen | None = None) -> Seen:
        """Look at them."""
        return see(show_images(self._batches(batch_size), len(self.indices), what=self.name), self.extractor)

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        for part in self.indices.split(batch_size):
            yield self.decode(to_signed(self.rows.take(part, _POSITIONS + part).to(self.device))), None


class _InMemory:
    """Images in memory, read as those of files are."""

    def __init__(self, images: ImageSet) -> None:
        self._images, self.labels, self._fingerprint = images.images, images.labels, images.fingerprint

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        return self._images[indices]

    def state(self, indices: Int[Tensor, " b"]) -> str:
        return f"{self._fingerprint()} {_digest(indices)}"


def _digest(numbers: Int[Tensor, " n"] | None) -> str | None:
    return None if numbers is None else hashlib.sha256(numbers.contiguous().numpy().data).hexdigest()


def real_images(
    config: RunConfig, real: str | None, extractor: Extractor, decode: Decoder, *, count: int, cache: Path
) -> tuple[Reference, Floor]:
    """Return the reference of an evaluation, and what makes its floor.

    Args:
        config: of a run of images.
        real: folder of images, or file of statistics; None for the run's own.
        extractor: the feature space.
        decode: samples -> bytes.
        count: how many images a floor has, as far as there are.
        cache: folder for what was seen.

    Raises:
        InputError: if there are no real images, or they are not such as the run makes.
    """
    if real is None and config.data.latent:
        return _decoded_latents(config, cast(LatentsData, config.data), extractor, decode, count)
    return _Sides(config, extractor, count, cache).find(real)


def _decoded_latents(
    config: RunConfig, data: LatentsData, extractor: Extractor, decode: Decoder, count: int
) -> tuple[Reference, Floor]:
    if not extractor.name.startswith("pixels"):
        without = f"real is not given, and the latents of '{data.path}' hold no real images"
        raise InputError(
            f"{without}: pass --real FOLDER or a file of statistics, or look at decoded latents with --extractor pixels"
        )
    rows = data.rows(config.seed)
    # Half of them on each side, where there are not enough for both.
    each = min(count, len(rows) // 2)
    if rows.labels is None:
        order = shuffled_indices(len(rows), 0, len(rows), _SEED)
    else:
        order = images_in_shares(rows.labels, rows.labels, max(2 * each, 2))
    if each < 2:
        few = f"the latents are of {len(rows)} images, too few for two sets of them"
        return DecodedLatents(rows, order, decode, extractor, config.device), NoFloor(few)
    parts = (DecodedLatents(rows, part, decode, extractor, config.device) for part in (order[:each], order[each : 2 * each]))
    reference, floor = parts
    return reference, floor


@dataclass(frozen=True)
class _Sides:
    """Finds both sides in files."""

    config: RunConfig
    extractor: Extractor
    count: int
    cache: Path

    def find(self, real: str | None) -> tuple[Reference, Floor]:
        """Return the reference and the floor; arguments and errors as in `real_images`."""
        shape, data = self.config.data.exported_shape(), self.config.data
        if real is not None and Path(real).suffix in SUFFIXES:
            seen = read_statistics(Path(real))
            check_feature_size(self.extractor, shape, seen, real)
            shares, _ = self._classes()
            return Kept(f"statistics {Path(real).name}", seen, shares), self._trained_on(shares)
        place = Path(real or getattr(data, "path", None) or "").expanduser()
        if shape[0] != 3 or shape[1] != shape[2]:
            raise InputError(
                f"real is '{place}', whose images are read as squares in color, but the run makes {shape}: name statistics"
            )
        if real is not None and not place.is_dir():
            raise InputError(
                f"real is '{place}', which is no folder: name one of images, or statistics of them ({', '.join(SUFFIXES)})"
            )
        return self._in_folder(place, shape[1], own=real is None)

    def _in_folder(self, place: Path, image_size: int, *, own: bool) -> tuple[Reference, Floor]:
        data, known = self.config.data, splits_of(place)
        held_out = next((split for split in _HELD_OUT if split in known), "train")

        def files(split: str) -> ImageFiles:
            if own:
                return cast(ImageFilesData, data).open(split)
            return ImageFiles(place, image_size=image_size, split=split)

        images = files(held_out)
        training, names = self._classes()
        labels = _as_of_run(images, names)
        reference = Streamed(
            name=f"images {place.name}/{held_out}",
            images=images,
            origin=str(place.resolve()),
            order=shuffled_indices(len(images), 0, len(images), _SEED),
            count=len(images),
            extractor=self.extractor,
            cache=self.cache,
            labels=labels,
            shares=training if labels is None else labels,
        )
        if held_out != "train" and "train" in known:
            others = files("train")
            return reference, self._floor(f"images {place.name}/train", others, _as_of_run(others, names), labels, reference.origin)
        if own:
            return reference, NoFloor(f"'{place}' has no further images: add a folder val/ beside train/")
        return reference, self._trained_on(labels, apart_from=images.root)

    def _floor(self, name: str, images: Images, labels: Tensor | None, shares: Tensor | None, origin: str) -> Floor:
        """Return images in the shares of the reference, where classes of both are known, else by chance."""
        more = _CANDIDATES if self.extractor.trained_on is None else _CANDIDATES_OF_A_CLASSIFIER
        wanted = min(more * self.count, len(images))
        if labels is None or shares is None:
            order = shuffled_indices(len(images), 0, wanted, _SEED)
        else:
            order = images_in_shares(labels, shares, wanted)
        files = partial(Streamed, extractor=self.extractor, cache=self.cache, origin=origin)
        return OtherImages(files(name=name, images=images, order=order, count=self.count, labels=labels))

    def _trained_on(self, shares: Tensor | None, apart_from: Path | None = None) -> Floor:
        """Return the training images of the run, where it has any that do not lie in the folder of the reference."""
        name = "training images"
        data: Any = self.config.data
        if data.kind == "images":
            train = data.load("train")
            return self._floor(name, _InMemory(train), train.labels, shares, data.path or data.name)
        if data.latent or data.path is None:
            return NoFloor("the run has no other real images")
        if not Path(data.path).is_dir():
            return NoFloor(f"the training images, '{data.path}', are not there")
        files = data.open()
        own, other = files.root.resolve(), None if apart_from is None else apart_from.resolve()
        if other and (own.is_relative_to(other) or other.is_relative_to(own)):
            return NoFloor(f"the training images, '{own}', are those of the reference")
        return self._floor(name, files, files.labels if data.conditional else None, shares, str(own))

    def _classes(self) -> tuple[Tensor | None, tuple[str, ...] | None]:
        """Return the class of every training image and the names of the classes; None where there are none, or no data."""
        data = self.config.data
        counts, names = data.counts, data.class_names
        if not data.conditional:
            return None, None
        if counts and names:
            return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), names
        try:
            return data.labels()
        except InputError as error:
            warnings.warn(f"samples are of all classes equally often, for those of the data are not known ({error})", stacklevel=2)
        return None, names


def _as_of_run(images: ImageFiles, names: tuple[str, ...] | None) -> Int[Tensor, " s"] | None:
    """Return the labels of images as a run numbers its classes; None where one has a name that the run does not know."""
    if images.labels is None or images.class_names is None or not set(images.class_names) <= set(names or ()):
        return None
    numbers = {name: number for number, name in enumerate(names or ())}
    return torch.tensor([numbers[name] for name in images.class_names])[images.labels]
