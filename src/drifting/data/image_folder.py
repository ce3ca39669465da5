"""A folder of more images than memory holds: listed once, decoded as they are asked for.

Shapes: s images, b of them at once, pixels h = w to a side.
"""

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from drifting._checks import check_memory
from drifting.data.dataset import found, read_once
from drifting.data.decode import decode, decoded_bytes
from drifting.data.facts import as_notes, check_classes, counts_of, describe_classes, describe_images
from drifting.data.readers import folder, listings
from drifting.data.readers.base import EncodedImage, split_name
from drifting.data.streamed import StreamedData, mirrored, row_streams
from drifting.errors import InputError


class ImageFiles:
    """Images of one split of a folder, in color, cropped to a centered square and resized.

    Args:
        path: a folder with a sub-folder for each class, or with train/, val/ or test/ above those; see `readers.folder`.
        image_size: pixels to a side.
        split: "train", which is everything where there are no folders of splits; or another that is there.

    Attributes:
        path: of the folder.
        image_size: pixels to a side.
        split: which one.
        splits: all that are there.
        labels: the class of every image; None where no sub-folders tell them.
        class_names: of each label, in the order of the numbers in them; None likewise.
        left_out: what is there and is not used, in a few words each.
        doubts: sentences on what may not be as its owner means it.

    Raises:
        InputError: if the folder or the split is not there, or a class is empty. Files are looked at when they are read.
    """

    def __init__(self, path: str | Path, *, image_size: int, split: str = "train") -> None:
        self.path, self.image_size, self.split = Path(path).expanduser(), image_size, split_name(split) or split
        if image_size < 1:
            raise InputError(f"image_size is {image_size}: pass 1 or more")
        check_memory(
            decoded_bytes(1, image_size, 3), f"image_size is {image_size}, at which one image", "pass a smaller --image-size"
        )
        _check_folder(self.path)
        reader = _reader_of(self.path)
        self.splits = tuple(reader.splits(self.path))
        if self.split not in self.splits:
            raise InputError(f"split is '{split}', but data '{path}' has {', '.join(self.splits)}: pass one of those")
        self._listing = reader.listed(self.path, self.split)
        self.labels: Int[Tensor, " s"] | None = self._listing.labels
        self.class_names = self._listing.class_names
        self.left_out, self.doubts = self._listing.left_out, self._listing.doubts
        self._check_classes()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._listing.names)

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None where there are no labels."""
        return None if self.class_names is None else len(self.class_names)

    def read(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Return images, decoded by several threads; raises InputError naming the file if one is damaged."""
        paths = [self._listing.path(index) for index in indices.tolist()]
        return decode([EncodedImage(path, str(path)) for path in paths], image_size=self.image_size, channels=3)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for the names and sizes of all files, in their order, and for their classes.

        What is in the images is not looked at, nor when they were written: a copy of the folder has the same.
        """
        return _digest(*self._names, *map(str, self._sizes))

    def names_fingerprint(self) -> str:
        """Return the same without the sizes, as `fingerprint` did in earlier versions."""
        return _digest(*self._names)

    def sizes_fingerprint(self, rows: range) -> str:
        """Return 16 hexadecimal digits that stand for the sizes of some files, in their order."""
        return _digest(*map(str, self._sizes[rows.start : rows.stop]))

    @functools.cached_property
    def _sizes(self) -> list[int]:
        return [_written(self._listing.path(index))[0] for index in range(len(self))]

    @property
    def _names(self) -> list[str]:
        facts = [self.split, *self._listing.names]
        if self._listing.labels_from is not None and self.labels is not None:
            facts += [*(self.class_names or ()), *map(str, self.labels.tolist())]
        return facts

    @property
    def root(self) -> Path:
        """The folder that holds the images of the split."""
        return self._listing.root

    def state(self, indices: Int[Tensor, " b"]) -> str:
        """Return 16 hexadecimal digits that stand for the contents of some images, in their order, and for how they are read.

        The contents are known by place, names, sizes and times of change: another file in the place of one has others.
        """
        digest = hashlib.sha256(f"{self.image_size} pixels, 3 channels, center crop, bicubic".encode())
        digest.update(os.fsencode(self._listing.root.resolve()))
        for index in indices.tolist():
            facts = _written(self._listing.path(index))
            digest.update(f"{self._listing.names[index]} {facts}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def _check_classes(self) -> None:
        if len(self) == 0:
            raise InputError(f"data is '{self.path}', whose split '{self.split}' holds no images: add some, or pass another folder")
        if self.labels is None or self.class_names is None or self.split != "train":
            return
        counts = self.labels.bincount(minlength=len(self.class_names))
        if int(counts.min()) == 0:
            empty = self.class_names[int(counts.argmin())]
            raise InputError(f"data is '{self.path}', where class '{empty}' has no images: add some, or remove its folder")


def _digest(*facts: str) -> str:
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()[:16]


def _written(path: Path) -> tuple[int, int]:
    """Return the size of a file and when it was last written; -1 for one that is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def splits_of(path: Path) -> tuple[str, ...]:
    """Return the splits of a folder of image files; none where there is no folder."""
    return tuple(_reader_of(path).splits(path)) if path.is_dir() else ()


def _reader_of(path: Path) -> ModuleType:
    return listings if listings.matches(path) else folder


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise InputError(f"data is '{path}', which does not exist: pass a folder of images")
    if not path.is_dir():
        raise InputError(
            f"data is '{path}', which is no folder: pass a folder of image files, an unpacked one if this is an archive"
        )


class ImageRows:
    """Image files as uint8 images.

    Args:
        files: where they lie.
        labeled: whether their classes are used.
        flip: mirror every other image, by chance.
        seed: of the chance.
    """

    dtype = torch.uint8

    def __init__(self, files: ImageFiles, *, labeled: bool, flip: bool, seed: int) -> None:
        self.shape, self.labels = (3, files.image_size, files.image_size), files.labels if labeled else None
        self._files, self._flip, self._seed = files, flip, seed

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    def take(self, indices: Int[Tensor, " b"], positions: Int[Tensor, " b"]) -> Shaped[Tensor, "b *sample"]:
        """Return images, each mirrored or not as its position has it."""
        images = self._files.read(indices)
        flipped = mirrored(row_streams(self._seed, positions), self._flip)
        return torch.where(flipped[:, None, None, None] == 1, images.flip(-1), images)


# Listing a million files takes seconds.
_list_files = read_once(2)(ImageFiles)


@dataclass(frozen=True, kw_only=True)
class ImageFilesData(StreamedData):
    """Images of a folder that are too many for memory: decoded, cropped and resized as they are drawn.

    Attributes:
        path: folder with one sub-folder for each class, or with `train` and `val` above those; None where it is not known yet.
        image_size: pixels to a side after cropping and resizing.
        conditional: one population for each class, or one for all.
        flip: mirror every other image, by chance.
        image_shape: channels, height and width; found when the folder is first listed and kept with the run.
        num_classes: found likewise; None where labels are not used.
        class_names, counts: names of the classes and how many images each has; found likewise.
        files: stands for the names of the files; found likewise, and checked whenever the folder is listed again.
    """

    path: str | None = None
    image_size: int = 256
    conditional: bool = True
    flip: bool = True
    image_shape: tuple[int, int, int] | None = found()
    num_classes: int | None = found()
    class_names: tuple[str, ...] | None = found()
    counts: tuple[int, ...] | None = found()
    files: str | None = found()

    _place: ClassVar[str] = "a folder of images"

    def find(self, *, labeled: bool = False) -> "ImageFilesData":
        """Return the data with place, shape, classes and what stands for the files."""
        del labeled
        if self.files is not None:
            return self
        data = replace(self, path=self._folder())
        files = data.open()
        return replace(data, **data._facts(files, data._classes(files.num_classes)))

    def open(self, split: str = "train") -> ImageFiles:
        """Return the images, listed once in a process; raises InputError if they are no longer those of the run."""
        files = _list_files(self.path or "", image_size=self.image_size, split=split)
        # Runs of earlier versions know the names alone.
        if split == "train" and self.files not in (None, files.fingerprint(), files.names_fingerprint()):
            check_classes(self, self._facts(files, files.num_classes if self.conditional else None), str(self.path))
            others = f"whose files are not those that the run began with ({files.fingerprint()}, not {self.files})"
            raise InputError(f"data is '{self.path}', {others}: bring them back, or train anew")
        return files

    def _facts(self, files: ImageFiles, num_classes: int | None) -> dict[str, Any]:
        labels = None if num_classes is None else files.labels
        return {
            "image_shape": (3, self.image_size, self.image_size),
            "num_classes": num_classes,
            "class_names": None if num_classes is None else files.class_names,
            "counts": counts_of(labels, num_classes, len(files)),
            "files": files.fingerprint(),
        }

    def check(self) -> None:
        """Raise InputError if the files are no longer those that a run began with."""
        self.open()

    def training_images(self) -> ImageFiles | None:
        """Return the images of the split "train"; None where they are not there."""
        return self.open() if self.path is not None and Path(self.path).is_dir() else None

    def rows(self, seed: int) -> ImageRows:
        """Return the images, each mirrored by chance."""
        return ImageRows(self.open(), labeled=self.conditional, flip=self.flip, seed=seed)

    def labels(self) -> tuple[Int[Tensor, " s"] | None, tuple[str, ...] | None]:
        """Return the class of every training image, and the names of the classes."""
        files = self.open()
        return files.labels, files.class_names

    def report(self) -> list[str]:
        """Return what there is to train and to test on."""
        files = self.open()
        classes, doubts = describe_classes(files.labels if self.conditional else None, files.class_names, len(files))
        held_out = next((split for split in ("test", "val") if split in files.splits), None)
        test = 0 if held_out is None else len(self.open(held_out))
        line = describe_images(len(files), test, (3, self.image_size, self.image_size), classes, files.left_out)
        return [line, *as_notes([*files.doubts, *doubts])]
