"""Data sets of the Hugging Face Hub, read with the library `datasets`, which has a cache of its own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from drifting._lazy import install_hint
from drifting.data.readers.base import Split, files_below
from drifting.data.readers.tables import Table, from_tables
from drifting.errors import InputError

LAYOUT = "a Hub id (owner/name)"
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PATIENCE = 10  # seconds, for one answer of the Hub


def matches(folder: Path) -> bool:
    """Return whether the "folder" is the id of a data set on the Hub: owner/name, and no path here, nor one in a folder that is."""
    return _ID.fullmatch(folder.as_posix()) is not None and not folder.exists() and not folder.parent.exists()


def splits(folder: Path) -> list[str]:
    """Return the splits of the data set, which is downloaded on first use."""
    return list(_load(folder))


def read(folder: Path, split: str) -> Split:
    """Read one split; the images stay encoded."""
    from datasets import config
    from huggingface_hub import constants

    parts = _load(folder)
    tables = {name: Table(rows.with_format("arrow")[:], f"{folder.as_posix()}, {name}") for name, rows in parts.items()}
    # Rows may stand for files that were downloaded with them.
    find = files_below([Path(config.HF_CACHE_HOME), Path(constants.HF_HUB_CACHE)])
    return from_tables([tables[split]], find=find, everywhere=lambda column: tables.values())


def _load(folder: Path) -> dict[str, Any]:
    """Return split -> data set."""
    fix = "pass --data FOLDER or set DRIFTING_DATA"
    try:
        import datasets
    except ImportError:
        raise InputError(f"data is '{folder}', which needs the library datasets: {install_hint('images')}, or {fix}") from None
    silence = _unanswered(folder.as_posix())
    try:
        with nullcontext() if silence is None else _offline():
            return {str(split): rows for split, rows in datasets.load_dataset(folder.as_posix()).items()}
    except Exception as error:  # every layer below (HTTP, Hub, Arrow, builders) raises its own kinds
        reason = " ".join(str(silence or error).split()) or type(error).__name__
        where = "which is no folder here and could not be loaded from the Hugging Face Hub"
        raise InputError(f"data is '{folder}', {where} ({reason[:120]}): {fix}") from None


def _unanswered(name: str) -> Exception | None:
    """Return the error of one request to the Hub about a data set, or None if it answers.

    Without a network, the library itself would retry for half a minute.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_PATIENCE)
    except Exception as error:  # every layer below raises its own kinds
        return error
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """Make the libraries look only in their caches."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
