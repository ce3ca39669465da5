"""Parquet files as Hugging Face writes them: `<split>-00000-of-00001.parquet`, in folders of splits, or one file of any name."""

import re
from collections.abc import Iterator
from pathlib import Path

from drifting._checks import check_memory
from drifting._lazy import install_hint
from drifting.data.readers.base import Split, damaged, files_below, folders_in, split_name
from drifting.data.readers.tables import Table, checked_table, from_tables, needed_columns
from drifting.errors import InputError

LAYOUT = "parquet files (train-*.parquet, train/*.parquet, or one file)"
_SUFFIX = ".parquet"
# Describes image files beside it.
_METADATA = "metadata.parquet"
# Memory of a row in Python without its image, in bytes.
_BYTES_PER_ROW = 200


def matches(folder: Path) -> bool:
    """Return whether this is a parquet file, or a folder that holds some, directly or in folders of splits."""
    return bool(_files(folder))


def splits(folder: Path) -> list[str]:
    """Return the splits that the names of files or folders tell."""
    return list(_by_split(folder))


def read(folder: Path, split: str) -> Split:
    """Read one split, its files in the order of their names."""
    by_split = _by_split(folder)
    files = by_split[split]
    total = re.search(r"-of-(\d+)\.parquet", files[0].name)
    if total and not folder.is_file() and len(files) != int(total[1]):
        raise InputError(f"data holds {len(files)} of the {int(total[1])} files like '{files[0]}': fetch the others too")

    def everywhere(column: str) -> Iterator[Table]:
        for paths in by_split.values():
            yield from (_table(path, [column]) for path in paths)

    base = folder.parent if folder.is_file() else folder
    return from_tables([_table(path) for path in files], find=files_below([base]), everywhere=everywhere)


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder] if folder.suffix == _SUFFIX else []
    places = [folder, *(place for place in folders_in(folder) if split_name(place.name))]
    found = (path for place in places for path in sorted(place.glob(f"*{_SUFFIX}")))
    return [path for path in found if path.name != _METADATA and not path.name.startswith(".") and path.is_file()]


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Return split -> files; files whose names tell none are "train", if they are parts of one table."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        found.setdefault(path.parent.name if path.parent != folder and folder.is_dir() else _key(path.stem), []).append(path)
    if folder.is_file() or (len(found) == 1 and not any(map(split_name, found))):
        return {"train": [path for paths in found.values() for path in paths]}
    if not any(map(split_name, found)):
        names = " and ".join(f"'{paths[0].name}'" for paths in list(found.values())[:2])
        fix = f"name them train-0{_SUFFIX}, test-0{_SUFFIX} and so on, or pass one of them as --data"
        raise InputError(f"data is '{folder}', where {names} do not tell which split they are: {fix}")
    return found


def _key(stem: str) -> str:
    """Return the split that is a word of a name, or else what stands before the number of a part."""
    words = [word for word in re.split(r"[-_. ]+", stem) if split_name(word)]
    return words[0] if len(words) == 1 else re.sub(r"[-_.]?\d*$", "", stem.split("-", maxsplit=1)[0])


def _table(path: Path, columns: list[str] | None = None) -> Table:
    """Read the columns of images and classes of a file, or others."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"data holds '{path}', which needs pyarrow: {install_hint('images')}") from None
    try:
        with pq.ParquetFile(path) as file:
            taken = needed_columns(file.schema_arrow, str(path)) if columns is None else columns
            _check_size(file.metadata, path)
            return checked_table(file.read(taken), str(path))
    except InputError:  # which is a ValueError
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, error) from None


def _check_size(metadata: "object", path: Path) -> None:
    """Raise InputError unless there is memory for what the head of the file declares."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]  # pyright: ignore[reportAttributeAccessIssue]
    rows = sum(group.num_rows for group in groups)
    need = sum(group.total_byte_size for group in groups) + _BYTES_PER_ROW * rows
    check_memory(need, f"data holds '{path}', whose {rows:,} rows", "keep fewer rows")
