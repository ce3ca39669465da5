"""Files with the classes of image files next to them: dataset.json of the StyleGAN and EDM tools, metadata of Hugging Face.

Sources: https://github.com/NVlabs/edm dataset_tool.py: {"labels": [[path, class], ...]} or {"labels": null};
https://huggingface.co/docs/datasets/image_dataset: metadata.jsonl or metadata.csv, whose column file_name is a path below the
folder of that file.
"""

import csv
import json
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from drifting.data.readers import LABEL_COLUMNS, parsing
from drifting.errors import InputError

_DATASET, _LINES, _TABLE = NAMES = ("dataset.json", "metadata.jsonl", "metadata.csv")
_FILE_NAME = "file_name"


class LabelFile(NamedTuple):
    """The content of a file of labels.

    Attributes:
        path: of it.
        labels: path of an image, below the folder of the file -> its class as text; None if the file tells no classes.
        unlabeled: whether it says that there are no classes.
        reason: why it tells none, as a sentence.
    """

    path: Path
    labels: dict[str, str] | None
    unlabeled: bool = False
    reason: str = ""

    def below(self, root: Path) -> dict[str, str]:
        """Return the labels of images below a folder, which is that of the file or lies in it, by their paths from there."""
        inside = root.relative_to(self.path.parent).as_posix()
        start = "" if inside == "." else f"{inside}/"
        return {name[len(start) :]: value for name, value in (self.labels or {}).items() if name.startswith(start)}


def is_in(folder: Path) -> bool:
    """Return whether a file in the folder may say the classes of images."""
    return any((folder / name).is_file() for name in NAMES)


def read(root: Path, top: Path) -> LabelFile | None:
    """Return what the nearest file says of the images of a split, from its folder up to that of all data; None without a file.

    Raises:
        InputError: if the file is damaged, or a class in it is neither a whole number from 0 nor a text.
    """
    for place in (root, *root.parents):
        for name in NAMES:
            if (place / name).is_file() and (found := _read(place / name)) is not None:
                return found
        if place == top:
            break
    return None


def _read(path: Path) -> LabelFile | None:
    """Return what a file says; None for one of another kind of the same name."""
    with parsing(path):
        if path.name == _DATASET:
            return _read_dataset(path)
        rows = _json_lines(path) if path.name == _LINES else _csv_rows(path)
        return _read_rows(path, list(rows))


def _read_dataset(path: Path) -> LabelFile | None:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "labels" not in values:
        return None
    pairs = values["labels"]
    if pairs is None:
        return LabelFile(path, None, unlabeled=True)
    if not isinstance(pairs, list):
        return None
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise InputError(f"data holds '{path}', whose labels are no pairs of a file and its class: write [\"0.png\", 3]")
    return _labeled(path, ((name, label) for name, label in pairs))


def _read_rows(path: Path, rows: list[dict[str, Any]]) -> LabelFile:
    columns = list(dict.fromkeys(column for row in rows for column in row if column is not None))
    column = next((name for name in LABEL_COLUMNS if name in columns), None)
    if _FILE_NAME not in columns or column is None:
        no_classes = f"'{path.name}' tells no classes, for its columns are {', '.join(columns) or 'none'}"
        return LabelFile(path, None, reason=f"{no_classes}: name them {_FILE_NAME} and {LABEL_COLUMNS[0]} if it should")
    return _labeled(path, ((row.get(_FILE_NAME), row.get(column)) for row in rows))


def _labeled(path: Path, pairs: Iterator[tuple[Any, Any]]) -> LabelFile:
    labels: dict[str, str] = {}
    for name, label in pairs:
        if not isinstance(name, str):
            raise InputError(f"data holds '{path}', where an image has no {_FILE_NAME}: add it, or remove that line")
        kind_is_known = isinstance(label, str) or type(label) is int
        text = str(label).strip()
        if not kind_is_known or not text or (text.startswith("-") and text[1:].isdigit()):
            fix = "write a whole number from 0, or a text"
            raise InputError(f"data holds '{path}', where the class of '{name}' is {json.dumps(label)[:40]}: {fix}")
        labels[posixpath.normpath(name.replace(os.sep, "/"))] = text
    return LabelFile(path, labels)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} holds no names with values")
            yield row


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)
