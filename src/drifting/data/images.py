"""Image data sets held in memory: from a folder in one of several layouts, or from the Hugging Face Hub.

Shapes: s samples, c channels, h height, w width.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from drifting._checks import nearest_name
from drifting.data.decode import decode
from drifting.data.readers.base import Reader, Split, split_name
from drifting.data.readers.find import find_reader
from drifting.data.readers.saved import Given
from drifting.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB_IDS = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
# Of labels without names of classes: more classes than anyone has images of.
_MOST_CLASSES = 10**6
_HELD_OUT = 10  # one image in so many


class LabelError(InputError):
    """Labels that are missing or cannot be used; the images themselves may be."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one shape, and their classes if they have any.

    Attributes:
        images: all pixels, 0 to 255.
        labels: 0 to num_classes - 1; None for one unlabelled population.
        class_names: a name for each label, where they are known.
        left_out: what is in their folder and is not used, in a few words each.
        doubts: sentences on what may not be as its owner means it.
    """

    images: UInt8[Tensor, "s c h w"]
    labels: Int[Tensor, " s"] | None
    class_names: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None where there are no labels."""
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for the shape, every pixel and every label."""
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
    labelled: bool | None = None,
) -> ImageSet:
    """Read, check and decode one split of an image data set.

    Where there is no split "test", the split "val" takes its place, by whatever name. Where there is neither, a fixed tenth of the
    split "train" does: of each class alike, and not in "train".

    Args:
        source: a folder or file (any layout of docs/data.md), a Hub id owner/name, a data set of the `datasets` library, or None to
            find the data set `name`: in the folder $DRIFTING_DATA/name, else on the Hub.
        name: one of HUB_IDS, or a folder in $DRIFTING_DATA; unused where `source` is given.
        split: "train", "test", or another one that the source has.
        image_size: pixels to a side, cropped to a centred square and resized; None to keep squares of one size.
        channels: 1 or 3 to convert; None to keep what is there.
        labelled: True to demand labels, False to leave them out, None to take them if they are there.

    Raises:
        InputError: if the source is missing, empty, damaged or of no known layout; if sizes differ and `image_size` is None.
        LabelError: if they are demanded and missing; if one is below 0 or beyond the class names, or a class has no images.
    """
    reader, path = _found(source, name)
    part = _read(reader, path, split, labelled)
    if labelled and part.labels is None:
        raise LabelError(f"data is '{path}', which has no labels: use one sub-folder per class, or train without labels")
    images = decode(part.images, image_size=image_size, channels=channels)
    labels, class_names = (None, None) if labelled is False or part.labels is None else (part.labels, part.class_names)
    return ImageSet(images, labels, class_names, part.left_out, part.doubts)


def stored_split(source: str | None, name: str | None, split: str, *, labelled: bool | None = None) -> Split:
    """Return a split without decoding its images; arguments and errors as in `load_images`."""
    return _read(*_found(source, name), split, labelled)


def _found(source: "str | os.PathLike[str] | Dataset | DatasetDict | None", name: str | None) -> tuple[Reader, Path]:
    """Return who reads the source, and its place, or its name where it is an object."""
    if source is None or isinstance(source, str | os.PathLike):
        return find_reader(_locate(None if source is None else os.fspath(source), name))
    reader = Given(source)
    return reader, reader.name


def _locate(source: str | None, name: str | None) -> Path:
    """Return the folder, or the Hub id as a path."""
    if source:
        return Path(source).expanduser()
    if source == "" or name is None:
        raise InputError("data is not given: pass --data FOLDER or a Hub id like ylecun/mnist")
    root = os.environ.get("DRIFTING_DATA")
    if root and (Path(root).expanduser() / name).is_dir():
        return Path(root).expanduser() / name
    if name not in HUB_IDS:
        known = ", ".join(HUB_IDS)
        raise InputError(
            f"dataset is '{name}': did you mean '{nearest_name(name, HUB_IDS)}'? There are {known}; or pass --data FOLDER"
        )
    return Path(HUB_IDS[name])


def _read(reader: Reader, path: Path, split: str, labelled: bool | None) -> Split:
    """Return a split, still encoded, its labels checked unless they are to be left out; "test" may be a tenth of "train"."""
    known = reader.splits(path)
    by_usual_name = {usual: name for name in reversed(known) if (usual := split_name(name))}
    stored = split if split in known else by_usual_name.get(split_name(split) or split, split)
    if split == "test" and stored not in known:
        stored = by_usual_name.get("val", "train")
    divided = split in ("train", "test") and not by_usual_name.keys() & {"test", "val"}
    if stored not in known:
        raise InputError(f"split is '{split}', but data '{path}' has {', '.join(known)}: pass one of those")
    part = reader.read(path, stored)
    if len(part.images) == 0:
        raise InputError(f"data is '{path}', whose split '{stored}' holds no images: add some")
    if labelled is not False:
        _check_labels(part, path, complete=stored == "train")
    if not divided:
        return part
    held_out = _held_out(len(part.images), part.labels)
    if split == "test" and not bool(held_out.any()):
        raise InputError(f"data is '{path}', whose {len(part.images)} images are too few to hold out a tenth: add a folder test/")
    return _select(part, held_out if split == "test" else ~held_out)


def _check_labels(part: Split, path: Path, *, complete: bool) -> None:
    """Raise LabelError unless labels are numbers of classes and, in a complete split, every class has images."""
    if part.labels is None:
        return
    names, lowest, highest = part.class_names, int(part.labels.min()), int(part.labels.max())
    if lowest < 0:
        raise LabelError(f"data is '{path}', which has the label {lowest}: number the classes 0 to k-1, or train without labels")
    if names and highest >= len(names):
        raise LabelError(f"data is '{path}', which has the label {highest} but {len(names)} class names: fix the labels")
    if not names and highest >= _MOST_CLASSES:
        raise LabelError(f"data is '{path}', which has the label {highest}: number the classes 0 to k-1, or train without labels")
    present = part.labels.unique().tolist()
    label = next((number for number, found in enumerate(present) if number != found), len(present))
    if complete and label < (len(names) if names else highest + 1):
        known_as = f" ('{names[label]}')" if names else ""
        raise LabelError(
            f"data is '{path}', where class {label}{known_as} has no images: add some, or number the other classes 0 to k-1"
        )


def _held_out(count: int, labels: Int[Tensor, " s"] | None) -> Bool[Tensor, " s"]:
    """Return which images are the fixed tenth, of each class alike; a class's only image is never among them.

    The same ones whether labels are then used or left out, so that no image is in one run's "train" and another's "test".
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    chosen = order[_HELD_OUT - 1 :: _HELD_OUT]
    if labels is not None:
        _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        chosen = chosen[counts[classes[chosen]] > 1]
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, chosen, True)


def _select(part: Split, mask: Bool[Tensor, " s"]) -> Split:
    """Return the images of a split where the mask is true."""
    if isinstance(part.images, Tensor):
        images = part.images[mask]
    else:
        images = [part.images[index] for index in torch.nonzero(mask)[:, 0].tolist()]
    return part._replace(images=images, labels=None if part.labels is None else part.labels[mask])
