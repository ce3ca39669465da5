"""The two original forms of CIFAR-10: pickled batches (cifar-10-batches-py) and binary records (cifar-10-batches-bin).

A pickle can run any code when it is read, so only bytes, numbers, lists, dicts and numpy arrays are let through.

Source: https://www.cs.toronto.edu/~kriz/cifar.html: a record is a label, then 32 x 32 red, green and blue values.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from drifting.data.readers.base import Split, damaged
from drifting.errors import InputError

LAYOUT = "CIFAR-10 batches (cifar-10-batches-py, cifar-10-batches-bin)"
_PIXELS = 3 * 32 * 32
Batch = tuple[UInt8[np.ndarray, "s pixels"], list[int]]


class _Form(NamedTuple):
    folder: str
    splits: dict[str, str]
    read_batch: Callable[[Path], Batch]
    read_names: Callable[[Path], tuple[str, ...] | None]


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
    """Return whether the folder is, or holds, either form."""
    return _find(folder) is not None


def splits(folder: Path) -> list[str]:
    """Return the splits whose batches are there."""
    form, place = _located(folder)
    return [split for split, pattern in form.splits.items() if any(place.glob(pattern))]


def read(folder: Path, split: str) -> Split:
    """Read the batches of one split in the order of their names."""
    form, place = _located(folder)
    batches = [form.read_batch(path) for path in sorted(place.glob(form.splits[split]))]
    pixels = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32)
    labels = [label for _, part in batches for label in part]
    return Split(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.long), form.read_names(place))


def _find(folder: Path) -> tuple[_Form, Path] | None:
    places = [(form, place) for form in _FORMS for place in (folder, folder / form.folder)]
    return next(((form, place) for form, place in places if any(any(place.glob(name)) for name in form.splits.values())), None)


def _located(folder: Path) -> tuple[_Form, Path]:
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


def _pickled_batch(path: Path) -> Batch:
    content = _unpickle(path)
    pixels, labels = content.get(b"data"), content.get(b"labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise damaged(path, f"'data' is no array of bytes of shape [s, {_PIXELS}]")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(isinstance(label, int) for label in labels):
        raise damaged(path, f"'labels' is no list of {len(pixels)} integers")
    return pixels, labels


def _pickled_names(place: Path) -> tuple[str, ...] | None:
    path = place / "batches.meta"
    names = _unpickle(path).get(b"label_names") if path.is_file() else None
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names) if names else None


def _binary_batch(path: Path) -> Batch:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) % (1 + _PIXELS):
        raise damaged(path, f"{len(content)} bytes are not a whole number of records of {1 + _PIXELS}")
    records = content.reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0].tolist()


def _binary_names(place: Path) -> tuple[str, ...] | None:
    path = place / "batches.meta.txt"
    return tuple(path.read_text().split()) or None if path.is_file() else None


_FORMS = (
    _Form("cifar-10-batches-py", {"train": "data_batch_[0-9]", "test": "test_batch"}, _pickled_batch, _pickled_names),
    _Form("cifar-10-batches-bin", {"train": "data_batch_[0-9].bin", "test": "test_batch.bin"}, _binary_batch, _binary_names),
)
