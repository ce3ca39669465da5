"""IDX files, raw or gzipped, the original format of MNIST and Fashion-MNIST.

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

from drifting._checks import check_memory
from drifting.data.readers.base import Split, damaged
from drifting.errors import InputError

LAYOUT = "IDX files (train-images-idx3-ubyte[.gz])"
_STEMS = {"train": "train", "test": "t10k"}
# Largest compression factor of gzip.
_MOST_RATIO = 1032


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
    """Return the unsigned bytes of a file with this many axes, reading and unpacking only as much as its header declares."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            *magic, found = struct.unpack_from(">HBB", head)
            shape = struct.unpack_from(f">{axes}I", head, 4)
            if magic != [0, 8] or found != axes:
                raise damaged(path, f"it does not begin as unsigned bytes in {axes} axes")
            size = math.prod(shape)
            if size > _MOST_RATIO * path.stat().st_size:
                raise damaged(path, f"its head declares {size:,} values, more than a file of this length can hold")
            check_memory(size, f"data holds '{path}', whose {size:,} values", "keep fewer images")
            body = np.frombuffer(file.read(size + 1), np.uint8)
    except InputError:  # which is a ValueError
        raise
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise damaged(path, error) from None
    if len(body) != size:
        raise damaged(path, f"{len(body)}{' or more' * (len(body) > size)} values where its head says {size}")
    return torch.from_numpy(body.reshape(shape).copy())
