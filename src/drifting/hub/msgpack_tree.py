"""The authors' file of weights: nested maps of names to arrays, as flax writes them with MessagePack.

An array is an extension of type 1 with (shape, name of the dtype, bytes). Reading a file only finds the position of each array; its
bytes are read when they are needed. Only maps and arrays of real numbers are accepted.

Source: the format of flax.serialization.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import torch
from torch import Tensor

from drifting._files import atomic_path
from drifting.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ARRAY = 1

# Deepest nesting and longest name or map, far above those of any file of the release.
_DEEPEST, _LONGEST = 32, 2**16


@dataclass(frozen=True)
class Array:
    """The position of an array in a file.

    Attributes:
        path: path of the file.
        start: position of the first byte.
        dtype: dtype of the entries.
        shape: shape in the file.
    """

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Read the array into new memory."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.start)
            if tensor.numel() and file.readinto(as_bytes(tensor)) != tensor.nbytes:
                raise _refused(self.path, "became shorter while it was read")
        return tensor


def read_tree(path: Path) -> dict[str, Array]:
    """Return the positions of the arrays in a file, by their names joined with "/".

    Raises:
        InputError: if the file is missing, truncated or longer than its tree, or holds anything but maps and real arrays.
    """
    if not path.is_file():
        raise InputError(f"weights is '{path}', which is not a file: name the folder of an artifact, or download it again")
    with ExitStack() as open_files:
        try:
            return _Walk(path, *(open_files.enter_context(path.open("rb")) for _ in range(2))).everything()
        except msgpack.OutOfData:
            raise _refused(path, "is truncated") from None
        except InputError:
            raise
        # The library raises errors of several classes for bytes that are not in its format.
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise _refused(path, f"is not MessagePack of maps and arrays ({str(error)[:80] or type(error).__name__})") from None


def write_tree(path: Path, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
    """Write arrays as a tree, names in order as flax has them, one array in memory at a time; atomically.

    Args:
        path: path of the file.
        names: names of the arrays, joined with "/".
        read: returns an array by its name.
    """
    tree: dict[str, Any] = {}
    for name in names:
        *branches, leaf = name.split("/")
        branch = tree
        for part in branches:
            branch = branch.setdefault(part, {})
        branch[leaf] = name
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        _write(file, msgpack.Packer(), tree, read)


def _write(file: BinaryIO, packer: msgpack.Packer, branch: dict[str, Any], read: Callable[[str], Tensor]) -> None:
    file.write(packer.pack_map_header(len(branch)))
    for name in sorted(branch):
        file.write(packer.pack(name))
        if isinstance(branch[name], dict):
            _write(file, packer, branch[name], read)
        else:
            array = read(branch[name]).contiguous()
            content = packer.pack((tuple(array.shape), _NAMES[array.dtype], bytes(as_bytes(array))))
            file.write(packer.pack(msgpack.ExtType(_ARRAY, content)))


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, sharing its memory."""
    # numpy has no bfloat16.
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class _Found:
    """An extension: an array, or a description of its fault."""

    wrong: str = ""
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()
    count: int = 0


def _extension(code: int, data: bytes) -> _Found:
    if code != _ARRAY:
        return _Found(f"an extension of type {code}")
    try:
        shape, name, content = msgpack.unpackb(data)
        if not all(type(side) is int and side >= 0 for side in shape) or not isinstance(content, bytes):
            return _Found("an array without a shape, or without bytes")
    except (ValueError, TypeError, msgpack.UnpackException):
        return _Found("a damaged array")
    if not isinstance(name, str) or name not in DTYPES:
        return _Found(f"an array of {str(name)[:20]}, which is none of {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    if len(content) != math.prod(shape) * dtype.itemsize:
        return _Found(f"{len(content)} bytes for {name} of shape {tuple(shape)}")
    return _Found("", dtype, tuple(shape), len(content))


class _Walk:
    """Read a file map by map. It is open twice, because the library reads ahead of its position."""

    def __init__(self, path: Path, ahead: BinaryIO, here: BinaryIO) -> None:
        self.path, self.here = path, here
        # Sizes in the file are not trusted: a list of a few bytes can claim billions of values.
        lengths = {"max_array_len": _LONGEST, "max_map_len": _LONGEST, "max_str_len": _LONGEST}
        self.unpacker = msgpack.Unpacker(ahead, ext_hook=_extension, max_buffer_size=0, **lengths)

    def everything(self) -> dict[str, Array]:
        """Return all arrays, or raise InputError or one of the library's errors."""
        if not self._at_map():
            raise _refused(self.path, "does not hold a map of arrays" if self.path.stat().st_size else "is empty")
        arrays = dict(self._arrays("", 0))
        spare = self.path.stat().st_size - self.unpacker.tell()
        if spare:
            raise _refused(self.path, f"has {spare} bytes after its end")
        return arrays

    def _arrays(self, prefix: str, depth: int) -> Iterator[tuple[str, Array]]:
        if depth > _DEEPEST:
            raise _refused(self.path, f"nests maps more than {_DEEPEST} deep")
        names: set[str] = set()
        for _ in range(self.unpacker.read_map_header()):
            name = self.unpacker.unpack()
            if not isinstance(name, str) or not name or "/" in name or name in names:
                raise _refused(self.path, f"has the name {str(name)[:40]!r} under '{prefix}', which is repeated or no plain text")
            names.add(name)
            if self._at_map():
                yield from self._arrays(f"{prefix}{name}/", depth + 1)
            else:
                yield f"{prefix}{name}", self._array(f"{prefix}{name}")

    def _array(self, name: str) -> Array:
        value = self.unpacker.unpack()
        found = value if isinstance(value, _Found) else _Found(f"a {type(value).__name__}")
        if found.wrong:
            raise _refused(self.path, f"holds {found.wrong} under '{name}'")
        # The bytes of an array are at its end.
        return Array(self.path, self.unpacker.tell() - found.count, found.dtype, found.shape)

    def _at_map(self) -> bool:
        self.here.seek(self.unpacker.tell())
        first = self.here.read(1)
        return bool(first) and (0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF))


def _refused(path: Path, why: str) -> InputError:
    return InputError(f"weights is '{path}', which {why}: download or convert it again")
