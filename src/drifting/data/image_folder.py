"""Folders of images that do not fit into memory: listed once, decoded when they are drawn.

Shapes: s images, b images of a batch, h = w pixels to a side.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from drifting._checks import check_memory
from drifting._files import check_exists
from drifting.data.dataset import as_notes, counts_of, describe_classes, describe_images, found, read_once
from drifting.data.pixels import decode, decoded_bytes
from drifting.data.readers import EncodedImage, split_name
from drifting.data.readers.find import folder_reader
from drifting.data.streamed import DiskRows, StreamedData, mirrored, row_streams
from drifting.errors import InputError


class ImageFiles:
    """Images of one split of a folder, in color, cropped to a centered square and resized.

    Args:
        path: a folder with one sub-folder per class, optionally inside train/, val/ or test/; see `readers.folder`.
        image_size: side in pixels.
        split: name of the split; without split folders, "train" is everything.

    Attributes:
        path: path of the folder.
        shape: channels, height and width of an image.
        split: name of the split.
        splits: names of all splits.
        labels: class of every image; None without class folders.
        class_names: name of each label, sorted by the numbers in them; None without class folders.
        left_out: unused content of the folder, in a few words each.
        doubts: sentences about possible problems.

    Raises:
        InputError: if the folder or the split is missing, or a class is empty. The files themselves are checked when they are read.
    """

    def __init__(self, path: str | Path, *, image_size: int, split: str = "train") -> None:
        self.path, self.shape, self.split = Path(path).expanduser(), (3, image_size, image_size), split_name(split) or split
        if image_size < 1:
            raise InputError(f"image_size is {image_size}: pass 1 or more")
        check_memory(
            decoded_bytes(1, image_size, 3), f"image_size is {image_size}, at which one image", "pass a smaller --image-size"
        )
        check_exists(self.path, "pass a folder of images")
        if not self.path.is_dir():
            fix = "pass a folder of image files, an unpacked one if this is an archive"
            raise InputError(f"data is '{self.path}', which is not a folder: {fix}")
        reader = folder_reader(self.path)
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

    def read(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Return images decoded by several threads, or raise InputError naming a damaged file."""
        paths = [self._listing.path(index) for index in indices.tolist()]
        return decode([EncodedImage(path, str(path)) for path in paths], image_size=self.shape[1], channels=3)

    def fingerprint(self) -> str:
        """Return a fingerprint of the names, sizes and classes of all files, in their order, 16 hexadecimal digits.

        It does not depend on contents and times of change, so a copy of the folder has the same fingerprint.
        """
        return _digest(*self._names, *map(str, self._sizes))

    def names_fingerprint(self) -> str:
        """Return the fingerprint of earlier versions, which does not include the sizes."""
        return _digest(*self._names)

    def sizes_fingerprint(self, rows: range) -> str:
        """Return a fingerprint of the sizes of some files, in their order."""
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
        """The folder of the images of the split."""
        return self._listing.root

    def state(self, indices: Int[Tensor, " b"]) -> str:
        """Return a fingerprint of the contents of some images, in their order, and of how they are read.

        Contents are identified by the paths, sizes and times of change of the files.
        """
        digest = hashlib.sha256(f"{self.shape[1]} pixels, 3 channels, center crop, bicubic".encode())
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
    """Return the size of a file and the time of its last change, or -1 if it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def splits_of(path: Path) -> tuple[str, ...]:
    """Return the splits of a folder of image files; raises InputError if there is no folder."""
    return tuple(folder_reader(path).splits(path)) if path.is_dir() else ()


class ImageRows(DiskRows):
    """`ImageFiles` as rows of uint8 images."""

    dtype = torch.uint8

    def take(self, indices: Int[Tensor, " b"], positions: Int[Tensor, " b"]) -> Shaped[Tensor, "b *sample"]:
        """Return images, each mirrored or not depending on its position."""
        images = self._opened.read(indices)
        flipped = mirrored(row_streams(self._seed, positions), self._flip)
        return torch.where(flipped[:, None, None, None] == 1, images.flip(-1), images)


# Listing a million files takes seconds.
_list_files = read_once(2)(ImageFiles)


@dataclass(frozen=True, kw_only=True)
class ImageFilesData(StreamedData):
    """Images of a folder that do not fit into memory: decoded, cropped and resized when they are drawn.

    Attributes:
        image_size: side in pixels after cropping and resizing.
        counts: number of training images of each class; found when the folder is first listed and saved with the run.
    """

    image_size: int = 256
    counts: tuple[int, ...] | None = found()

    _place: ClassVar[str] = "a folder of images"
    _rows: ClassVar[type[DiskRows]] = ImageRows

    def open(self, split: str = "train") -> ImageFiles:
        """Return the images, listed once per process, or raise InputError if they have changed since the run began."""
        files = _list_files(self.path or "", image_size=self.image_size, split=split)
        # Runs of earlier versions have a fingerprint of the names only.
        if split == "train" and self.files not in (None, files.fingerprint(), files.names_fingerprint()):
            self.check_classes(self._facts(files))
            others = f"whose files are not those that the run began with ({files.fingerprint()}, not {self.files})"
            raise InputError(f"data is '{self.path}', {others}: bring them back, or train anew")
        return files

    def _facts(self, opened: ImageFiles) -> dict[str, Any]:
        facts = super()._facts(opened)
        labels = None if facts["num_classes"] is None else opened.labels
        return facts | {
            "counts": counts_of(labels, facts["num_classes"], len(opened)),
            "files": opened.fingerprint(),
        }

    def training_images(self) -> ImageFiles | None:
        """Return the images of the split "train", or None if they are missing."""
        return self.open() if self.path is not None and Path(self.path).is_dir() else None

    def report(self) -> list[str]:
        """Return a description of the training and test images, see `Data.report`."""
        files = self.open()
        classes, doubts = describe_classes(files.labels if self.conditional else None, files.class_names, len(files))
        held_out = next((split for split in ("test", "val") if split in files.splits), None)
        test = 0 if held_out is None else len(self.open(held_out))
        line = describe_images(len(files), test, files.shape, classes, files.left_out)
        return [line, *as_notes([*files.doubts, *doubts])]
