"""Files of labels beside image files: the classes of images whose folders are not the classes.

They are dataset.json (https://github.com/NVlabs/edm dataset_tool.py: {"labels": [[path, class], ...]} or {"labels": null}), or
metadata.jsonl or metadata.csv (https://huggingface.co/docs/datasets/image_dataset: the column file_name is a path below the folder
of that file).
"""

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drifting.data.readers import LABEL_COLUMNS, label_column, parsing
from drifting.errors import InputError

LABEL_FILES = ("dataset.json", "metadata.jsonl", "metadata.csv")
_FILE_NAME = "file_name"


class LabelFile(NamedTuple):
    """The content of a file of labels.

    Attributes:
        path: path of the file.
        labels: path of an image, below the folder of the file -> its class as text; None if the file has no classes.
        problem: sentence on why it has none; None if it says so itself.
        left_out: descriptions of the other columns that could hold classes.
    """

    path: Path
    labels: dict[str, str] | None
    problem: str | None = None
    left_out: tuple[str, ...] = ()

    def below(self, root: Path) -> dict[str, str]:
        """Return the labels of images below a folder, which is that of the file or inside it, by their paths from there."""
        inside = root.relative_to(self.path.parent).as_posix()
        start = "" if inside == "." else f"{inside}/"
        return {name[len(start) :]: value for name, value in (self.labels or {}).items() if name.startswith(start)}


def has_label_file(folder: Path) -> bool:
    """Return whether there is a file with the name of a file of labels directly in a folder."""
    return any((folder / name).is_file() for name in LABEL_FILES)


def read_labels(root: Path, top: Path) -> LabelFile | None:
    """Return the nearest file of labels, from the folder of a split up to that of all data; None without one."""
    places = [root, *root.parents]
    files = (place / name for place in places[: places.index(top) + 1] for name in LABEL_FILES)
    return next((table for file in files if file.is_file() and (table := _read_label_file(file)) is not None), None)


def _read_label_file(path: Path) -> LabelFile | None:
    """Return the content of a file, or None if it only has the name of a file of labels."""
    with parsing(path):
        text = path.read_text(encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8")
        if path.suffix == ".json":
            return _from_pairs(path, json.loads(text))
        if path.suffix == ".csv":
            return _from_rows(path, list(csv.DictReader(io.StringIO(text))))
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError("a line holds no names with values")
        return _from_rows(path, rows)


def _from_pairs(path: Path, values: Any) -> LabelFile | None:
    if not isinstance(values, dict) or not isinstance(values.get("labels", ""), list | None):
        return None
    pairs = values["labels"]
    if pairs is None:
        return LabelFile(path, None)
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise InputError(f"data holds '{path}', whose labels are not pairs of a file and its class: write [\"0.png\", 3]")
    return _labeled(path, pairs)


def _from_rows(path: Path, rows: list[dict[str, Any]]) -> LabelFile:
    columns = list(dict.fromkeys(column for row in rows for column in row if column is not None))
    column, others = label_column(columns)
    if _FILE_NAME not in columns or column is None:
        no_classes = f"'{path.name}' has no classes, because its columns are {', '.join(columns) or 'none'}"
        return LabelFile(path, None, f"{no_classes}: name them {_FILE_NAME} and {LABEL_COLUMNS[0]} if it should")
    return _labeled(path, [(row.get(_FILE_NAME), row.get(column)) for row in rows])._replace(left_out=others)


def _labeled(path: Path, pairs: Iterable[Sequence[Any]]) -> LabelFile:
    labels: dict[str, str] = {}
    for name, label in pairs:
        if not isinstance(name, str):
            raise InputError(f"data holds '{path}', where an image has no {_FILE_NAME}: add it, or remove that line")
        text = str(label).strip()
        if not (isinstance(label, str) or type(label) is int) or not text or (text.startswith("-") and text[1:].isdigit()):
            fix = "write a whole number from 0, or a text"
            raise InputError(f"data holds '{path}', where the class of '{name}' is {json.dumps(label)[:40]}: {fix}")
        place = posixpath.normpath(name.replace("\\", "/"))
        if (before := labels.setdefault(place, text)) != text:
            both = f"'{before[:40]}' and '{text[:40]}'"
            raise InputError(f"data holds '{path}', where '{name}' is of the classes {both}: keep one line for it")
    return LabelFile(path, labels)
