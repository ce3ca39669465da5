"""Readers of image data sets. This module has their interface and what they share; `find` chooses the reader of a path.

Shapes: s samples, c channels, h height, w width.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from drifting.errors import InputError

# Usual names of splits and of their folders, in any case, such as Training, test_set or val-images.
_SPLITS = {"train": "train|training", "test": "test|testing", "val": "val|valid|validation|dev"}
_PART_OF_A_SPLIT = "[ _-]?(set|data|images|imgs|split)?"
# Names of the column of classes in tables, in any case; the first of these is taken.
LABEL_COLUMNS = (
    *("label", "fine_label", "labels", "class", "category", "target", "targets", "class_label", "class_name", "label_name"),
    *("y", "coarse_label"),
)
# Most names in a message.
MOST_NAMES = 3
_LFS_POINTER = b"version https://git-lfs"


class EncodedImage(NamedTuple):
    """An image file, or its bytes, and where it came from (for messages)."""

    content: bytes | Path
    origin: str


class Split(NamedTuple):
    """One split as it was stored.

    Attributes:
        images: encoded images, or pixels.
        labels: labels as stored, not yet checked.
        class_names: name of each label, if known.
        left_out: unused content, in a few words each.
        doubts: sentences about possible problems.
    """

    images: Sequence[EncodedImage] | UInt8[Tensor, "s c h w"]
    labels: Int[Tensor, " s"] | None
    class_names: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class Reader(ABC):
    """A reader of one layout of files. The `path` of a reader is a folder or a file; that of `tables.Hub` is a Hub id."""

    def matches(self, path: Path) -> bool:
        """Return whether there are images in this layout; looks at names only."""
        return bool(self.splits(path))

    @abstractmethod
    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits."""

    @abstractmethod
    def read(self, path: Path, split: str) -> Split:
        """Return one of these splits; raises InputError naming a damaged file."""


def split_name(name: str) -> str | None:
    """Return the split "train", "test" or "val" that usually has this name; None for any other name."""
    return next((split for split, words in _SPLITS.items() if re.fullmatch(f"({words}){_PART_OF_A_SPLIT}", name.lower())), None)


def shown_name(name: str) -> str:
    """Return the name of a file or class as printable text, for terminals, files and pictures."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def quoted(names: Sequence[str]) -> str:
    """Return the first names in quotes, for messages."""
    return ", ".join(f"'{name}'" for name in names[:MOST_NAMES]) + ", ..." * (len(names) > MOST_NAMES)


def by_number(name: str) -> tuple[tuple[int | str, ...], str]:
    """Return a key that sorts names by the numbers in them: "2" before "10", "class 9" before "class 10".

    Digits are read in base 16, which keeps their order, because Python reads no decimal number of more than 4300 digits.
    """
    if re.fullmatch(r"-\d+", name):
        return ("", int(name, 16)), name
    parts = re.split(r"(\d+)", name)
    return tuple(int(part, 16) if index % 2 else part for index, part in enumerate(parts)), name


def files_below(bases: Sequence[Path]) -> Callable[[str, str], Path]:
    """Return a function (name, origin) -> file that resolves a name in the data relative to the first folder.

    Data from elsewhere can name any file of this machine, so the function raises InputError unless the name, with links resolved,
    is a regular file inside one of the folders.
    """
    real = [base.resolve() for base in bases]

    def find(name: str, origin: str) -> Path:
        with suppress(OSError, ValueError, RuntimeError):  # a loop of links, a null character
            path = (bases[0] / name).resolve()
            if any(path.is_relative_to(base) for base in real) and path.is_file():
                return path
        fix = "copy the images there and name them from there"
        raise InputError(f"data holds '{origin}', which names '{name[:60]}', no regular file below '{bases[0]}': {fix}")

    return find


def folders_in(place: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted, except hidden ones and those of macOS; none if the folder is missing."""
    with suppress(OSError):
        return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    return []


def label_column(names: Iterable[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of the classes or None, and descriptions of the other columns that could hold classes."""
    known = {name.lower(): name for name in reversed(list(names))}
    taken, *others = [known[name] for name in LABEL_COLUMNS if name in known] or [None]
    return taken, tuple(f"the column '{name}' (classes are those of '{taken}')" for name in others)


def numbered(values: Iterable[str], everywhere: Iterable[str]) -> tuple[Int[Tensor, " s"], tuple[str, ...]]:
    """Return class names as labels, numbered over all splits, and the sorted names."""
    names = tuple(sorted(set(everywhere), key=by_number))
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[value] for value in values], dtype=torch.long), names


def damaged(origin: Path | str, reason: object) -> InputError:
    """Return the error for a file that cannot be read."""
    with suppress(OSError, ValueError), Path(origin).open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return InputError(f"data holds '{origin}', which only points to a file of Git LFS: run git lfs pull in its repository")
    cause = " ".join(str(reason).split())[:120]
    return InputError(f"data holds '{origin}', which is truncated or corrupted ({cause}): fetch or write that file again")


@contextmanager
def parsing(origin: Path | str) -> Iterator[None]:
    """Turn errors of a parser into the error for a damaged file. The bytes of such a file can raise nearly any type."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise damaged(origin, error) from None
