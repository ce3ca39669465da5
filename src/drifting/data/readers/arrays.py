"""Arrays of numpy: an .npz file of images and labels, such as ADM's (arr_0, arr_1) and MedMNIST's (train_images), or .npy files.

The name of an array tells its split, by a word such as train, and its role: images, x or data for images, labels or y for labels.
Images are [n, h, w, c], [n, c, h, w] or [n, h, w]: integers from 0 to 255, or floats in [0, 1] or [-1, 1].
"""

import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from jaxtyping import Num, UInt8
from torch import Tensor

from drifting._checks import check_memory
from drifting.data.readers import Reader, Split, damaged, numbered, parsing, split_name
from drifting.errors import InputError

_IMAGES = {"images", "image", "imgs", "img", "x", "data", "samples", "pixels"}
_LABELS = {"labels", "label", "y", "targets", "target", "classes", "class"}
# The names that numpy.savez gives arrays without one, as in the files of ADM.
_UNNAMED = {"arr_0": "images", "arr_1": "labels"}
_CHUNK = 1024
# Floats with a smaller range are dark images, or no images.
_BRIGHT = 0.5


class _Entry(NamedTuple):
    """An array that is not read yet."""

    origin: str
    size: int
    open: Callable[[], IO[bytes]]


class Arrays(Reader):
    """An .npz file, .npy files, or a folder with either."""

    def matches(self, path: Path) -> bool:
        """Return whether this is a file of arrays, or a folder that holds some."""
        return bool(_files(path))

    def splits(self, path: Path) -> list[str]:
        """Return the splits in the names of arrays; an array without one is "train"."""
        return list(_roles(path)[0])

    def read(self, path: Path, split: str) -> Split:
        """Read one split; labels are None if there are none, or they are not one class for each image."""
        roles, left_out = _roles(path)
        images, doubts = _to_bytes(roles[split]["images"])
        if "labels" not in roles[split]:
            return Split(images, None, None, left_out, doubts)
        entry = roles[split]["labels"]
        labels, doubt = _one_each(_load(entry), entry.origin, len(images))
        if labels is None:
            return Split(images, None, None, left_out, (*doubts, doubt))
        if labels.dtype.kind not in "US":
            return Split(images, torch.from_numpy(labels.astype(np.int64)), None, left_out, doubts)
        all_names = [name for part in roles.values() if "labels" in part for name in _texts(_load(part["labels"]).ravel())]
        numbers, names = numbered(_texts(labels), all_names)
        return Split(images, numbers, names, left_out, doubts)


def _files(path: Path) -> list[Path]:
    """Return the .npz file or, without one, the .npy files."""
    if path.is_file():
        return [path] if path.suffix in (".npz", ".npy") else []
    packed, plain = ([file for file in sorted(path.glob(f"*{suffix}")) if file.is_file()] for suffix in (".npz", ".npy"))
    return packed or plain


def _entries(path: Path) -> dict[str, _Entry]:
    """Return name -> array."""
    files = _files(path)
    if files and files[0].suffix == ".npz":
        if len(files) > 1:
            names = " and ".join(f"'{file.name}'" for file in files[:2])
            raise InputError(f"data is '{path}', which holds {names}: pass the file that is meant as --data")
        return _members(files[0])
    return {file.stem: _Entry(str(file), file.stat().st_size, lambda file=file: file.open("rb")) for file in files}


def _members(path: Path) -> dict[str, _Entry]:
    with parsing(path), zipfile.ZipFile(path) as archive:
        members = [(member.filename, member.file_size) for member in archive.infolist() if member.filename.endswith(".npy")]
    return {
        name.removesuffix(".npy"): _Entry(f"{path}, {name}", size, lambda name=name: zipfile.ZipFile(path).open(name))
        for name, size in members
    }


def _roles(path: Path) -> tuple[dict[str, dict[str, _Entry]], tuple[str, ...]]:
    """Return split -> images and labels, and a description of each array that is neither."""
    roles: dict[str, dict[str, _Entry]] = {}
    entries = _entries(path)
    unknown = []
    for name, entry in entries.items():
        split, kind = _role(name)
        if kind is None and len(entries) == 1:
            kind = "images"
        if kind is None:
            unknown.append(name)
        elif kind in roles.setdefault(split, {}):
            both = f"'{roles[split][kind].origin}' and '{entry.origin}'"
            raise InputError(f"data holds {both}, which may both be the {kind} of '{split}': rename or remove one")
        else:
            roles[split][kind] = entry
    roles = {split: roles[split] for split in ("train", "val", "test") if "images" in roles.get(split, {})}
    if not roles:
        names = ", ".join(list(entries)[:4]) or "none"
        raise InputError(f"data is '{path}', whose arrays are {names}: name them images and labels, or train_images and so on")
    return roles, tuple(f"the array '{name}'" for name in unknown)


def _role(name: str) -> tuple[str, str | None]:
    """Return the split and the role in the name of an array."""
    if name in _UNNAMED:
        return "train", _UNNAMED[name]
    words = [word for word in re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if word]
    split = next((split for word in words if (split := split_name(word))), None)
    known = () if "names" in words else ((_LABELS, "labels"), (_IMAGES, "images"))
    kinds = [kind for meant, kind in known if meant & set(words)]
    if not kinds and split is not None and len(words) == 1:
        kinds = ["images"]
    return split or "train", kinds[0] if kinds else None


def _load(entry: _Entry) -> np.ndarray:
    """Return an array, or raise InputError if its header does not match the size of the file or it does not fit into memory."""
    with parsing(entry.origin):
        with entry.open() as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "biufUS":
            raise InputError(f"data holds '{entry.origin}' of {dtype}, which are not numbers: save it as numbers")
        if size > entry.size:
            raise damaged(entry.origin, f"its header declares {size:,} bytes, but it has {entry.size:,}")
        check_memory(2 * size, f"data holds '{entry.origin}', whose {size:,} bytes", "save fewer images, or as uint8")
        with entry.open() as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _to_bytes(entry: _Entry) -> tuple[UInt8[Tensor, "s c h w"], tuple[str, ...]]:
    """Return images as bytes, and how floats were read."""
    array = _channels_first(_load(entry), entry.origin)
    if array.dtype == np.uint8 and array.max() != 1:
        return torch.from_numpy(np.ascontiguousarray(array)), ()
    scale, shift, doubt = _range(array, entry.origin)
    found = torch.empty(array.shape, dtype=torch.uint8)
    for start in range(0, len(array), _CHUNK):
        part = array[start : start + _CHUNK].astype(np.float32)
        found[start : start + _CHUNK] = torch.from_numpy(np.floor(part * scale + shift + 0.5).astype(np.uint8))
    return found, doubt


def _channels_first(array: Num[np.ndarray, "..."], origin: str) -> Num[np.ndarray, "s c h w"]:
    """Return images as [s, c, h, w], or raise InputError if the order of the axes is unclear."""
    shape = array.shape
    wanted = "save images as [n, h, w, c], [n, c, h, w] or [n, h, w], c 1 or 3"
    if array.dtype.kind not in "biuf":
        raise InputError(f"data holds '{origin}' of {array.dtype}, which are not numbers: save it as numbers")
    if array.ndim == 3 and shape[-1] not in (1, 3) and 0 not in shape:
        return array[:, None]
    if array.ndim != 4 or 0 in shape:
        raise InputError(f"data holds '{origin}' of shape {list(shape)}: {wanted}")
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        unclear = "may be [n, h, w, c] or [n, c, h, w]" if first else "has neither 1 nor 3 channels"
        raise InputError(f"data holds '{origin}' of shape {list(shape)}, which {unclear}: {wanted}")
    return array if first else np.moveaxis(array, -1, 1)


def _range(array: Num[np.ndarray, "s c h w"], origin: str) -> tuple[float, float, tuple[str, ...]]:
    """Return the factor and shift to 0 to 255, and how the values were read; raises InputError if their range is ambiguous."""
    if array.dtype.kind == "b":
        return 255, 0, ()
    low, high = float(array.min()), float(array.max())
    values = f"data holds '{origin}', whose values go from {low:g} to {high:g}"
    whole = array.dtype.kind in "iu" or (high > 1 and all(bool((part == np.floor(part)).all()) for part in array))
    if whole and low >= 0 and 1 < high <= 255:
        return 1, 0, () if array.dtype.kind in "iu" else (f"{values} and are read as 0 to 255",)
    if array.dtype.kind == "f" and low >= -1 and _BRIGHT < high <= 1:
        if low >= 0:
            return 255, 0, (f"{values} and are read as [0, 1]",)
        if low < -_BRIGHT:
            return 127.5, 127.5, (f"{values} and are read as [-1, 1]",)
    raise InputError(f"{values}: save images as uint8 from 0 to 255, or as floats in [0, 1] or [-1, 1]")


def _texts(labels: np.ndarray) -> list[str]:
    """Return labels as texts. Bytes that are not UTF-8 are escaped, which keeps the classes apart."""
    return (np.char.decode(labels, "utf-8", "backslashreplace") if labels.dtype.kind == "S" else labels.astype(str)).tolist()


def _one_each(labels: np.ndarray, origin: str, count: int) -> tuple[np.ndarray | None, str]:
    """Return one label per image, also from one-hot rows; otherwise None and the reason."""
    if len(labels.shape) == 0 or len(labels) != count:
        found = labels.shape[0] if labels.shape else 1
        raise InputError(f"data holds '{origin}' with {found} labels for {count} images: take both from one place")
    if math.prod(labels.shape[1:]) == 1:
        flat = labels.reshape(-1)
    elif (
        labels.ndim == 2
        and labels.dtype.kind in "biuf"
        and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
    ):
        flat = labels.argmax(1)
    else:
        return None, f"labels of '{origin}' are of shape {list(labels.shape)}, not one class for each image, and are left out"
    if flat.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = flat.astype(np.int64)
        if not bool((whole == flat).all()):
            return None, f"labels of '{origin}' are not whole numbers, and are left out"
        return whole, ""
    return flat, ""
