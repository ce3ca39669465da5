"""Data sets of the Hugging Face Hub, by the `datasets` library, which keeps them in its own cache."""

import re
from pathlib import Path
from typing import Any

from drifting.data.readers.base import Split
from drifting.data.readers.parquet import from_tables
from drifting.errors import InputError

LAYOUT = "a Hub id (owner/name)"
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def matches(folder: Path) -> bool:
    """Return whether the "folder" is the id of a data set on the Hub: owner/name, and no path that exists."""
    return _ID.fullmatch(folder.as_posix()) is not None and not folder.exists()


def splits(folder: Path) -> list[str]:
    """Return the splits of the data set, which is downloaded on first use."""
    return list(_load(folder))


def read(folder: Path, split: str) -> Split:
    """Read one split; the images stay encoded."""
    return from_tables([(_load(folder)[split].with_format("arrow")[:], f"{folder.as_posix()}, {split}")])


def _load(folder: Path) -> dict[str, Any]:
    """Return split -> data set."""
    mend = "pass --data FOLDER or set DRIFTING_DATA"
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"data is '{folder}', which needs the library datasets: pip install 'drifting[images]', or {mend}"
        ) from None
    try:
        return {str(split): rows for split, rows in datasets.load_dataset(folder.as_posix()).items()}
    except Exception as error:  # every layer below (HTTP, Hub, Arrow, builders) raises its own kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"data is '{folder}', which is no folder and could not be loaded from the Hugging Face Hub ({reason[:200]}): {mend}"
        ) from None
