"""Image files in folders: one sub-folder per class, or all in one folder without labels; optionally below train/ and test/."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from drifting.data.readers.base import EncodedImage, Split
from drifting.errors import InputError

LAYOUT = "image files (CLASS/*.png, optionally below train/ and test/, or *.png without classes)"
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SPLITS = ("train", "test", "val", "valid", "validation")


class Listing(NamedTuple):
    """The images of one split, by name: a million take 0.1 GB."""

    root: Path
    names: list[str]
    labels: Int[Tensor, " s"] | None
    class_names: tuple[str, ...] | None

    def path(self, index: int) -> Path:
        """Return where an image lies."""
        return self.root / self.names[index]


def matches(folder: Path) -> bool:
    """Return whether there is an image file anywhere below the folder."""
    return next(_images(folder), None) is not None


def splits(folder: Path) -> list[str]:
    """Return the splits that have folders; without a folder train/ or test/, everything is the split "train"."""
    found = [split for split in _SPLITS if (folder / split).is_dir()]
    return found if {"train", "test"} & set(found) else ["train"]


def read(folder: Path, split: str) -> Split:
    """Return the images of one split, in the order of `listed`."""
    found = listed(folder, split)
    images = [EncodedImage(found.path(index), str(found.path(index))) for index in range(len(found.names))]
    return Split(images, found.labels, found.class_names)


def listed(folder: Path, split: str) -> Listing:
    """List the images of one split, sorted by class and path; a class has the same number in every split."""
    roots = {name: folder / name if (folder / name).is_dir() else folder for name in splits(folder)}
    root = roots[split]
    loose = sorted(_images(root, deep=False))
    classes = _classes(root)
    if loose and classes:
        raise InputError(f"data holds '{root / loose[0]}' beside folders of classes: move it into one, or remove those folders")
    if not classes:
        return Listing(root, loose, None, None)
    class_names = sorted(set().union(*map(_classes, roots.values())))
    members = [sorted(_images(root / name), key=lambda path: path.split("/")) for name in class_names]
    labels = torch.arange(len(members)).repeat_interleave(torch.tensor([len(paths) for paths in members]))
    return Listing(
        root,
        [f"{name}/{path}" for name, paths in zip(class_names, members, strict=True) for path in paths],
        labels,
        tuple(class_names),
    )


def _classes(root: Path) -> set[str]:
    with os.scandir(root) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


def _images(folder: Path, *, deep: bool = True) -> Iterator[str]:
    """Yield the paths of image files from the folder on; the listing itself tells what is a folder, with no look at each file."""
    waiting = [""]
    while waiting:
        place = waiting.pop()
        try:
            entries = os.scandir(folder / place)
        except OSError:
            continue
        with entries:
            for entry in entries:
                if deep and entry.is_dir():
                    waiting.append(f"{place}{entry.name}/")
                elif _is_image(entry):
                    yield place + entry.name


def _is_image(entry: os.DirEntry[str]) -> bool:
    # Hidden files include macOS's "._x.png", which are no images.
    return os.path.splitext(entry.name)[1].lower() in _SUFFIXES and not entry.name.startswith(".") and entry.is_file()
