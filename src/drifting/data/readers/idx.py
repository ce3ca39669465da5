"""IDX files, raw or gzipped: how MNIST and Fashion-MNIST were first published.

Source: http://yann.lecun.com/exdb/mnist: two zero bytes, 8 for unsigned bytes, the number of axes, the big-endian size of each,
then the values in C order.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from drifting.data.readers.base import Split, damaged
from drifting.errors import InputError

LAYOUT = "IDX files (train-images-idx3-ubyte[.gz])"
_STEMS = {"train": "train", "test": "t10k"}


def matches(folder: Path) -> bool:
    """Return whether the folder holds IDX images."""
    return bool(splits(folder))


def splits(folder: Path) -> list[str]:
    """Return the splits whose images are there."""
    return [split for split in _STEMS if _find(folder, split, "images", 3)]


def read(folder: Path, split: str) -> Split:
    """Read one split; labels are None where their file is missing."""
    images_path, labels_path = _find(folder, split, "images", 3), _find(folder, split, "labels", 1)
    if images_path is None:
        raise InputError(f"data is '{folder}', which has no IDX images of the split '{split}': add that file")
    images = _array(images_path, 3)[:, None]
    labels = None if labels_path is None else _array(labels_path, 1).long()
    if labels is not None and len(labels) != len(images):
        raise InputError(
            f"data holds '{labels_path}' with {len(labels)} labels for {len(images)} images: take both files from one place"
        )
    return Split(images, labels, None)


def _find(folder: Path, split: str, part: str, axes: int) -> Path | None:
    """Return the raw file if there is one, else the gzipped one. Some copies are named train-images.idx3-ubyte."""
    stem = f"{_STEMS[split]}-{part}"
    names = [f"{stem}{dot}idx{axes}-ubyte{suffix}" for suffix in ("", ".gz") for dot in "-."]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _array(path: Path, axes: int) -> UInt8[Tensor, "..."]:
    """Return the unsigned bytes of a file of that many axes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        *magic, found = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise damaged(path, error) from None
    if magic != [0, 8] or found != axes:
        raise damaged(path, f"it does not begin as unsigned bytes in {axes} axes")
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(body) != math.prod(shape):
        raise damaged(path, f"{len(body)} values where its head says {math.prod(shape)}")
    return torch.from_numpy(body.reshape(shape).copy())
