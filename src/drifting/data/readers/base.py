"""What every reader offers, and what it returns.

Shapes: s samples, c channels, h height, w width.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Int, UInt8
from torch import Tensor

from drifting.errors import InputError

# Usual names of splits and of their folders, in any case, such as Training, test_set or val-images.
_SPLITS = {"train": "train|training", "test": "test|testing", "val": "val|valid|validation|dev"}
_PART_OF_A_SPLIT = "[ _-]?(set|data|images|imgs|split)?"
# Names of the column of classes in tables, the first of which is taken.
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "category", "coarse_label")


class EncodedImage(NamedTuple):
    """An image file, or its bytes, and where it came from (for messages)."""

    content: bytes | Path
    origin: str


class Split(NamedTuple):
    """One split as it was stored.

    Attributes:
        images: still encoded, or pixels.
        labels: as they stand, not yet checked.
        class_names: of each label, where they are known.
        left_out: what is there and is not used, in a few words each.
        doubts: sentences on what may not be as its owner means it.
    """

    images: Sequence[EncodedImage] | UInt8[Tensor, "s c h w"]
    labels: Int[Tensor, " s"] | None
    class_names: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@runtime_checkable
class Reader(Protocol):
    """A layout of files; a module with these names is one. `folder` may be a Hub id for the Hub's reader."""

    @property
    def LAYOUT(self) -> str:
        """Describe what the reader looks for, in a few words."""
        ...

    def matches(self, folder: Path) -> bool:
        """Return whether the folder has this layout; looks at names only."""
        ...

    def splits(self, folder: Path) -> Sequence[str]:
        """Return the names of the splits there."""
        ...

    def read(self, folder: Path, split: str) -> Split:
        """Return one of those splits; raises InputError naming a damaged file."""
        ...


def split_name(name: str) -> str | None:
    """Return the split that this usually is the name of, "train", "test" or "val"; None for any other name."""
    return next((split for split, words in _SPLITS.items() if re.fullmatch(f"({words}){_PART_OF_A_SPLIT}", name.lower())), None)


def shown_name(name: str) -> str:
    """Return a name of a file or class as any terminal, file and picture can show it: without bytes or signs that are no text."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def by_number(name: str) -> tuple[tuple[int | str, ...], str]:
    """Return a key that sorts names as people count: "2" before "10", "class 9" before "class 10"."""
    if re.fullmatch(r"-\d+", name):
        return ("", int(name)), name
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), name


def damaged(origin: Path | str, reason: object) -> InputError:
    """Return the error for a file that cannot be read."""
    told = " ".join(str(reason).split())[:120]
    return InputError(f"data holds '{origin}', which is truncated or corrupted ({told}): fetch or write that file again")
