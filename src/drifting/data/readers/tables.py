"""Arrow tables: parquet files, folders of `datasets.save_to_disk`, data sets of the Hugging Face Hub, and such objects themselves.

A table has a column of encoded images, and one of classes by number or by name.
"""

import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from drifting._checks import check_memory
from drifting._extras import install_hint
from drifting.data.readers import (
    LABEL_COLUMNS,
    EncodedImage,
    Reader,
    Split,
    damaged,
    files_below,
    folders_in,
    label_column,
    numbered,
    parsing,
    split_name,
)
from drifting.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET = ".parquet"
# Describes image files beside it.
_METADATA = "metadata.parquet"
# Memory of a row in Python without its image, in bytes.
_BYTES_PER_ROW = 200
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_TIMEOUT = 10  # seconds

# Returns the file of an image that a row names in place of its bytes, see `files_below`.
FindFile = Callable[[str, str], Path]


class Table(NamedTuple):
    """Rows, and where they are from (for messages)."""

    rows: "pa.Table"
    origin: str


class Parquet(Reader):
    """Parquet files as Hugging Face writes them, directly in a folder or in folders of splits, or one file of any name."""

    def matches(self, path: Path) -> bool:
        """Return whether this is a parquet file, or a folder that holds some."""
        return bool(_parquet_files(path))

    def splits(self, path: Path) -> list[str]:
        """Return the splits in the names of files or folders."""
        return list(_parquet_splits(path))

    def read(self, path: Path, split: str) -> Split:
        """Read one split, its files in the order of their names."""
        by_split = _parquet_splits(path)
        files = by_split[split]
        total = re.search(r"-of-(\d+)\.parquet", files[0].name)
        if total and not path.is_file() and len(files) != int(total[1]):
            raise InputError(f"data holds {len(files)} of the {int(total[1])} files like '{files[0]}': fetch the others too")

        def all_splits(column: str) -> Iterator[Table]:
            for paths in by_split.values():
                yield from (_parquet_table(file, [column]) for file in paths)

        find = files_below([path.parent if path.is_file() else path])
        return _to_split([_parquet_table(file) for file in files], find, all_splits)


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == _PARQUET else []
    places = [path, *(place for place in folders_in(path) if split_name(place.name))]
    files = (file for place in places for file in sorted(place.glob(f"*{_PARQUET}")))
    return [file for file in files if file.name != _METADATA and not file.name.startswith(".") and file.is_file()]


def _parquet_splits(path: Path) -> dict[str, list[Path]]:
    """Return split -> files. Files without the name of a split are "train", if they are parts of one table."""
    groups: dict[str, list[Path]] = {}
    for file in _parquet_files(path):
        groups.setdefault(file.parent.name if file.parent != path and path.is_dir() else _group(file.stem), []).append(file)
    if path.is_file() or (len(groups) == 1 and not any(map(split_name, groups))):
        return {"train": [file for files in groups.values() for file in files]}
    if not any(map(split_name, groups)):
        names = " and ".join(f"'{files[0].name}'" for files in list(groups.values())[:2])
        fix = f"name them train-0{_PARQUET}, test-0{_PARQUET} and so on, or pass one of them as --data"
        raise InputError(f"data is '{path}', where {names} do not tell which split they are: {fix}")
    return groups


def _group(stem: str) -> str:
    """Return the split that is a word of a name, or else what stands before the number of a part."""
    words = [word for word in re.split(r"[-_. ]+", stem) if split_name(word)]
    return words[0] if len(words) == 1 else re.sub(r"[-_.]?\d*$", "", stem.split("-", maxsplit=1)[0])


def _parquet_table(path: Path, columns: list[str] | None = None) -> Table:
    """Read the given columns of a file, by default those of images and classes."""
    with _arrow_errors(path):
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            columns = columns or _needed_columns(file.schema_arrow, str(path))
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            rows = sum(group.num_rows for group in groups)
            need = sum(group.total_byte_size for group in groups) + _BYTES_PER_ROW * rows
            check_memory(need, f"data holds '{path}', whose {rows:,} rows", "keep fewer rows")
            return _checked(file.read(columns), path)


class SavedTables(Reader):
    """Folders that `save_to_disk` of the `datasets` library wrote, of a Dataset or of a DatasetDict."""

    def matches(self, path: Path) -> bool:
        """Return whether the folder is one data set, or one for each split."""
        return (path / _SPLITS).is_file() or (path / _STATE).is_file()

    def splits(self, path: Path) -> list[str]:
        """Return the splits; a Dataset is "train"."""
        return list(_saved_folders(path))

    def read(self, path: Path, split: str) -> Split:
        """Read one split."""
        folders = _saved_folders(path)
        all_splits = (table for folder in folders.values() for table in _saved_tables(folder))
        return _to_split(_saved_tables(folders[split]), files_below([path]), lambda _: all_splits)


def _saved_folders(path: Path) -> dict[str, Path]:
    """Return split -> folder."""
    if not (path / _SPLITS).is_file():
        return {"train": path}
    names = _read_json(path / _SPLITS).get("splits")
    if not isinstance(names, list) or not names:
        raise damaged(path / _SPLITS, "it names no splits")
    missing = [name for name in names if not isinstance(name, str) or Path(name).name != name or not (path / name).is_dir()]
    if missing:
        raise InputError(f"data holds '{path / _SPLITS}', which names '{missing[0]}', no folder beside it: bring it back")
    return {name: path / name for name in names}


def _saved_tables(folder: Path) -> list[Table]:
    """Return the tables of one data set, read from its files."""
    entries = _read_json(folder / _STATE).get("_data_files")
    if not isinstance(entries, list) or not entries:
        raise damaged(folder / _STATE, "it names no files of data")
    find, tables = files_below([folder]), []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        path = find(str(name), str(folder / _STATE))
        check_memory(2 * path.stat().st_size, f"data holds '{path}', whose rows", "keep fewer rows")
        with _arrow_errors(path):
            import pyarrow as pa

            with pa.OSFile(str(path)) as file:
                tables.append(_checked(pa.ipc.open_stream(file).read_all(), path))
    return tables


def _read_json(path: Path) -> dict[str, Any]:
    with parsing(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise damaged(path, "it holds no names with values")
    return content


class _Library(Reader):
    """Data sets of the `datasets` library, by split."""

    @abstractmethod
    def _datasets(self, path: Path) -> Mapping[str, Any]:
        """Return split -> data set."""

    @abstractmethod
    def _folders(self) -> list[Path]:
        """Return the folders whose files rows may name."""

    def splits(self, path: Path) -> list[str]:
        """Return the names of the data sets."""
        return list(self._datasets(path))

    def read(self, path: Path, split: str) -> Split:
        """Return one split, its images still encoded."""
        datasets = self._datasets(path)

        def table(name: str) -> Table:
            return Table(datasets[name].with_format("arrow")[:], f"{path.as_posix()}, {name}")

        return _to_split([table(split)], files_below(self._folders()), lambda _: map(table, datasets))


class DatasetObjects(_Library):
    """A `datasets.Dataset`, whose only split is "train", or a `datasets.DatasetDict`.

    Its rows may name any regular file, because the object was made in this process by whoever passes it.
    """

    def __init__(self, source: Any) -> None:
        parts = source if isinstance(source, Mapping) else {"train": source}
        if not parts or not all(hasattr(part, "with_format") and hasattr(part, "__len__") for part in parts.values()):
            fix = "pass a folder, a Hub id, a datasets.Dataset or a datasets.DatasetDict"
            raise InputError(f"source is a {type(source).__name__}: {fix}")
        self._parts = {str(name): part for name, part in parts.items()}
        self.name = Path(type(source).__name__)

    def _datasets(self, path: Path) -> Mapping[str, Any]:
        return self._parts

    def _folders(self) -> list[Path]:
        return [Path.cwd(), Path(os.sep)]


class Hub(_Library):
    """Data sets of the Hugging Face Hub, read and cached by the library `datasets`."""

    def matches(self, path: Path) -> bool:
        """Return whether the "path" is the id of a data set, owner/name, and neither it nor its parent is a path here."""
        return _HUB_ID.fullmatch(path.as_posix()) is not None and not any(map(os.path.exists, (path, path.parent)))

    def _datasets(self, path: Path) -> Mapping[str, Any]:
        """Return split -> data set, downloaded on first use."""
        fix = "pass --data FOLDER or set DRIFTING_DATA"
        try:
            import datasets
        except ImportError:
            raise InputError(f"data is '{path}', which needs the library datasets: {install_hint('images')}, or {fix}") from None
        failure = hub_failure(path.as_posix())
        try:
            with nullcontext() if failure is None else _offline():
                return {str(split): rows for split, rows in datasets.load_dataset(path.as_posix()).items()}
        except Exception as error:  # every layer below (HTTP, Hub, Arrow, builders) raises its own kinds
            reason = " ".join(str(failure or error).split()) or type(error).__name__
            where = "which is not a folder here and could not be loaded from the Hugging Face Hub"
            raise InputError(f"data is '{path}', {where} ({reason[:120]}): {fix}") from None

    def _folders(self) -> list[Path]:
        from datasets import config
        from huggingface_hub import constants

        # Rows may name files that were downloaded with them.
        return [Path(config.HF_CACHE_HOME), Path(constants.HF_HUB_CACHE)]


def hub_failure(name: str) -> Exception | None:
    """Return the error of one request to the Hub about a data set, or None if it answers.

    Without a network, the library itself would retry for half a minute.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_HUB_TIMEOUT)
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


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Turn errors while Arrow reads a file, or because it is not installed, into InputError."""
    with parsing(path):
        try:
            yield
        except ImportError:
            raise InputError(f"data holds '{path}', which needs pyarrow: {install_hint('images')}") from None


def _checked(rows: "pa.Table", path: Path) -> Table:
    """Return a table whose offsets and texts are all valid: Arrow itself would follow a damaged one to any place in memory."""
    rows.validate(full=True)
    return Table(rows, str(path))


def _to_split(tables: Sequence[Table], find: FindFile, all_splits: Callable[[str], Iterable[Table]]) -> Split:
    """Return the images of tables, still encoded, and their labels.

    Args:
        tables: tables of one split.
        find: finds image files.
        all_splits: column -> tables of all splits with at least that column, from which names of classes are numbered.

    Raises:
        InputError: if there is no column of images, a row has none or names a file that may not be read, or classes are neither
            numbers nor texts.
    """
    images, schema = [image for table in tables for image in _images(table, find)], tables[0].rows.schema
    column, others = label_column(schema.names)
    if column is None:
        return Split(images, None, None)
    labels = [_label_values(table, column) for table in tables]
    numbers = [values for values in labels if isinstance(values, Tensor)]
    if len(numbers) == len(labels):
        return Split(images, torch.cat(numbers), _class_names(schema, column), others)
    texts = [_as_texts(values) for values in labels]
    every_text = (text for table in all_splits(column) for text in _as_texts(_label_values(table, column)))
    by_name, names = numbered([text for part in texts for text in part], every_text)
    return Split(images, by_name, names, others)


def _needed_columns(schema: "pa.Schema", origin: str) -> list[str]:
    """Return the column of images, and all that may have the classes."""
    image = _image_column(schema, origin)
    return [image, *(name for name in schema.names if name.lower() in LABEL_COLUMNS and name != image)]


def _image_column(schema: "pa.Schema", origin: str) -> str:
    """Return the column of images: `image`, `img`, or the only one that holds bytes."""
    import pyarrow as pa

    def holds_bytes(kind: "pa.DataType") -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    candidates = [field.name for field in schema if holds_bytes(field.type)]
    preferred = [name for name in ("image", "img") if name in candidates] or candidates
    if len(preferred) == 1 or preferred[:1] == ["image"]:
        return preferred[0]
    columns = ", ".join(schema.names)[:100]
    raise InputError(f"data holds '{origin}', whose columns are {columns}: name the one of encoded images 'image'")


def _images(table: Table, find: FindFile) -> Iterator[EncodedImage]:
    """Yield the image of each row: its bytes, or the file that the row names."""
    for index, row in enumerate(table.rows.column(_image_column(table.rows.schema, table.origin)).to_pylist()):
        origin = f"{table.origin}, row {index}"
        content, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
        if not isinstance(content, bytes):
            if not isinstance(path, str):
                raise InputError(f"data holds '{origin}', which has no image: remove that row")
            content = find(path, origin)
        yield EncodedImage(content, origin)


def _label_values(table: Table, column: str) -> Int[Tensor, " s"] | list[str]:
    """Return the classes of a table: numbers, or texts."""
    import pyarrow as pa

    if column not in table.rows.column_names:
        raise InputError(f"data holds '{table.origin}', which has no column '{column}' while another file has: fetch it again")
    values = table.rows.column(column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    is_number = pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if values.null_count or not (is_number or is_text):
        gaps, fix = f"{values.type} with {values.null_count} gaps", "store integers 0 to k-1 or texts, one for every image"
        raise InputError(f"data holds '{table.origin}', whose column '{column}' is {gaps}: {fix}")
    labels = values.to_pylist()
    if is_text:
        return labels
    if values.type == pa.uint64() and max(labels, default=0) >= 2**63:
        raise InputError(f"data holds '{table.origin}', whose column '{column}' has a label of 2^63 or more: store 0 to k-1")
    return torch.tensor([int(label) for label in labels], dtype=torch.long)


def _as_texts(values: Tensor | list[str]) -> list[str]:
    return [str(value) for value in values.tolist()] if isinstance(values, Tensor) else values


def _class_names(schema: "pa.Schema", column: str) -> tuple[str, ...] | None:
    """Return the names in the schema's metadata, where the `datasets` library describes its features as JSON."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) or None if isinstance(names, list) else None
