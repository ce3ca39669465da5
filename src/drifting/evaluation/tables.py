"""The figures of an evaluation: from their file, and as the lines of a table.

A line has a value, the same figure for real data, and which direction is better.

Samples that are all alike within their class can have an accuracy of 100 %, so a figure of diversity stands next to every accuracy.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from drifting._json import load_json
from drifting.errors import InputError

Value = int | float | Sequence[float] | Sequence[int] | str
# The extractor and the reference are names; all others are figures.
Metrics = dict[str, Value]

FLOOR = "_floor"
# A figure for each step of a training that kept samples.
CURVE_STEPS, CURVE = "frechet_curve_steps", "frechet_curve"
# Figures of which more is better, and of which less is better; others that have a floor should be as those of real data.
_MORE = {"precision", "recall", "density", "coverage", "inception_score"}
_LESS = {"frechet_distance", "energy_distance", "kernel_distance", "drift_norm", "drift_length", "histogram_distance", "copy_share"}
# Figures of diversity; the first one that is known follows the accuracies.
_DIVERSITY = ("within_class_distance", "recall", "coverage", "pairwise_distance")


class Line(NamedTuple):
    """One figure of a table, as text.

    Attributes:
        name: name of the figure.
        value: its value.
        floor: the same figure for real data; empty if it is not known.
        better: "more", "less", "as real", or empty for what is no measure of quality, such as a number of samples.
    """

    name: str
    value: str
    floor: str
    better: str


def as_text(value: Value) -> str:
    """Return a figure as text: a count as it is, a number with five digits, several numbers with four digits each."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value) if isinstance(value, str | int) else " ".join(f"{part:.4g}" for part in value)


def direction(name: str, *, has_floor: bool) -> str:
    """Return which direction of a figure is better, see `Line.better`."""
    if name in _MORE or name.endswith("accuracy"):
        return "more"
    return "less" if name in _LESS else "as real" if has_floor else ""


def in_order(names: Sequence[str]) -> list[str]:
    """Return the names of figures without those of floors, with a figure of diversity behind those of accuracy."""
    figures = [name for name in names if not name.endswith(FLOOR)]
    accuracies = [name for name in figures if name.endswith("accuracy")]
    diversity = next((name for name in _DIVERSITY if name in figures), None)
    if not accuracies or diversity is None:
        return figures
    figures.remove(diversity)
    figures.insert(figures.index(accuracies[-1]) + 1, diversity)
    return figures


def lines(metrics: Mapping[str, Value]) -> list[Line]:
    """Return the lines of the table of an evaluation."""
    found = []
    for name in in_order(list(metrics)):
        floor = metrics.get(f"{name}{FLOOR}")
        shown = "" if floor is None else as_text(floor)
        found.append(Line(name, as_text(metrics[name]), shown, direction(name, has_floor=floor is not None)))
    return found


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in GitHub's Markdown, from its heading and its rows."""
    lines = [lines[0], ("---",) * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def read_figures(path: Path, fix: str) -> Metrics:
    """Return the figures in a file by name; none if the file does not exist."""
    if not path.exists():
        return {}
    figures = load_json(path, fix=fix)
    if not isinstance(figures, dict):
        raise InputError(f"file is '{path}', which holds no figures by name: {fix}")
    # Version 0.1 used other names for some figures.
    figures = {"extractor" if name == "judge" else re.sub("^colour", "color", name): value for name, value in figures.items()}
    for name, value in figures.items():
        numbers = all(isinstance(part, int | float) for part in (value if isinstance(value, list) else [value]))
        if not (isinstance(value, str) if name in ("extractor", "reference") else numbers):
            raise InputError(f"file is '{path}', where {name} is not a figure: {fix}")
    lengths = [len(value) if isinstance(value, list) else None for value in map(figures.get, (CURVE_STEPS, CURVE))]
    if lengths[0] != lengths[1]:
        raise InputError(f"file is '{path}', where {CURVE_STEPS} and {CURVE} differ in length: {fix}")
    return figures
