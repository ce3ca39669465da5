"""Data sets in the layout in which they are published: MNIST (IDX files), CIFAR, Tiny ImageNet and CUB-200-2011.

IDX, http://yann.lecun.com/exdb/mnist: two zero bytes, 8 for unsigned bytes, the number of axes, the big-endian size of each, then
the values in C order. Fashion-MNIST has the same layout.

CIFAR, https://www.cs.toronto.edu/~kriz/cifar.html: batches, pickled or as binary records. A record has a label (in CIFAR-100 a
coarse one and a fine one, which is taken), then 32 x 32 red, green and blue values. A pickle can run any code when it is read, so
only bytes, numbers, lists, dicts and numpy arrays are allowed.

Tiny ImageNet, http://cs231n.stanford.edu/tiny-imagenet-200.zip: train/CLASS/images/*.JPEG, val/images/*.JPEG with
val_annotations.txt (lines of a file, its class and a box), and test/ without classes.

CUB-200-2011, https://www.vision.caltech.edu/datasets/cub_200_2011: images.txt, image_class_labels.txt and train_test_split.txt
have the number of an image, then its path below images/, its class from 1, or 1 for training; classes.txt has the numbers and names
of the classes.
"""

import gzip
import io
import math
import pickle
import struct
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from drifting._checks import check_memory
from drifting.data.readers import Reader, Split, damaged, files_below, folders_in, parsing
from drifting.data.readers.folder import FolderReader, ImageFolder, Listing
from drifting.errors import InputError

_IDX_STEMS = {"train": "train", "test": "t10k"}
# Largest compression factor of gzip.
_GZIP_FACTOR = 1032
_CIFAR_VALUES = 3 * 32 * 32
_MOST_CLASSES = 1000
_ANNOTATIONS = "val/val_annotations.txt"
_FILES, _CLASSES, _NAMES, _SPLITS = "images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt"
# Text files without which Tiny ImageNet and CUB-200 cannot be read.
TEXTS = ("val_annotations.txt", _FILES, _CLASSES, _NAMES, _SPLITS)

Batch = tuple[UInt8[np.ndarray, "s values"], list[int]]


class Idx(Reader):
    """IDX files, raw or gzipped: train-images-idx3-ubyte and so on."""

    def splits(self, path: Path) -> list[str]:
        """Return the splits whose images are there."""
        return [split for split in _IDX_STEMS if _idx_file(path, split, "images", 3)]

    def read(self, path: Path, split: str) -> Split:
        """Read one split; labels are None if their file is missing."""
        images_path, labels_path = _idx_file(path, split, "images", 3), _idx_file(path, split, "labels", 1)
        if images_path is None:
            raise InputError(f"data is '{path}', which has no IDX images of the split '{split}': add that file")
        images = _idx_values(images_path, 3)[:, None]
        labels = None if labels_path is None else _idx_values(labels_path, 1).long()
        if labels is not None and len(labels) != len(images):
            counts = f"{len(labels)} labels for {len(images)} images"
            raise InputError(f"data holds '{labels_path}' with {counts}: take both files from one place")
        return Split(images, labels, None)


def _idx_file(folder: Path, split: str, part: str, axes: int) -> Path | None:
    """Return the raw file if there is one, else the gzipped one. Some copies are named train-images.idx3-ubyte."""
    stem = f"{_IDX_STEMS[split]}-{part}"
    names = [f"{stem}{dot}idx{axes}-ubyte{suffix}" for suffix in ("", ".gz") for dot in "-."]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _idx_values(path: Path, axes: int) -> UInt8[Tensor, "..."]:
    """Return the unsigned bytes of a file with this many axes. Only as much as its header declares is read and unpacked."""
    with parsing(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(4 + 4 * axes)
        *magic, stored_axes = struct.unpack_from(">HBB", header)
        shape = struct.unpack_from(f">{axes}I", header, 4)
        if magic != [0, 8] or stored_axes != axes:
            raise damaged(path, f"it does not begin as unsigned bytes in {axes} axes")
        size = math.prod(shape)
        if size > _GZIP_FACTOR * path.stat().st_size:
            raise damaged(path, f"its header declares {size:,} values, more than a file of this length can hold")
        check_memory(size, f"data holds '{path}', whose {size:,} values", "keep fewer images")
        values = np.frombuffer(file.read(size + 1), np.uint8)
        if len(values) != size:
            raise damaged(path, f"it has {len(values)}{' or more' * (len(values) > size)} values, but its header declares {size}")
        return torch.from_numpy(values.reshape(shape).copy())


class Cifar(Reader):
    """Batches of CIFAR-10 or CIFAR-100.

    Args:
        train, test: patterns of the batches of each split.
        names: file of the class names.
        fine: whether this is CIFAR-100. Its file of names must be there, because "train" and "test" can be names of other files.
    """

    def __init__(self, train: str, test: str, *, names: str, fine: bool = False) -> None:
        self._patterns, self._names, self._fine = {"train": train, "test": test}, names, fine

    def splits(self, path: Path) -> list[str]:
        """Return the splits whose batches are there."""
        if self._fine and not (path / self._names).is_file():
            return []
        return [split for split in self._patterns if self._batches(path, split)]

    def read(self, path: Path, split: str) -> Split:
        """Read the batches of one split in the order of their names."""
        paths = self._batches(path, split)
        check_memory(2 * sum(file.stat().st_size for file in paths), f"data is '{path}', whose images", "keep fewer batches")
        batches = [self._read_batch(file) for file in paths]
        pixels = torch.from_numpy(np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32))
        labels = torch.tensor([label for _, part in batches for label in part], dtype=torch.long)
        names = self._read_names(path / self._names) if (path / self._names).is_file() else None
        return Split(pixels, labels, names, ("the coarse labels (classes are the fine ones)",) if self._fine else ())

    def _batches(self, path: Path, split: str) -> list[Path]:
        return [file for file in sorted(path.glob(self._patterns[split])) if file.is_file()]

    @abstractmethod
    def _read_batch(self, path: Path) -> Batch:
        """Return the images and labels of a file."""

    @abstractmethod
    def _read_names(self, path: Path) -> tuple[str, ...] | None:
        """Return the names of the classes, or None if the file has none."""


class CifarRecords(Cifar):
    """The binary form of CIFAR."""

    def _read_batch(self, path: Path) -> Batch:
        content, labels = np.frombuffer(path.read_bytes(), np.uint8), 1 + self._fine
        if len(content) % (labels + _CIFAR_VALUES):
            raise damaged(path, f"{len(content)} bytes are not a whole number of records of {labels + _CIFAR_VALUES}")
        records = content.reshape(-1, labels + _CIFAR_VALUES)
        return records[:, labels:], records[:, labels - 1].tolist()

    def _read_names(self, path: Path) -> tuple[str, ...] | None:
        return tuple(path.read_text(errors="replace").split()) or None


class CifarPickles(Cifar):
    """The Python form of CIFAR."""

    def _read_batch(self, path: Path) -> Batch:
        content, key = _unpickle(path), "fine_labels" if self._fine else "labels"
        pixels, labels = content.get(b"data"), content.get(key.encode())
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _CIFAR_VALUES:
            raise damaged(path, f"'data' is not an array of bytes of shape [s, {_CIFAR_VALUES}]")
        if not isinstance(labels, list) or len(labels) != len(pixels) or not all(isinstance(label, int) for label in labels):
            raise damaged(path, f"'{key}' is not a list of {len(pixels)} integers")
        if not all(0 <= label < _MOST_CLASSES for label in labels):
            raise damaged(path, f"'{key}' holds numbers that are not classes")
        return pixels, labels

    def _read_names(self, path: Path) -> tuple[str, ...] | None:
        names = _unpickle(path).get(b"fine_label_names" if self._fine else b"label_names")
        if not isinstance(names, list | tuple) or not names:
            return None
        return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


CIFAR = (
    CifarPickles("data_batch_[0-9]", "test_batch", names="batches.meta"),
    CifarRecords("data_batch_[0-9].bin", "test_batch.bin", names="batches.meta.txt"),
    CifarPickles("train", "test", names="meta", fine=True),
    CifarRecords("train.bin", "test.bin", names="fine_label_names.txt", fine=True),
)
_NUMPY_CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"


class _DataUnpickler(pickle.Unpickler):
    """Rebuilds the data of a file, and looks up only what numpy arrays and bytes need."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.BytesIO(path.read_bytes()), encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the allowed functions. Anything else is refused before it is imported."""
        if (module, name) == ("_codecs", "encode"):
            # Protocol 2 stores bytes in this way. The encoding in the file is not looked up.
            return lambda text, encoding="latin1": text.encode("latin1")
        arrays = {"numpy": ("ndarray", "dtype"), "numpy.core.multiarray": ("_reconstruct",), "numpy.core.numeric": ("_frombuffer",)}
        module = module.replace("numpy._core", "numpy.core")
        if name not in arrays.get(module, ()):
            code = f"which is not read because it asks for {module}.{name}, which is code and not data"
            raise InputError(f"data holds '{self._path}', {code}: take the file from its original source")
        return super().find_class(module.replace("numpy.core", _NUMPY_CORE), name)


def _unpickle(path: Path) -> dict[bytes, Any]:
    """Return a pickled dict with keys as bytes, whichever version of Python wrote it."""
    with parsing(path):
        content = _DataUnpickler(path).load()
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not a dict")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


class _Listed(FolderReader):
    """Image files whose splits and classes are in text files. The data set is the folder, or the only folder in it."""

    def splits(self, path: Path) -> list[str]:
        """Return train, and val or test."""
        place = self._place(path)
        return [] if place is None else self._splits(place)

    def listed(self, path: Path, split: str) -> Listing:
        """List the images of one split, sorted by class and path; raises InputError if a text names a missing file."""
        return self._listed(self._place(path) or path, split)

    def _place(self, path: Path) -> Path | None:
        below = folders_in(path)
        return next((place for place in (path, *(below if len(below) == 1 else ())) if self._splits(place)), None)

    @abstractmethod
    def _splits(self, place: Path) -> list[str]:
        """Return the splits in a folder, or nothing if it is not the data set."""

    @abstractmethod
    def _listed(self, place: Path, split: str) -> Listing:
        """List the images of one split of the data set in this folder."""


class TinyImageNet(_Listed):
    """Tiny ImageNet. Its test images have no classes and are left out."""

    def _splits(self, place: Path) -> list[str]:
        return ["train", "val"] if (place / _ANNOTATIONS).is_file() and (place / "train").is_dir() else []

    def _listed(self, place: Path, split: str) -> Listing:
        train = ImageFolder().listed(place / "train", "train")._replace(left_out=(), doubts=())
        if split == "train":
            return train
        numbers = {name: number for number, name in enumerate(train.class_names or ())}
        labels: dict[str, int] = {}
        for name, class_name in _pairs(place / _ANNOTATIONS, "\t"):
            if class_name not in numbers:
                unknown = f"where '{name}' is of the class '{class_name}'"
                raise InputError(f"data holds '{place / _ANNOTATIONS}', {unknown}, which is not in train/")
            labels[name] = numbers[class_name]
        return _by_labels(place / "val" / "images", labels, train.class_names or (), _ANNOTATIONS)


class Cub(_Listed):
    """CUB-200-2011."""

    def _splits(self, place: Path) -> list[str]:
        if not (place / "images").is_dir() or not all((place / name).is_file() for name in (_FILES, _CLASSES)):
            return []
        return ["train", "test"] if (place / _SPLITS).is_file() else ["train"]

    def _listed(self, place: Path, split: str) -> Listing:
        paths, classes = dict(_pairs(place / _FILES)), dict(_pairs(place / _CLASSES))
        in_train = dict(_pairs(place / _SPLITS)) if (place / _SPLITS).is_file() else dict.fromkeys(paths, "1")
        for name, numbers in ((_CLASSES, classes), (_SPLITS, in_train)):
            if unknown := next((number for number in paths if not numbers.get(number, "").isdigit()), None):
                raise InputError(f"data holds '{place / name}', which has no number for image {unknown}: fetch that file again")
        if (place / _NAMES).is_file():
            lines = sorted(_pairs(place / _NAMES), key=lambda pair: int(pair[0]) if pair[0].isdigit() else 0)
            names = tuple(name for _, name in lines)
        else:
            names = tuple(path.name for path in folders_in(place / "images"))
        labels = {paths[number]: int(classes[number]) - 1 for number in paths if (in_train[number] == "1") == (split == "train")}
        if labels and not 0 <= min(labels.values()) <= max(labels.values()) < len(names):
            raise InputError(f"data holds '{place / _CLASSES}', whose classes are not 1 to {len(names)}: fetch that file again")
        return _by_labels(place / "images", labels, names, _CLASSES)


def _by_labels(root: Path, labels: dict[str, int], class_names: tuple[str, ...], source: str) -> Listing:
    find = files_below([root])
    for name in labels:
        find(name, source)
    return Listing.of_labels(root, labels, class_names, source)


def _pairs(path: Path, separator: str | None = None) -> list[tuple[str, str]]:
    """Return the first two words of each line."""
    with parsing(path):
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    rows = [(number, line.strip().split(separator)) for number, line in enumerate(lines, 1) if line.strip()]
    if wrong := next((number for number, words in rows if len(words) < 2), None):
        raise damaged(path, f"line {wrong} is not a pair")
    return [(words[0], words[1]) for _, words in rows]
