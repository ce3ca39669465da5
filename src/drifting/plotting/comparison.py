"""The picture that compares runs of images: a grid of samples of each run, and their Frechet distances during training.

Shapes: n runs, c channels, h height, w width.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from drifting.plotting.images import show_grid
from drifting.plotting.panels import LINES, REAL, Axes, Figure, new_figure, save_figure

# Inches: smallest width of a grid, and heights of the curves and of titles.
_GRID, _CURVES, _TITLES = 5.0, 3.4, 0.9
# Most pixels of a grid per inch of the picture, which has 110 dots per inch, so that images lose no lines.
_PIXELS_PER_INCH = 90
_LETTERS = 48


@dataclass(frozen=True)
class RunColumn:
    """The column of one run.

    Attributes:
        name: name of the run.
        title: line below the name.
        images: samples in [-1, 1].
        steps, distances: curve of its Frechet distance; empty if it was not measured.
        floor: the same distance of real images, or None.
        names: name of the class of each row, or None.
    """

    name: str
    title: str
    images: Float[Tensor, "rows columns c h w"]
    steps: Sequence[int | float] = ()
    distances: Sequence[int | float] = ()
    floor: int | float | None = None
    names: Sequence[str] | None = None


def runs_figure(columns: Sequence[RunColumn], title: str) -> Figure:
    """Return a figure with one column per run and, below them, one panel with all curves, if there are any."""
    curves = [column for column in columns if column.distances]
    # Sizes of the grids in pixels, with a white border around every image.
    sizes = [[count * (side + 2) for count, side in zip(c.images.shape[:2], c.images.shape[3:], strict=True)] for c in columns]
    width = max(_GRID, *(across / _PIXELS_PER_INCH for _, across in sizes))
    height = _TITLES + width * max(down / across for down, across in sizes)
    heights = [height, _CURVES] if curves else [height]
    figure = new_figure(width * len(columns), sum(heights), title)
    places = figure.add_gridspec(len(heights), len(columns), height_ratios=heights)
    for index, column in enumerate(columns):
        title = "\n".join(_lines(column.name) + _lines(column.title))
        show_grid(figure.add_subplot(places[0, index]), column.images, title, column.names)
    if curves:
        _draw_curves(figure.add_subplot(places[1, :]), curves)
    return figure


def draw_runs(path: Path, columns: Sequence[RunColumn], title: str) -> Path:
    """Write the figure of several runs to a file and return its path."""
    return save_figure(runs_figure(columns, title), path)


def _draw_curves(axes: Axes, curves: Sequence[RunColumn]) -> None:
    """Draw distances over steps. A floor shared by all runs is blue, like all real data; others have the color of their run."""
    colors = [LINES[index % len(LINES)] for index in range(len(curves))]
    lines = [
        axes.plot(curve.steps, curve.distances, color=color, marker="o", markersize=3)[0]
        for curve, color in zip(curves, colors, strict=True)
    ]
    floors = {curve.floor: color for curve, color in zip(curves, colors, strict=True) if curve.floor is not None}
    for floor, color in floors.items():
        axes.axhline(floor, color=REAL if len(floors) == 1 else color, linestyle="--")
    dashed = "; dashed: real against real" if floors else ""
    axes.set(title=f"Frechet distance through training{dashed}", xlabel="step", ylabel="Frechet distance")
    if all(distance > 0 for curve in curves for distance in curve.distances):
        axes.set_yscale("log")
    for text in axes.legend(lines, ["\n".join(_lines(curve.name)) for curve in curves]).get_texts():
        text.set_parse_math(False)


def _lines(name: str) -> list[str]:
    return textwrap.wrap(name, _LETTERS)
