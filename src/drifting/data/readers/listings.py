"""Image files whose splits and classes stand in text files: Tiny ImageNet and CUB-200-2011, as they are published.

Sources: http://cs231n.stanford.edu/tiny-imagenet-200.zip: train/CLASS/images/*.JPEG, val/images/*.JPEG with val_annotations.txt,
lines of a file, its class and a box, and test/ without classes; https://www.vision.caltech.edu/datasets/cub_200_2011: images.txt,
image_class_labels.txt and train_test_split.txt, lines of the number of an image and its path below images/, its class from 1, and 1
for training; classes.txt, lines of the number of a class and its name.
"""

from pathlib import Path

import torch

from drifting.data.readers import folder as folders
from drifting.data.readers.base import Split, damaged, files_below, folders_in
from drifting.data.readers.folder import Listing
from drifting.errors import InputError

LAYOUT = "Tiny ImageNet (val/val_annotations.txt), CUB-200 (images.txt)"
_ANNOTATIONS = "val/val_annotations.txt"
_FILES, _CLASSES, _NAMES, _SPLITS = "images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt"
# All of their files that a copy of the layout needs.
TEXTS = ("val_annotations.txt", _FILES, _CLASSES, _NAMES, _SPLITS)


def matches(folder: Path) -> bool:
    """Return whether the folder, or the only one in it, is one of these data sets."""
    return _find(folder) is not None


def splits(folder: Path) -> list[str]:
    """Return train, and val or test; images of the test of Tiny ImageNet have no classes and are left out."""
    place = _located(folder)
    if _is_tiny(place):
        return ["train", "val"]
    return ["train", "test"] if (place / _SPLITS).is_file() else ["train"]


def read(folder: Path, split: str) -> Split:
    """Return the images of one split, in the order of `listed`."""
    return folders.split_of(listed(folder, split))


def listed(folder: Path, split: str) -> Listing:
    """List the images of one split, sorted by class and path; raises InputError if a text names what is not there."""
    place = _located(folder)
    return _tiny(place, split) if _is_tiny(place) else _birds(place, split)


def _find(folder: Path) -> Path | None:
    below = folders_in(folder)
    places = [folder, *(below if len(below) == 1 else [])]
    return next((place for place in places if _is_tiny(place) or _is_birds(place)), None)


def _located(folder: Path) -> Path:
    found = _find(folder)
    if found is None:
        raise InputError(f"data is '{folder}', which holds neither {LAYOUT}: add them")
    return found


def _is_tiny(place: Path) -> bool:
    return (place / _ANNOTATIONS).is_file() and (place / "train").is_dir()


def _is_birds(place: Path) -> bool:
    return (place / "images").is_dir() and all((place / name).is_file() for name in (_FILES, _CLASSES))


def _tiny(place: Path, split: str) -> Listing:
    train = folders.listed(place / "train", "train")._replace(left_out=(), doubts=())
    if split == "train":
        return train
    numbers = {name: number for number, name in enumerate(train.class_names or ())}
    labels: dict[str, int] = {}
    for name, kind in _pairs(place / _ANNOTATIONS, "\t"):
        if kind not in numbers:
            raise InputError(
                f"data holds '{place / _ANNOTATIONS}', where '{name}' is of the class '{kind}', which is not in train/"
            )
        labels[name] = numbers[kind]
    return _listing(place / "val" / "images", labels, train.class_names or (), _ANNOTATIONS)


def _birds(place: Path, split: str) -> Listing:
    paths, kinds = dict(_pairs(place / _FILES)), dict(_pairs(place / _CLASSES))
    parts = dict(_pairs(place / _SPLITS)) if (place / _SPLITS).is_file() else dict.fromkeys(paths, "1")
    for name, numbers in ((_CLASSES, kinds), (_SPLITS, parts)):
        if unknown := next((number for number in paths if not numbers.get(number, "").isdigit()), None):
            raise InputError(f"data holds '{place / name}', which has no number for image {unknown}: fetch that file again")
    if (place / _NAMES).is_file():
        names = tuple(name for _, name in sorted(_pairs(place / _NAMES), key=lambda pair: int(pair[0]) if pair[0].isdigit() else 0))
    else:
        names = tuple(path.name for path in folders_in(place / "images"))
    labels = {paths[number]: int(kinds[number]) - 1 for number in paths if (parts[number] == "1") == (split == "train")}
    if labels and not 0 <= min(labels.values()) <= max(labels.values()) < len(names):
        raise InputError(f"data holds '{place / _CLASSES}', whose classes are not 1 to {len(names)}: fetch that file again")
    return _listing(place / "images", labels, names, _CLASSES)


def _listing(root: Path, labels: dict[str, int], class_names: tuple[str, ...], source: str) -> Listing:
    find = files_below([root])
    for name in labels:
        find(name, source)
    names = sorted(labels, key=lambda name: (labels[name], name.split("/")))
    return Listing(root, names, torch.tensor([labels[name] for name in names], dtype=torch.long), class_names, labels_from=source)


def _pairs(path: Path, separator: str | None = None) -> list[tuple[str, str]]:
    """Return the first two words of each line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise damaged(path, error) from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.strip().split(separator)
        if len(words) >= 2:
            found.append((words[0], words[1]))
        elif line.strip():
            raise damaged(path, f"line {number} is no pair")
    return found
