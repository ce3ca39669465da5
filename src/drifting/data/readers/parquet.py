"""Parquet files as Hugging Face writes them: `<split>-00000-of-00001.parquet`, an image column of encoded files, integer labels."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from drifting.data.readers.base import LABEL_COLUMNS, EncodedImage, Split, damaged
from drifting.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUT = "parquet files (train-*.parquet, also in data/)"
_NAME = re.compile(r"(\w+)(?:-.+)?\.parquet")


def matches(folder: Path) -> bool:
    """Return whether the folder, or its sub-folder data, holds parquet files."""
    return bool(_files(folder))


def splits(folder: Path) -> list[str]:
    """Return the splits that the files' names begin with."""
    return list(_files(folder))


def read(folder: Path, split: str) -> Split:
    """Read one split, its files in the order of their names."""
    files = _files(folder)[split]
    total = re.search(r"-of-(\d+)\.parquet", files[0].name)
    if total and len(files) != int(total[1]):
        raise InputError(f"data holds {len(files)} of the {int(total[1])} files like '{files[0]}': fetch the others too")
    return from_tables([(_table(path), str(path)) for path in files])


def from_tables(tables: "Sequence[tuple[pa.Table, str]]") -> Split:
    """Return the images, still encoded, of Arrow tables (and their origins) whose schema is that of Hugging Face."""
    images = [image for table, origin in tables for image in _images(table, origin)]
    schema = tables[0][0].schema
    label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if label_column is None:
        return Split(images, None, None)
    labels = torch.cat([_labels(table, label_column, origin) for table, origin in tables])
    return Split(images, labels, _class_names(schema, label_column))


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return split -> files, of the folder itself or else of its sub-folder data."""
    for place in (folder, folder / "data"):
        found: dict[str, list[Path]] = {}
        for path in sorted(place.glob("*.parquet")):
            if match := _NAME.fullmatch(path.name):
                found.setdefault(match[1], []).append(path)
        if found:
            return found
    return {}


def _table(path: Path) -> "pa.Table":
    """Read the image and label columns of a file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"data holds '{path}', which needs pyarrow: pip install 'drifting[images]'") from None
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            return file.read([_image_column(schema, str(path)), *(name for name in LABEL_COLUMNS if name in schema.names)])
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None


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
    raise InputError(f"data holds '{origin}', whose columns are {', '.join(schema.names)}: name the one of encoded images 'image'")


def _images(table: "pa.Table", origin: str) -> list[EncodedImage]:
    rows = table.column(_image_column(table.schema, origin)).to_pylist()
    return [_encoded(row, f"{origin}, row {index}") for index, row in enumerate(rows)]


def _encoded(row: object, origin: str) -> EncodedImage:
    """Return a row's image: its bytes, or the file that stands for them."""
    content, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
    if isinstance(content, bytes):
        return EncodedImage(content, origin)
    if path is None:
        raise InputError(f"data holds '{origin}', which has no image: remove that row")
    return EncodedImage(Path(path), origin)


def _labels(table: "pa.Table", column: str, origin: str) -> Int[Tensor, " s"]:
    import pyarrow as pa

    if column not in table.column_names:
        raise InputError(f"data holds '{origin}', which has no column '{column}' while another file has: fetch it again")
    values = table.column(column)
    if not pa.types.is_integer(values.type) or values.null_count:
        raise InputError(
            f"data holds '{origin}', whose column '{column}' is {values.type} with {values.null_count} gaps: "
            "store integers 0 to k-1, one for every image"
        )
    return torch.tensor(values.to_pylist(), dtype=torch.long)


def _class_names(schema: "pa.Schema", column: str) -> tuple[str, ...] | None:
    """Return the names in the schema's metadata, where the `datasets` library describes its features as JSON."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) or None if isinstance(names, list) else None
