"""What every reader offers, and what it returns.

Shapes: s samples, c channels, h height, w width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Int, UInt8
from torch import Tensor

from drifting.errors import InputError


class EncodedImage(NamedTuple):
    """An image file, or its bytes, and where it came from (for messages)."""

    content: bytes | Path
    origin: str


class Split(NamedTuple):
    """One split as it was stored: images still encoded, or pixels; labels as they stand, not yet checked."""

    images: Sequence[EncodedImage] | UInt8[Tensor, "s c h w"]
    labels: Int[Tensor, " s"] | None
    class_names: tuple[str, ...] | None


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


def damaged(origin: Path | str, reason: object) -> InputError:
    """Return the error for a file that cannot be read."""
    return InputError(f"data holds '{origin}', which is truncated or corrupted ({reason}): fetch or write that file again")
