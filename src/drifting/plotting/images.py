"""Pictures of images: grids with one class per row, and the comparison of runs by such grids and their Frechet distances.

Shapes: n samples, c channels, h height, w width.
"""

import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from drifting.data.pixels import to_signed
from drifting.data.readers import shown_name
from drifting.plotting.figures import (
    LINES,
    REAL,
    Axes,
    Figure,
    Log,
    losses_figure,
    new_figure,
    panels,
    progress_figure,
    save_figure,
    save_figures,
)

Images = Float[Tensor, "n c h w"]

# Largest width and height of a letter in PIL's own font; fewest letters of a name that is drawn; most letters of a row's name.
_LETTER, _FEWEST_LETTERS, _ROW_LETTERS = (7, 14), 4, 14

# Width of a panel in pixels; wider grids are shrunk.
_SHEET = 480

# In the comparison of runs, in inches: smallest width of a grid, and heights of the curves and of titles.
_GRID, _CURVES, _TITLES = 5.0, 3.4, 0.9
# Most pixels of a grid per inch of the picture, which has 110 dots per inch, so that images lose no lines.
_PIXELS_PER_INCH = 90
# Letters of a line of a title or a legend.
_LINE_LETTERS = 48


def draw_images(
    folder: Path,
    *,
    title: str,
    real: Float[Tensor, "classes columns c h w"],
    snapshots: Mapping[int, Shaped[Tensor, "n c h w"]],
    log: Log,
    labeled: bool = True,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Draw samples.png (real next to generated, one row per class), progress.png, losses.png and training.gif of small images.

    Args:
        folder: folder of the pictures.
        title: name of the data.
        real: real images of each class, in [-1, 1].
        snapshots: step -> generated images, classes in turn; in [-1, 1], or as bytes.
        log: lines of metrics.jsonl.
        labeled: whether rows are classes.
        names: names of the classes, if known.
    """
    classes, columns = real.shape[:2]
    aspect = _aspect(real)

    def show(axes: Axes, step: int) -> None:
        samples = to_signed(snapshots[step][: classes * columns])
        show_grid(axes, samples.unflatten(0, (columns, classes)).transpose(0, 1), f"step {step}", names)

    def moment(step: int) -> Figure:
        figure, (axes,) = panels(1, 1, size=4.0, title=title, aspect=aspect)
        show(axes, step)
        return figure

    rows = ", one class a row" if labeled else ""
    heading = f"{title}: real data and samples made in one pass{rows}"
    samples, (left, right) = panels(1, 2, size=5.0, title=heading, aspect=aspect)
    show_grid(left, real, "data", names)
    show(right, max(snapshots))
    figures = {
        "samples": samples,
        "progress": progress_figure(title, snapshots, show, lambda axes: show_grid(axes, real, "data", names), aspect=aspect),
        "losses": losses_figure(title, log),
    }
    return save_figures(folder, figures, map(moment, sorted(snapshots)))


def draw_comparison(
    folder: Path,
    *,
    title: str,
    real: Float[Tensor, "rows columns c h w"],
    generated: Float[Tensor, "rows columns c h w"],
    nearest: Float[Tensor, "rows columns c h w"],
    names: Sequence[str] | None = None,
) -> Path:
    """Draw comparison.png: real images, generated images, and the training image nearest to each of these in pixels.

    Args:
        folder: folder of the picture.
        title: name of the data.
        real: real images in [-1, 1].
        generated: samples.
        nearest: training image nearest to the sample in the same place.
        names: names of the classes, one for each row, if known.
    """
    heading = f"{title}: real, generated in one pass, and the nearest real ones"
    figure, (left, middle, right) = panels(1, 3, size=5.6, title=heading, aspect=_aspect(real))
    show_grid(left, real, "real", names)
    show_grid(middle, generated, "generated", names)
    show_grid(right, nearest, "the training image nearest to each generated one", names)
    return save_figure(figure, folder / "comparison.png")


def _aspect(grid: Float[Tensor, "rows columns c h w"]) -> float:
    """Return the height of a grid relative to its width, so that few rows leave no empty paper; at most 2."""
    rows, columns, _, height, width = grid.shape
    return min(2.0, rows * height / (columns * width))


def draw_reconstruction(folder: Path, *, title: str, images: Images, reconstructed: Images) -> Path:
    """Draw ae_reconstruction.png: images in [-1, 1], and their reconstructions by an auto-encoder.

    Args:
        folder: folder of the picture.
        title: title of the picture.
        images: images; their number is best a square.
        reconstructed: reconstruction of each image.
    """
    columns = max(1, math.isqrt(len(images)))
    figure, axes = panels(1, 2, size=5.0, title=title)
    for panel, shown, name in zip(axes, (images, reconstructed), ("images", "reconstructed from the code"), strict=True):
        show_grid(panel, shown[: len(shown) // columns * columns].unflatten(0, (-1, columns)), name)
    return save_figure(figure, folder / "ae_reconstruction.png")


def image_grid(images: UInt8[Tensor, "n h w c"], columns: int, names: Sequence[str] | None = None) -> Image.Image:
    """Return uint8 images side by side, a pixel apart, small ones enlarged without smoothing.

    Args:
        images: images, row by row.
        columns: number of images in a row.
        names: names above the columns, shortened to their width; left out if only a few letters fit.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 255, np.uint8)
    for index, image in enumerate(images.numpy()):
        top, left = 1 + index // columns * (height + 1), 1 + index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    factor = _enlargement(height)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    letters = (width + 1) * factor // _LETTER[0] - 1
    return picture if names is None or letters < _FEWEST_LETTERS else _with_names(picture, names, (width + 1) * factor, letters)


def pixels_in_grid(height: int, width: int) -> int:
    """Return the number of pixels of an image of this size in an `image_grid`, including its border."""
    return (height + 1) * (width + 1) * _enlargement(height) ** 2


def _enlargement(height: int) -> int:
    return max(1, 64 // height)


def _with_names(picture: Image.Image, names: Sequence[str], width: int, letters: int) -> Image.Image:
    """Return a picture below a line of names, one for each column; `width` and `letters` are the size of a column."""
    sheet = Image.new(picture.mode, (picture.width, picture.height + _LETTER[1]), "white")
    sheet.paste(picture, (0, _LETTER[1]))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, name in enumerate(names):
        draw.text((column * width + 2, 1), short_name(name, letters), fill="black", font=font)
    return sheet


def short_name(name: str, letters: int) -> str:
    """Return a name in ASCII letters, shortened with two dots; an empty string if it has no such letters."""
    characters = unicodedata.normalize("NFKD", shown_name(name))
    text = "".join(letter if letter.isascii() else "?" for letter in characters if not unicodedata.combining(letter))
    if not text.strip("? "):
        return ""
    return text if len(text) <= letters else f"{text[: letters - 2]}.."


def show_grid(axes: Axes, images: Float[Tensor, "rows columns c h w"], title: str, names: Sequence[str] | None = None) -> None:
    """Show images in [-1, 1] as a grid with named or numbered rows. Large images are shrunk, to keep the lines between them.

    The title is literal text: $ begins no formula.
    """
    rows, columns, width = len(images), images.shape[1], images.shape[4]
    factor = -(-columns * width // _SHEET)
    small = avg_pool2d(images.flatten(0, 1), min(factor, images.shape[3]), ceil_mode=True) if factor > 1 else images.flatten(0, 1)
    sheet = pad(small.unflatten(0, (rows, columns)).clamp(-1, 1), (1, 1, 1, 1), value=1.0)
    sheet = sheet.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).add(1).div(2)
    axes.imshow(sheet.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    height = sheet.shape[0] / rows
    axes.set_title(title, parse_math=False)
    axes.set_xticks([])
    row_names = [(names is not None and short_name(names[row], _ROW_LETTERS)) or str(row) for row in range(rows)]
    axes.set_yticks([(row + 0.5) * height for row in range(rows)], row_names, parse_math=False)


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
    return textwrap.wrap(name, _LINE_LETTERS)
