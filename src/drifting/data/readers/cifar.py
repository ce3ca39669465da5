"""The original forms of CIFAR-10 and CIFAR-100: pickled batches (cifar-10-batches-py) and binary records (cifar-10-batches-bin).

A pickle can run any code when it is read, so only bytes, numbers, lists, dicts and numpy arrays are let through.

Source: https://www.cs.toronto.edu/~kriz/cifar.html: a record is a label (of CIFAR-100 a coarse one and a fine one, which is taken),
then 32 x 32 red, green and blue values.
"""

import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from drifting._checks import check_memory
from drifting.data.readers.base import Split, damaged
from drifting.errors import InputError

LAYOUT = "CIFAR-10 or CIFAR-100 as published (cifar-10-batches-py, cifar-100-binary)"
_PIXELS = 3 * 32 * 32
_MOST_CLASSES = 1000
Batch = tuple[UInt8[np.ndarray, "s pixels"], list[int]]


class _Form(NamedTuple):
    """How a data set is laid down: files of each split, a file beside them that tells it from others, and how they are read."""

    splits: dict[str, str]
    beside: str
    read_batch: Callable[[Path], Batch]
    read_names: Callable[[Path], tuple[str, ...] | None]
    left_out: tuple[str, ...] = ()


class _DataUnpickler(pickle.Unpickler):
    """Rebuilds data and looks up nothing but what numpy arrays and bytes need."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the allowed functions; anything else is refused before it is even imported."""
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        arrays = {"numpy": ("ndarray", "dtype"), "numpy.core.multiarray": ("_reconstruct",), "numpy.core.numeric": ("_frombuffer",)}
        module = module.replace("numpy._core", "numpy.core")
        if name not in arrays.get(module, ()):
            raise InputError(f"it asks for {module}.{name}, which is code and not data")
        return super().find_class(module.replace("numpy.core", _NUMPY_CORE), name)


_NUMPY_CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"


def matches(folder: Path) -> bool:
    """Return whether the folder is one of the forms."""
    return _find(folder) is not None


def splits(folder: Path) -> list[str]:
    """Return the splits whose batches are there."""
    return [split for split, pattern in _located(folder).splits.items() if _batches(folder, pattern)]


def read(folder: Path, split: str) -> Split:
    """Read the batches of one split in the order of their names."""
    form = _located(folder)
    paths = _batches(folder, form.splits[split])
    check_memory(2 * sum(path.stat().st_size for path in paths), f"data is '{folder}', whose images", "keep fewer batches")
    batches = [form.read_batch(path) for path in paths]
    pixels = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32)
    labels = [label for _, part in batches for label in part]
    return Split(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.long), form.read_names(folder), form.left_out)


def _find(folder: Path) -> _Form | None:
    def fits(form: _Form) -> bool:
        beside = not form.beside or (folder / form.beside).is_file()
        return beside and any(_batches(folder, pattern) for pattern in form.splits.values())

    return next((form for form in _FORMS if fits(form)), None)


def _batches(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if path.is_file()]


def _located(folder: Path) -> _Form:
    found = _find(folder)
    if found is None:
        raise InputError(f"data is '{folder}', which holds no {LAYOUT}: add them")
    return found


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for `_codecs.encode`, by which protocol 2 stores bytes; the encoding named in the file is not looked up."""
    del encoding
    return text.encode("latin1")


def _unpickle(path: Path) -> dict[bytes, Any]:
    """Return a pickled dict, its keys as bytes, whichever Python wrote it."""
    try:
        content = _DataUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except InputError as error:
        raise InputError(
            f"data holds '{path}', which is not read because {error}: take the file from its original source"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not a dict")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _pickled_batch(path: Path, key: bytes = b"labels") -> Batch:
    content = _unpickle(path)
    pixels, labels = content.get(b"data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise damaged(path, f"'data' is no array of bytes of shape [s, {_PIXELS}]")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(isinstance(label, int) for label in labels):
        raise damaged(path, f"'{key.decode()}' is no list of {len(pixels)} integers")
    if not all(0 <= label < _MOST_CLASSES for label in labels):
        raise damaged(path, f"'{key.decode()}' holds numbers that are no classes")
    return pixels, labels


def _pickled_names(place: Path, file: str = "batches.meta", key: bytes = b"label_names") -> tuple[str, ...] | None:
    path = place / file
    names = _unpickle(path).get(key) if path.is_file() else None
    if not isinstance(names, list | tuple) or not names:
        return None
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


def _binary_batch(path: Path, labels: int = 1) -> Batch:
    """Return images and the last of the labels of each record."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) % (labels + _PIXELS):
        raise damaged(path, f"{len(content)} bytes are not a whole number of records of {labels + _PIXELS}")
    records = content.reshape(-1, labels + _PIXELS)
    return records[:, labels:], records[:, labels - 1].tolist()


def _binary_names(place: Path, file: str = "batches.meta.txt") -> tuple[str, ...] | None:
    path = place / file
    return tuple(path.read_text(errors="replace").split()) or None if path.is_file() else None


_BATCHES = {"train": "data_batch_[0-9]", "test": "test_batch"}
_COARSE = ("the coarse labels (classes are the fine ones)",)
_FINE_PICKLED = functools.partial(_pickled_batch, key=b"fine_labels")
_FINE_PICKLED_NAMES = functools.partial(_pickled_names, file="meta", key=b"fine_label_names")
_FINE_NAMES = "fine_label_names.txt"
_FORMS = (
    _Form(_BATCHES, "", _pickled_batch, _pickled_names),
    _Form({split: f"{name}.bin" for split, name in _BATCHES.items()}, "", _binary_batch, _binary_names),
    _Form({"train": "train", "test": "test"}, "meta", _FINE_PICKLED, _FINE_PICKLED_NAMES, _COARSE),
    _Form(
        {"train": "train.bin", "test": "test.bin"},
        _FINE_NAMES,
        functools.partial(_binary_batch, labels=2),
        functools.partial(_binary_names, file=_FINE_NAMES),
        _COARSE,
    ),
)
