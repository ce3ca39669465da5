"""Which real images the samples of a run are compared with, and which ones make the floor.

The reference is the test set, or what is named, or else the run's own folder: its images that were not trained on if there is a
split of them, else all. The floor is made of other images: of the training split beside the reference, or of the training images of
the run. None that the extractor was trained on is among them and, of those that stay on disk, no copy of an image of the reference;
where there are no others, there is no floor.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from drifting._progress import show_images
from drifting._seeds import stream_seed
from drifting.data import Decoder
from drifting.data.dataset import Images
from drifting.data.image_folder import ImageFiles, splits_of
from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.data.sources import shuffled_indices
from drifting.data.streamed import Rows
from drifting.errors import InputError
from drifting.evaluation.extractors import Extractor
from drifting.evaluation.images import Floor, Pixels, Sides
from drifting.evaluation.shares import by_chance, digests, images_in_shares, unknown_to
from drifting.evaluation.statistics import (
    KEPT,
    SUFFIXES,
    Batch,
    ImageStatistics,
    cached_statistics,
    check_feature_size,
    collect_statistics,
    read_statistics,
)

# Samples that are made of a run whose images are in memory, and of one whose images stay on disk.
IN_MEMORY, STREAMED = 10_000, 50_000

_SEED = stream_seed(0, "real images")

# Raised whenever images are decoded, cropped, resized or prepared for an extractor in another way than before.
_EXTRACTION = 3
_POSITIONS = 2**62  # of rows of a cache that stand for real images; training does not use them

# Images that may make a floor, for each that is wanted: some are copies of the reference, or a classifier was trained on them.
_CANDIDATES, _CANDIDATES_OF_A_CLASSIFIER = 2, 8
_HELD_OUT = ("test", "val")


def _no_floor(reason: str) -> Floor:
    """Return a floor that there is not, of which it warns."""

    def collect(batch_size: int, real: ImageStatistics) -> None:
        warnings.warn(f"the floor, the same figures of other real images, is left out: {reason}", stacklevel=2)

    return collect


class _NothingLeftError(Exception):
    """Fewer than two images are none of those to be left out."""


@dataclass(kw_only=True)
class Streamed:
    """Images that are read when their statistics are collected; the statistics are kept.

    Attributes:
        name: for the figures.
        images: where they come from.
        order: which images, in their order.
        count: largest number of images to look at.
        extractor: the feature space.
        cache: folder of earlier statistics; None to collect them anew.
        labels: class of every image, where they are those of the run.
        keep: features of how many are kept.
    """

    name: str
    images: Images
    order: Int[Tensor, " o"]
    count: int
    extractor: Extractor
    cache: Path | None
    labels: Int[Tensor, " s"] | None = None
    keep: int = KEPT
    _collected: ImageStatistics | None = field(default=None, init=False)

    def collect(self, batch_size: int, known: Int[Tensor, " k"] | None = None) -> ImageStatistics:
        """Return the statistics of the first images of the order, without copies of known images; they may be collected already.

        Raises:
            _NothingLeftError: if fewer than two are left.
        """
        if self._collected is None:
            self._collected = self._read_or_collect(batch_size, known)
        return self._collected

    def _read_or_collect(self, batch_size: int, known: Int[Tensor, " k"] | None) -> ImageStatistics:
        order, extractor = self.order[: self.count] if known is None else self.order, self.extractor
        batches = show_images(self._batches(order, batch_size, known), min(self.count, len(order)), what=self.name)
        compute = partial(collect_statistics, batches, extractor, keep=self.keep, remember=True)
        if self.cache is None:
            return compute()
        facts = (
            *(_EXTRACTION, extractor.name, extractor.classify is None, extractor.probabilities is None, self.keep, self.count),
            *(self.images.state(order), _digest(self.labels), _digest(None if known is None else known.unique())),
        )
        digest = hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:16]
        return cached_statistics(self.cache / f"{extractor.name}-{digest}.safetensors", digest, compute)

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


def _as_they_are(collect: Callable[[int], ImageStatistics]) -> Floor:
    """Return a floor of images that are chosen already."""
    return lambda batch_size, real: collect(batch_size)


def _others(images: Streamed) -> Floor:
    """Return a floor of those images that are none of the reference, and that the extractor was not trained on."""

    def collect(batch_size: int, real: ImageStatistics) -> ImageStatistics | None:
        if real.digests is None:
            return _no_floor("the statistics do not tell of which images they are, so they may be the same")(batch_size, real)
        trained_on = images.extractor.trained_on
        try:
            return images.collect(batch_size, real.digests if trained_on is None else torch.cat([real.digests, trained_on]))
        except _NothingLeftError:
            return _no_floor(f"all {images.name} are in the reference, or trained the extractor")(batch_size, real)

    return collect


def _digest(numbers: Int[Tensor, " n"] | None) -> str | None:
    return None if numbers is None else hashlib.sha256(numbers.contiguous().numpy().data).hexdigest()


def in_memory(name: str, train: ImageSet, test: ImageSet, extractor: Extractor, *, count: int = IN_MEMORY) -> Sides:
    """Return the test set as a reference, and as many training images as samples for its floor.

    Args:
        name: of the test set.
        train: what the generator was trained on.
        test: real images that it was not.
        extractor: the feature space. Images that it was trained on make no floor.
        count: images on each side, at least 2, as far as the training set reaches.
    """
    if count < 2:
        raise InputError(f"num_samples is {count}: ask for at least 2")
    for split, images in (("training", train), ("test", test)):
        if len(images) < 2:
            raise InputError(f"data has {len(images)} {split} image, too few to compare with: add some, at least 2")
    count, order = min(count, len(train)), torch.arange(len(test))
    candidates = unknown_to(extractor.trained_on, train.images)
    if train.labels is None or test.labels is None:
        labels, chosen = None, candidates[by_chance(len(candidates), count)]
    else:
        labels, chosen = test.labels, candidates[images_in_shares(train.labels[candidates], test.labels, count)]
    kept = max(count, len(test))
    files = partial(Streamed, cache=extractor.cache, keep=kept)
    reference = files(name=name, images=test, order=order, count=len(test), extractor=extractor, labels=labels)
    floor = _no_floor("no further real images have the classes of the reference")
    if len(chosen) >= 2:
        others = files(name="training images", images=train, order=chosen, count=len(chosen), extractor=_of_features(extractor))
        floor = _as_they_are(others.collect)
    pixels = Pixels(train, test, train.images[chosen])
    return Sides(name=name, reference=reference.collect, floor=floor, count=count, shares=labels, keep=kept, pixels=pixels)


def _of_features(extractor: Extractor) -> Extractor:
    """Return an extractor for a floor: real images have one accuracy and one score, those of the reference."""
    return replace(extractor, classify=None, probabilities=None)


def streamed(
    data: Any, real: str | None, extractor: Extractor, *, decode: Decoder, seed: int, count: int, cache: Path, device: str
) -> Sides:
    """Return real images that are looked at where they lie, and what makes their floor.

    Args:
        data: `data.ImageData` that the generator was trained on.
        real: folder of images, or file of statistics; None for the images of the data that were not trained on, or of latents
            for some of them, decoded.
        extractor: the feature space.
        decode: samples -> bytes.
        seed: by which latents are drawn.
        count: how many samples to make and how many images a floor has, as far as there are.
        cache: folder for statistics.
        device: where latents are decoded.

    Raises:
        InputError: if there are no real images, or they are not such as the generator makes.
    """
    if real is None and data.latent:
        if not extractor.name.startswith("pixels"):
            without = f"real is not given, and the latents of '{data.path}' hold no real images"
            raise InputError(
                f"{without}: pass --real FOLDER or a file of statistics, or look at decoded latents with --extractor pixels"
            )
        return _decoded(data.rows(seed), decode, extractor, count, device)
    return _Files(data, extractor, count, cache).find(real)


def _decoded(rows: Rows, decode: Decoder, extractor: Extractor, count: int, device: str) -> Sides:
    """Return two sets of real latents as an auto-encoder decodes them, half of them on each side where there are not enough."""
    each = min(count, len(rows) // 2)
    if rows.labels is None:
        order = shuffled_indices(len(rows), 0, len(rows), _SEED)
    else:
        order = images_in_shares(rows.labels, rows.labels, max(2 * each, 2))

    def collect(indices: Int[Tensor, " r"], batch_size: int) -> ImageStatistics:
        parts = indices.split(batch_size)
        batches = ((decode(to_signed(rows.take(part, _POSITIONS + part).to(device))), None) for part in parts)
        return collect_statistics(show_images(batches, len(indices), what=name), extractor)

    name, floor = "decoded latents", _no_floor(f"the latents are of {len(rows)} images, too few for two sets of them")
    if each >= 2:
        order, others = order[: 2 * each].split(each)
        floor = _as_they_are(partial(collect, others))
    shares = None if rows.labels is None else rows.labels[order]
    return Sides(name=name, reference=partial(collect, order), floor=floor, count=count, shares=shares)


@dataclass(frozen=True)
class _Files:
    """Finds both sides in files."""

    data: Any
    extractor: Extractor
    count: int
    cache: Path

    def find(self, real: str | None) -> Sides:
        """Return the reference and the floor; arguments and errors as in `streamed`."""
        shape = self.data.exported_shape()
        if real is not None and Path(real).suffix in SUFFIXES:
            statistics = read_statistics(Path(real))
            check_feature_size(self.extractor, shape, statistics, real)
            shares, _ = self.data.training_classes()
            name, floor = f"statistics {Path(real).name}", self._trained_on(shares)
            return Sides(name=name, reference=lambda batch_size: statistics, floor=floor, count=self.count, shares=shares)
        place = Path(real or self.data.path or "").expanduser()
        if shape[0] != 3 or shape[1] != shape[2]:
            raise InputError(
                f"real is '{place}', whose images are read as squares in color, but the run makes {shape}: name statistics"
            )
        if real is not None and not place.is_dir():
            raise InputError(
                f"real is '{place}', which is no folder: name one of images, or statistics of them ({', '.join(SUFFIXES)})"
            )
        opened = self.data.open if real is None else partial(ImageFiles, place, image_size=shape[1])
        return self._in_folder(place, lambda split: opened(split=split), own=real is None)

    def _in_folder(self, place: Path, opened: Callable[[str], ImageFiles], *, own: bool) -> Sides:
        known = splits_of(place)
        held_out = next((split for split in _HELD_OUT if split in known), "train")
        images = opened(held_out)
        training, names = self.data.training_classes()
        labels = _as_of_run(images, names)
        reference = Streamed(
            name=f"images {place.name}/{held_out}",
            images=images,
            order=shuffled_indices(len(images), 0, len(images), _SEED),
            count=len(images),
            extractor=self.extractor,
            cache=self.cache,
            labels=labels,
        )
        if held_out != "train" and "train" in known:
            others = opened("train")
            floor = self._floor(f"images {place.name}/train", others, _as_of_run(others, names), labels)
        elif own:
            floor = _no_floor(f"'{place}' has no further images: add a folder val/ beside train/")
        else:
            floor = self._trained_on(labels, apart_from=images.root)
        shares = training if labels is None else labels
        return Sides(name=reference.name, reference=reference.collect, floor=floor, count=self.count, shares=shares)

    def _floor(self, name: str, images: Images, labels: Tensor | None, shares: Tensor | None) -> Floor:
        """Return images in the shares of the reference, where classes of both are known, else by chance."""
        more = _CANDIDATES if self.extractor.trained_on is None else _CANDIDATES_OF_A_CLASSIFIER
        wanted = min(more * self.count, len(images))
        if labels is None or shares is None:
            order = shuffled_indices(len(images), 0, wanted, _SEED)
        else:
            order = images_in_shares(labels, shares, wanted)
        extractor = _of_features(self.extractor)
        return _others(Streamed(name=name, images=images, order=order, count=self.count, extractor=extractor, cache=self.cache))

    def _trained_on(self, shares: Tensor | None, apart_from: Path | None = None) -> Floor:
        """Return the training images of the run, where it has any that do not lie in the folder of the reference."""
        images = self.data.training_images()
        if images is None:
            gone = self.data.path is not None and not self.data.latent
            return _no_floor(
                f"the training images, '{self.data.path}', are not there" if gone else "the run has no other real images"
            )
        own, other = images.root, None if apart_from is None else apart_from.resolve()
        if own and other and (own.resolve().is_relative_to(other) or other.is_relative_to(own.resolve())):
            return _no_floor(f"the training images, '{own.resolve()}', are those of the reference")
        return self._floor("training images", images, images.labels if self.data.conditional else None, shares)


def _as_of_run(images: ImageFiles, names: tuple[str, ...] | None) -> Int[Tensor, " s"] | None:
    """Return the labels of images as a run numbers its classes; None where one has a name that the run does not know."""
    if images.labels is None or images.class_names is None or not set(images.class_names) <= set(names or ()):
        return None
    numbers = {name: number for number, name in enumerate(names or ())}
    return torch.tensor([numbers[name] for name in images.class_names])[images.labels]
