"""Arrow tables as the `datasets` library makes them: a column of encoded images, and one of classes by number or by name."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from drifting.data.readers.base import LABEL_COLUMNS, EncodedImage, Split, label_column, numbered
from drifting.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


class Table(NamedTuple):
    """Rows, and where they are from (for messages)."""

    rows: "pa.Table"
    origin: str


def checked_table(rows: "pa.Table", origin: str) -> Table:
    """Return rows whose every offset and text was checked: Arrow itself would follow a damaged one to any place in memory.

    Raises:
        pyarrow.ArrowException: if one is wrong.
    """
    rows.validate(full=True)
    return Table(rows, origin)


def from_tables(
    tables: Sequence[Table], *, find: Callable[[str, str], "Path"], everywhere: Callable[[str], Iterable[Table]]
) -> Split:
    """Return the images of tables, still encoded, and their labels.

    Args:
        tables: of one split.
        find: (name, origin) -> the file of an image that is named in place of its bytes, see `base.files_below`.
        everywhere: column -> tables of all splits with that column at least, from which names of classes are numbered.

    Raises:
        InputError: if there is no column of images, a row has none or names a file that may not be read, or classes are neither
            numbers nor texts.
    """
    images = [image for table in tables for image in _images(table, find)]
    schema = tables[0].rows.schema
    column, others = label_column(schema.names)
    if column is None:
        return Split(images, None, None)
    labels = [_label_values(table, column) for table in tables]
    numbers = [values for values in labels if isinstance(values, Tensor)]
    if len(numbers) == len(labels):
        return Split(images, torch.cat(numbers), _class_names(schema, column), others)
    texts = (str(text) for table in everywhere(column) for text in _listed(_label_values(table, column)))
    by_name, names = numbered([str(value) for values in labels for value in _listed(values)], texts)
    return Split(images, by_name, names, others)


def needed_columns(schema: "pa.Schema", origin: str) -> list[str]:
    """Return the column of images, and all that might tell the classes."""
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


def _images(table: Table, find: Callable[[str, str], "Path"]) -> list[EncodedImage]:
    rows = table.rows.column(_image_column(table.rows.schema, table.origin)).to_pylist()
    return [_encoded(row, f"{table.origin}, row {index}", find) for index, row in enumerate(rows)]


def _encoded(row: object, origin: str, find: Callable[[str, str], "Path"]) -> EncodedImage:
    """Return a row's image: its bytes, or the file that stands for them."""
    content, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
    if isinstance(content, bytes):
        return EncodedImage(content, origin)
    if not isinstance(path, str):
        raise InputError(f"data holds '{origin}', which has no image: remove that row")
    return EncodedImage(find(path, origin), origin)


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
        kinds = "store integers 0 to k-1 or texts, one for every image"
        gaps = f"{values.type} with {values.null_count} gaps"
        raise InputError(f"data holds '{table.origin}', whose column '{column}' is {gaps}: {kinds}")
    if is_text:
        return values.to_pylist()
    numbers = values.to_pylist()
    if values.type == pa.uint64() and max(numbers, default=0) >= 2**63:
        raise InputError(f"data holds '{table.origin}', whose column '{column}' has a label of 2^63 or more: store 0 to k-1")
    return torch.tensor([int(value) for value in numbers], dtype=torch.long)


def _listed(values: "Tensor | list[str]") -> list[Any]:
    return values.tolist() if isinstance(values, Tensor) else values


def _class_names(schema: "pa.Schema", column: str) -> tuple[str, ...] | None:
    """Return the names in the schema's metadata, where the `datasets` library describes its features as JSON."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) or None if isinstance(names, list) else None
