"""The real images that the samples of a run are compared with, and those that make the floor.

The reference is the test set, the images that the user names, or the run's own folder: a split that was not trained on if there is
one, otherwise all images. The floor is made of other images: of the training split beside the reference, or of the training images
of the run. It leaves out images that the extractor was trained on and, if images stay on disk, copies of images of the reference.
Without other images there is no floor.
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
from drifting._torch import stream_seed
from drifting.data import Decoder
from drifting.data.dataset import Images
from drifting.data.image_folder import ImageFiles, splits_of
from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.data.sources import shuffled_indices
from drifting.data.streamed import Rows
from drifting.errors import InputError
from drifting.evaluation.extractors import Extractor
from drifting.evaluation.figures import Floor, Pixels, Sides
from drifting.evaluation.statistics import (
    KEPT,
    SUFFIXES,
    Batch,
    ImageStatistics,
    by_chance,
    cached_statistics,
    check_feature_size,
    collect_statistics,
    digests,
    images_in_shares,
    read_statistics,
    unknown_to,
)

# Default number of samples for data in memory, and for data on disk.
IN_MEMORY, STREAMED = 10_000, 50_000

_SEED = stream_seed(0, "real images")

# Increased whenever images are decoded, cropped, resized or prepared for an extractor differently.
_EXTRACTION = 3
_POSITIONS = 2**62  # of rows of a cache that stand for real images; training does not use them

# Candidates for each image of a floor: some are copies of the reference, or a classifier was trained on them.
_CANDIDATES, _CANDIDATES_OF_A_CLASSIFIER = 2, 8
_HELD_OUT = ("test", "val")


def _no_floor(reason: str) -> Floor:
    """Return a missing floor, which warns with the reason."""

    def collect(batch_size: int, real: ImageStatistics) -> None:
        warnings.warn(f"the floor, the same figures of other real images, is left out: {reason}", stacklevel=2)

    return collect


class _NothingLeftError(Exception):
    """Fewer than two images remain when known ones are left out."""


@dataclass(kw_only=True)
class Streamed:
    """Images that are read when their statistics are collected; the statistics are kept.

    Attributes:
        name: name beside the figures.
        images: source of the images.
        order: indices of the images, in order.
        count: largest number of images.
        extractor: feature space.
        cache: folder of earlier statistics; None to collect them anew.
        labels: label of every image, if its classes are those of the run.
        keep: number of images whose features are kept.
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
    """Return a floor of images that need no further choice."""
    return lambda batch_size, real: collect(batch_size)


def _others(images: Streamed) -> Floor:
    """Return a floor of the images that are not in the reference and that the extractor was not trained on."""

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
    """Return the test set as reference, and as many training images as samples for the floor.

    Args:
        name: name of the test set.
        train: training images of the generator.
        test: other real images.
        extractor: feature space. Images that it was trained on make no floor.
        count: number of images on each side, at least 2; fewer if the training set is smaller.
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
    """Return an extractor for a floor, without the accuracy and the score, which are measured on the reference only."""
    return replace(extractor, classify=None, probabilities=None)


def streamed(
    data: Any, real: str | None, extractor: Extractor, *, decode: Decoder, seed: int, count: int, cache: Path, device: str
) -> Sides:
    """Return a reference and a floor of real images that stay on disk.

    Args:
        data: `data.ImageData` that the generator was trained on.
        real: folder of images, or file of statistics; None for images of the data that were not trained on, or for decoded
            latents of the data.
        extractor: feature space.
        decode: samples -> bytes.
        seed: seed of the latents.
        count: number of samples, and largest number of images in the floor.
        cache: folder for statistics.
        device: device that decodes latents.

    Raises:
        InputError: if there are no real images, or they differ from generated ones in shape.
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
    """Return two sets of real latents as images; each has half of them if there are not enough."""
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
    """Finds the reference and the floor in files."""

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
                f"real is '{place}', which is not a folder: name one of images, or statistics of them ({', '.join(SUFFIXES)})"
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
        """Return a floor in the shares of the reference if the classes of both are known, else of random images."""
        more = _CANDIDATES if self.extractor.trained_on is None else _CANDIDATES_OF_A_CLASSIFIER
        wanted = min(more * self.count, len(images))
        if labels is None or shares is None:
            order = shuffled_indices(len(images), 0, wanted, _SEED)
        else:
            order = images_in_shares(labels, shares, wanted)
        extractor = _of_features(self.extractor)
        return _others(Streamed(name=name, images=images, order=order, count=self.count, extractor=extractor, cache=self.cache))

    def _trained_on(self, shares: Tensor | None, apart_from: Path | None = None) -> Floor:
        """Return a floor of the training images of the run, unless they are in the folder of the reference."""
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
    """Return the labels of images with the class numbers of a run; None if the run does not know the name of a class."""
    if images.labels is None or images.class_names is None or not set(images.class_names) <= set(names or ()):
        return None
    numbers = {name: number for number, name in enumerate(names or ())}
    return torch.tensor([numbers[name] for name in images.class_names])[images.labels]
