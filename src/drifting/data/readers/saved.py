"""Folders that `save_to_disk` of the `datasets` library wrote, of a Dataset or of a DatasetDict, and such objects themselves."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drifting._checks import check_memory
from drifting._lazy import install_hint
from drifting.data.readers.base import Split, damaged, files_below
from drifting.data.readers.tables import Table, checked_table, from_tables
from drifting.errors import InputError

LAYOUT = "a folder of datasets.save_to_disk"
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def matches(folder: Path) -> bool:
    """Return whether the folder is one data set, or one for each split."""
    return (folder / _SPLITS).is_file() or (folder / _STATE).is_file()


def splits(folder: Path) -> list[str]:
    """Return the splits; the only data set is "train"."""
    return list(_places(folder))


def read(folder: Path, split: str) -> Split:
    """Read one split."""
    places = _places(folder)

    def everywhere(column: str) -> Iterator[Table]:
        del column
        for place in places.values():
            yield from _tables(place)

    return from_tables(_tables(places[split]), find=files_below([folder]), everywhere=everywhere)


def _places(folder: Path) -> dict[str, Path]:
    if not (folder / _SPLITS).is_file():
        return {"train": folder}
    names = _json(folder / _SPLITS).get("splits")
    if not isinstance(names, list) or not names:
        raise damaged(folder / _SPLITS, "it names no splits")
    missing = [name for name in names if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_dir()]
    if missing:
        raise InputError(f"data holds '{folder / _SPLITS}', which names '{missing[0]}', no folder beside it: bring it back")
    return {name: folder / name for name in names}


def _tables(place: Path) -> list[Table]:
    """Return the tables of one data set, read from its files."""
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(f"data holds '{place}', which needs pyarrow: {install_hint('images')}") from None
    entries = _json(place / _STATE).get("_data_files")
    if not isinstance(entries, list) or not entries:
        raise damaged(place / _STATE, "it names no files of data")
    find, tables = files_below([place]), []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        path = find(str(name), str(place / _STATE))
        try:
            check_memory(2 * path.stat().st_size, f"data holds '{path}', whose rows", "keep fewer rows")
            with pa.OSFile(str(path)) as file:
                tables.append(checked_table(pa.ipc.open_stream(file).read_all(), str(path)))
        except InputError:  # which is a ValueError
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(path, error) from None
    return tables


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise damaged(path, "it holds no names with values")
    return content


class Given:
    """A reader of a `datasets.Dataset`, whose only split is "train", or of a `datasets.DatasetDict`.

    Its rows may name any regular file: the object was made in this process, by whoever passes it.
    """

    LAYOUT = "a datasets.Dataset or datasets.DatasetDict"

    def __init__(self, source: Any) -> None:
        parts = source if isinstance(source, Mapping) else {"train": source}
        if not parts or not all(hasattr(part, "with_format") and hasattr(part, "__len__") for part in parts.values()):
            kind = type(source).__name__
            raise InputError(f"source is a {kind}: pass a folder, a Hub id, a datasets.Dataset or a datasets.DatasetDict")
        self._parts = {str(name): part for name, part in parts.items()}
        self.name = Path(type(source).__name__)

    def matches(self, folder: Path) -> bool:
        """Return True: there is nothing to look for."""
        return folder == self.name

    def splits(self, folder: Path) -> list[str]:
        """Return the names of the data sets."""
        del folder
        return list(self._parts)

    def read(self, folder: Path, split: str) -> Split:
        """Return one of them, its images still encoded."""
        everywhere = (self._table(name, folder) for name in self._parts)
        find = files_below([Path.cwd(), Path(os.sep)])
        return from_tables([self._table(split, folder)], find=find, everywhere=lambda column: everywhere)

    def _table(self, split: str, folder: Path) -> Table:
        return Table(self._parts[split].with_format("arrow")[:], f"{folder}, {split}")
