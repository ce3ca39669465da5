"""Image files in folders: one sub-folder per class, or all in one folder without labels; optionally below train/ and test/."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from drifting.data.readers.base import EncodedImage, Split
from drifting.errors import InputError

LAYOUT = "image files (CLASS/*.png, optionally below train/ and test/, or *.png without classes)"
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SPLITS = ("train", "test", "val", "valid", "validation")


def matches(folder: Path) -> bool:
    """Return whether there is an image file anywhere below the folder."""
    return next(_images(folder), None) is not None


def splits(folder: Path) -> list[str]:
    """Return the splits that have folders; without a folder train/ or test/, everything is the split "train"."""
    found = [split for split in _SPLITS if (folder / split).is_dir()]
    return found if {"train", "test"} & set(found) else ["train"]


def read(folder: Path, split: str) -> Split:
    """List the images of one split, sorted by class and path; a class has the same number in every split."""
    roots = {name: folder / name if (folder / name).is_dir() else folder for name in splits(folder)}
    root = roots[split]
    loose = sorted(path for path in root.iterdir() if _is_image(path))
    classes = _classes(root)
    if loose and classes:
        raise InputError(f"data holds '{loose[0]}' beside folders of classes: move it into one, or remove those folders")
    if not classes:
        return Split([EncodedImage(path, str(path)) for path in loose], None, None)
    class_names = sorted(set().union(*map(_classes, roots.values())))
    members = [sorted(_images(root / name)) for name in class_names]
    labels = torch.arange(len(members)).repeat_interleave(torch.tensor([len(paths) for paths in members]))
    images = [EncodedImage(path, str(path)) for paths in members for path in paths]
    return Split(images, labels, tuple(class_names))


def _classes(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _is_image(path: Path) -> bool:
    # Hidden files include macOS's "._x.png", which are no images.
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder, followlinks=True):
        yield from (path for name in names if _is_image(path := Path(place, name)))
