"""Images held in memory: of a folder in one of several layouts, of the Hugging Face Hub, or the digits of scikit-learn.

Shapes: s samples, c channels, h height, w width.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from drifting.data.dataset import (
    BRING_BACK,
    NEIGHBORS,
    ImageData,
    Source,
    as_notes,
    counts_of,
    describe_classes,
    describe_images,
    found,
    read_once,
)
from drifting.data.pixels import decode, to_bytes, to_signed
from drifting.data.readers.find import LabelError, read_split
from drifting.data.sources import BankSource, InMemorySource
from drifting.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one shape, and their classes if there are any.

    Attributes:
        images: pixels, 0 to 255.
        labels: 0 to num_classes - 1; None for one unlabeled population.
        class_names: name of each label, if known.
        left_out: unused content of the folder, in a few words each.
        doubts: sentences about possible problems.
        root: None, because the images are not files of a folder.
    """

    images: UInt8[Tensor, "s c h w"]
    labels: Int[Tensor, " s"] | None
    class_names: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    root: None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def read(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """Return some of the images."""
        return self.images[indices]

    def state(self, indices: Int[Tensor, " b"]) -> str:
        """Return hexadecimal digits that stand for some of the images, in their order."""
        return f"{self.fingerprint()} {hashlib.sha256(indices.contiguous().numpy().data).hexdigest()[:16]}"

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None without labels."""
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """Return a fingerprint of the shape, every pixel and every label, 16 hexadecimal digits."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(self.labels.long().contiguous().numpy().data)
        return digest.hexdigest()[:16]


def load_images(
    source: "str | os.PathLike[str] | Dataset | DatasetDict | None",
    *,
    name: str | None = None,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    labeled: bool | None = None,
) -> ImageSet:
    """Read, check and decode one split of an image data set.

    If there is no split "test", it is the split "val" (under any of its usual names). If there is neither, it is a fixed tenth of
    each class of the split "train", which is then left out of "train".

    Args:
        source: a folder or file in any layout of docs/data.md, a Hub id owner/name, a data set of the `datasets` library, or None
            to find the data set `name` in the folder $DRIFTING_DATA/name or else on the Hub.
        name: one of HUB_IDS, or a folder in $DRIFTING_DATA; ignored if `source` is given.
        split: "train", "test", or another split of the source.
        image_size: side in pixels after a center crop to a square and resizing; None to keep squares of one size.
        channels: 1 or 3 to convert the images; None to keep their channels.
        labeled: True to require labels, False to ignore them, None to use them if there are any.

    Raises:
        InputError: if the source is missing, empty, damaged or in an unknown layout; if sizes differ and `image_size` is None.
        LabelError: if labels are required but missing; if a label is negative or has no class name, or a class has no images.
    """
    part, path = read_split(source, name, split, labeled=labeled)
    if labeled and part.labels is None:
        raise LabelError(f"data is '{path}', which has no labels: use one sub-folder per class, or train without labels")
    images = decode(part.images, image_size=image_size, channels=channels)
    labels, class_names = (None, None) if labeled is False or part.labels is None else (part.labels, part.class_names)
    return ImageSet(images, labels, class_names, part.left_out, part.doubts)


@dataclass(frozen=True, kw_only=True)
class ImagesData(ImageData):
    """Images of a folder or of the Hub, held in memory; see `load_images`.

    Attributes:
        name: name of the data set, which is looked for if there is no `path`.
        path: folder or Hub id; None to look for `name`.
        image_size: side in pixels after cropping and resizing; None to keep the size.
        channels: 1 or 3 to convert the images; None to keep their channels.
        color: whether to refuse images that are not red, green and blue.
        conditional: whether each class is a population of its own; otherwise there is one for all images.
        image_shape: channels, height and width; found when the images are first read and saved with the run.
        num_classes: number of classes, found in the same way; None without labels or if they are not used.
        class_names: name of each label, found in the same way, if known.
        counts: number of training images of each class, or of all images without classes; found in the same way.
        fingerprint: fingerprint of all training images, found in the same way. Whenever the images are read again, this, the
            classes and the counts are compared with them; runs of earlier versions have none of the three.
    """

    name: str
    path: str | None = None
    image_size: int | None = None
    channels: int | None = None
    color: bool = False
    conditional: bool = True
    image_shape: tuple[int, int, int] | None = found()
    num_classes: int | None = found()
    class_names: tuple[str, ...] | None = found()
    counts: tuple[int, ...] | None = found()
    fingerprint: str | None = found()

    loads_images: ClassVar[bool] = True
    supports_bank: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """Name of the data in pictures."""
        return self.name

    @property
    def _origin(self) -> str:
        return self.path or self.name

    def find(self, *, labeled: bool = False) -> "ImagesData":
        """Return the data with their location, shape and classes."""
        if self.image_shape is not None:
            return self
        path = str(Path(self.path).resolve()) if self.path and Path(self.path).exists() else self.path
        data = replace(self, path=path)
        found = data.load("train", labeled=labeled)
        if self.color and found.image_shape[0] != 3:
            gray = f"data is '{data._origin}', whose images have {found.image_shape[0]} channel, not red, green and blue"
            raise InputError(f"{gray}: pass color images, or train the preset images on these")
        return replace(data, conditional=found.labels is not None, **_facts(found))

    def load(self, split: str, *, labeled: bool = False) -> ImageSet:
        """Return one split, which is read once, or raise InputError if the images have changed since the run began.

        Args:
            split: "train" or "test".
            labeled: whether to read usable labels even if the data are not conditional.
        """
        if labeled:
            try:
                return self._labeled(True).load(split)
            except LabelError:
                return self._labeled(False).load(split)
        images = _load_split(self.path, self.name, split, (self.image_size, self.channels, self.conditional))
        if self.image_shape is not None:
            _check_same(self, images, split)
        return images

    def training_images(self) -> ImageSet:
        """Return the images of the split "train"."""
        return self.load("train")

    def _labeled(self, conditional: bool) -> "ImagesData":
        """Return the data with another `conditional`; facts found with the other value are dropped, not compared."""
        return self if self.conditional == conditional else replace(self, conditional=conditional, image_shape=None)

    def check(self) -> None:
        """Raise InputError if the images have changed since the run began."""
        self.load("train")

    def labels(self) -> tuple[Int[Tensor, " s"] | None, tuple[str, ...] | None]:
        """Return the class of every training image, and the names of the classes."""
        train = self.load("train")
        return train.labels, train.class_names

    def classes_to_learn(self) -> int | None:
        """Return the number of classes, or raise LabelError if there are no labels."""
        return self._labeled(True).load("train").num_classes

    def source(self, seed: int, bank: Any = None, *, device: str = "cpu", indexed: bool = False, **options: Any) -> Source:
        """Return the training images; see `Data.source`."""
        images = self.load("train")
        samples, prepare, shape, dtype = images.images, to_signed, images.image_shape, torch.float32
        if indexed:
            samples, prepare, shape, dtype = torch.arange(len(samples)), None, (), torch.long
        if bank is None:
            return InMemorySource(samples, images.labels, prepare)
        memory = bank.build(images.num_classes, shape, dtype, device)
        return BankSource(samples, images.labels, memory, push_per_step=bank.push_per_step, seed=seed, prepare=prepare)

    def depict(self, drawing: Any) -> list[Path]:
        """Draw images, and the nearest of the training images."""
        return drawing.images(self.load("train").images)

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        """Compare images with the test set."""
        return evaluation.images_in_memory(Path(self._origin).name, self.load)

    def report(self) -> list[str]:
        """Return a description of the training and test images, see `Data.report`."""
        train = self.load("train")
        classes, doubts = describe_classes(train.labels, train.class_names, len(train.images))
        count = 0
        try:
            test, _ = read_split(self.path, self.name, "test", labeled=None if self.conditional else False)
            count = len(test.images)
            if self.conditional and test.labels is None:
                doubts.append(
                    "the test images have no classes, and figures by class cannot be measured: sort them as the others are"
                )
            if 0 < count < NEIGHBORS:
                few = f"{count} test image{'s are' if count > 1 else ' is'} too few for precision, recall, density and coverage"
                doubts.append(f"{few}, which need {NEIGHBORS}: add a folder test/ with more to evaluate on")
        except InputError as error:
            doubts.append(f"no test images: {error}")
        line = describe_images(len(train.images), count, train.image_shape, classes, train.left_out)
        return [line, *as_notes([*train.doubts, *doubts])]


@read_once(4)
def _load_split(path: str | None, name: str, split: str, options: tuple) -> ImageSet:
    image_size, channels, labeled = options
    return load_images(path, name=name, split=split, image_size=image_size, channels=channels, labeled=labeled)


# The fingerprint of a large set takes a second.
@read_once(2)
def _facts(images: ImageSet) -> dict[str, Any]:
    """Return the fields of `ImagesData` that are found in the split "train"."""
    return {
        "image_shape": images.image_shape,
        "num_classes": images.num_classes,
        "class_names": images.class_names,
        "counts": counts_of(images.labels, images.num_classes, len(images.images)),
        "fingerprint": images.fingerprint(),
    }


def _check_same(data: ImagesData, images: ImageSet, split: str) -> None:
    """Raise InputError with the difference if images in memory have changed since the run began.

    For runs of earlier versions, which saved no fingerprint, only the classes are compared.
    """
    found = _facts(images) if split == "train" else {"num_classes": images.num_classes, "class_names": images.class_names}
    data.check_classes(found)
    if split == "train" and data.fingerprint not in (None, found["fingerprint"]):
        what = "whose images are not those that the run began with, though they are as many"
        if found["image_shape"] != data.image_shape:
            shapes = (" x ".join(map(str, shape)) for shape in (found["image_shape"], data.sample_shape))
            what = "whose images are {} where the run began with {}".format(*shapes)
        raise InputError(f"data is '{data.path or data.name}', {what}: {BRING_BACK}")


class LabeledSplit(NamedTuple):
    """A fixed, stratified split of a labeled data set. Images are [s, channels, height, width] in [-1, 1]."""

    train: Float[Tensor, "s c h w"]
    train_labels: Int[Tensor, " s"]
    held_out: Float[Tensor, "t c h w"]
    held_out_labels: Int[Tensor, " t"]


def load_digits() -> LabeledSplit:
    """Return the 1797 digits of 8 x 8 pixels. The same fifth of each class is always held out.

    Source: scikit-learn's `load_digits`, the test part of "Optical Recognition of Handwritten Digits" (UCI).
    """
    from sklearn.datasets import load_digits as embedded_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = embedded_digits(return_X_y=True)
    images = (np.asarray(pixels) / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, np.asarray(labels), test_size=0.2, stratify=labels, random_state=0)
    train, held_out, train_labels, held_out_labels = map(torch.from_numpy, parts)
    return LabeledSplit(train, train_labels, held_out, held_out_labels)


@dataclass(frozen=True, kw_only=True)
class DigitsData(ImageData):
    """Handwritten digits of 8 x 8 pixels, included in scikit-learn."""

    num_classes: ClassVar[int | None] = 10  # pyright: ignore[reportIncompatibleVariableOverride] - always, and no setting
    conditional: ClassVar[bool] = True  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return (1, 8, 8)

    @property
    def title(self) -> str:
        """Name of the data in pictures."""
        return "digits"

    def source(self, seed: int, bank: Any = None, **options: Any) -> InMemorySource:
        """Return the training images."""
        split = load_digits()
        return InMemorySource(split.train, split.train_labels)

    def depict(self, drawing: Any) -> list[Path]:
        """Draw images, and the nearest of the training images."""
        return drawing.images(to_bytes(load_digits().train))

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        """Measure digits with classifiers."""
        return evaluation.digits(load_digits())
