"""The pictures of a run. Real data is blue, generated samples are orange, in every one of them.

Shapes: n samples, r real samples.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from drifting.files import atomic_path

# Okabe and Ito's palette, told apart by every kind of colour vision.
REAL, GENERATED = "#0072B2", "#D55E00"
LINES = ("#000000", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#0072B2", "#D55E00")
_MARGIN = 1.15
_GRID = 23
_MOST_POINTS = 2048

Frames = Mapping[int, Float[Tensor, "n *sample"]]
Log = Sequence[Mapping[str, Any]]


def draw_points(
    folder: Path,
    *,
    title: str,
    real: Float[Tensor, "r 2"],
    frames: Frames,
    log: Log,
    drift: Callable[[Tensor, Tensor], Tensor],
    floor: float | None = None,
) -> list[Path]:
    """Draw samples.png, progress.png, drift_field.png, losses.png and training.gif of points in the plane.

    Args:
        folder: where to put them.
        title: name of the data.
        real: real points.
        frames: step -> generated points, the start (0) and the end among them.
        log: the lines of metrics.jsonl.
        drift: (places, generated) -> the field at those places, towards `real` and away from `generated`.
        floor: squared energy distance of two real samples of this size.
    """
    limit = _MARGIN * float(real.abs().max())
    first, last = frames[min(frames)], frames[max(frames)]

    def scatter(axes: Axes, points: Tensor, colour: str, title: str) -> None:
        axes.scatter(*points[:_MOST_POINTS].T, s=3, color=colour, alpha=0.5, linewidths=0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title, xlabel="x", ylabel="y")

    def samples() -> Figure:
        figure, (left, right) = _panels(1, 2, size=4.6, title=f"{title}: real data and samples made in one pass")
        scatter(left, real, REAL, f"data ({len(real):,})")
        scatter(right, last, GENERATED, f"samples ({len(last):,}), step {max(frames)}")
        return figure

    def progress() -> Figure:
        figure, panels = _panels(2, 4, size=2.9, title=f"{title}: samples through training")
        for axes, step in zip(panels, _spread(frames, 7), strict=False):
            scatter(axes, frames[step], GENERATED, f"step {step}")
        scatter(panels[-1], real, REAL, "data")
        return figure

    def field() -> Figure:
        figure, panels = _panels(1, 2, size=5.4, title=f"{title}: where the drift field points")
        ticks = torch.linspace(-limit, limit, _GRID)
        places = torch.cartesian_prod(ticks, ticks)
        arrows = [drift(places, points) for points in (first, last)]
        lengths = [vectors.norm(dim=1).clamp(min=1e-12) for vectors in arrows]
        colours = {"vmin": float(torch.cat(lengths).log10().quantile(0.05)), "vmax": float(torch.cat(lengths).log10().max())}
        for axes, points, vectors, length, name in zip(panels, (first, last), arrows, lengths, ("before", "after"), strict=True):
            scatter(axes, real, REAL, f"{name} training")
            scatter(axes, points, GENERATED, f"{name} training")
            unit = (vectors / length[:, None]).T
            axes.quiver(*places.T, *unit, length.log10(), cmap="cividis", scale=30, width=0.004, clim=tuple(colours.values()))
        figure.colorbar(panels[0].collections[-1], ax=panels, label="log10 of the drift's length", shrink=0.8)
        _legend(figure)
        return figure

    def animation_frame(step: int) -> Figure:
        figure, (axes,) = _panels(1, 1, size=4.0, title="")
        scatter(axes, real, REAL, f"{title}: step {step}")
        scatter(axes, frames[step], GENERATED, f"{title}: step {step}")
        return figure

    drawn = {"samples": samples(), "progress": progress(), "drift_field": field(), "losses": _losses(title, log, floor)}
    return [
        *(_save(figure, folder / f"{name}.png") for name, figure in drawn.items()),
        _animate([animation_frame(step) for step in sorted(frames)], folder / "training.gif"),
    ]


def draw_images(
    folder: Path, *, title: str, real: Float[Tensor, "classes columns c h w"], frames: Frames, log: Log, floor: float | None = None
) -> list[Path]:
    """Draw samples.png (real beside generated, one row a class), progress.png, losses.png and training.gif of small images.

    Args:
        folder: where to put them.
        title: name of the data.
        real: real images of each class, in [-1, 1].
        frames: step -> generated images, classes in turn.
        log: the lines of metrics.jsonl.
        floor: squared energy distance of two real samples of this size.
    """
    classes, columns = real.shape[:2]

    def grid(step: int) -> Tensor:
        return frames[step][: classes * columns].unflatten(0, (columns, classes)).transpose(0, 1)

    def samples() -> Figure:
        figure, (left, right) = _panels(1, 2, size=5.0, title=f"{title}: real data and samples made in one pass, one class a row")
        _show(left, real, "data")
        _show(right, grid(max(frames)), f"samples, step {max(frames)}")
        return figure

    def progress() -> Figure:
        figure, panels = _panels(2, 4, size=2.9, title=f"{title}: samples through training")
        for axes, step in zip(panels, _spread(frames, 7), strict=False):
            _show(axes, grid(step), f"step {step}")
        _show(panels[-1], real, "data")
        return figure

    def animation_frame(step: int) -> Figure:
        figure, (axes,) = _panels(1, 1, size=4.0, title="")
        _show(axes, grid(step), f"{title}: step {step}")
        return figure

    drawn = {"samples": samples(), "progress": progress(), "losses": _losses(title, log, floor)}
    return [
        *(_save(figure, folder / f"{name}.png") for name, figure in drawn.items()),
        _animate([animation_frame(step) for step in sorted(frames)], folder / "training.gif"),
    ]


def image_grid(images: Float[Tensor, "n h w c"], columns: int) -> Image.Image:
    """Return uint8 images side by side, a pixel apart, small ones enlarged without smoothing."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 255, np.uint8)
    for index, image in enumerate(images.numpy()):
        top, left = 1 + index // columns * (height + 1), 1 + index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    factor = max(1, 64 // height)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def points_figure(points: Float[Tensor, "n 2"]) -> Image.Image:
    """Return a scatter plot of points in their own coordinates."""
    figure, (axes,) = _panels(1, 1, size=5.0, title="")
    axes.scatter(*points.T, s=4, color=GENERATED, alpha=0.6, linewidths=0)
    axes.set(aspect="equal", title=f"{len(points):,} samples", xlabel="x", ylabel="y")
    return _pixels(figure)


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the path's suffix, atomically."""
    with atomic_path(path) as scratch:
        image.save(scratch)


def _losses(title: str, log: Log, floor: float | None) -> Figure:
    figure, (left, middle, right) = _panels(1, 3, size=4.2, title=f"{title}: what is measured during training")
    steps = [line["step"] for line in log]
    left.plot(steps, [line["loss"] for line in log], color=LINES[0])
    left.set(title="loss", xlabel="step", ylabel="mean square of the drift that is regressed")
    norms = sorted({name for line in log for name in line if name.startswith("drift_norm/")})
    for name, colour in zip(norms, LINES, strict=False):
        middle.plot(steps, [line[name] for line in log], color=colour, label=f"temperature {name.rsplit('/', 1)[1]}")
    middle.set(title="raw drift norm: this is what shrinks", xlabel="step", ylabel="mean square of the raw drift", yscale="log")
    middle.legend()
    measured = [line for line in log if "energy_distance" in line]
    distances = [line["energy_distance"] for line in measured]
    right.plot([line["step"] for line in measured], distances, color=LINES[0], marker="o", markersize=3, label="samples and data")
    if floor is not None:
        right.axhline(floor, color=REAL, linestyle="--", label="data and data")
        right.legend()
    right.set(title="two-sample distance", xlabel="step", ylabel="squared energy distance", yscale="log")
    if left.get_ylim()[0] > 0 and max(line["loss"] for line in log) > 20 * min(line["loss"] for line in log):
        left.set_yscale("log")
    return figure


def _panels(rows: int, columns: int, *, size: float, title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(size * columns, size * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title)
    return figure, list(panels.flat)


def _legend(figure: Figure) -> None:
    for label, colour, x in (("data", REAL, 0.02), ("samples", GENERATED, 0.08)):
        figure.text(x, 0.98, f"● {label}", color=colour, va="top")


def _show(axes: Axes, images: Float[Tensor, "rows columns c h w"], title: str) -> None:
    rows, columns = images.shape[:2]
    sheet = torch.nn.functional.pad(images.clamp(-1, 1), (1, 1, 1, 1), value=1.0)
    sheet = sheet.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).add(1).div(2)
    axes.imshow(sheet.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title=title, xticks=[])
    height = sheet.shape[0] / rows
    axes.set_yticks([(row + 0.5) * height for row in range(rows)], [str(row) for row in range(rows)])
    del columns


def _spread(frames: Frames, count: int) -> list[int]:
    """Return `count` of the frames' steps, evenly among them, the first and the last included."""
    steps = sorted(frames)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def _pixels(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _save(figure: Figure, path: Path) -> Path:
    figure.set_dpi(110)
    save_image(_pixels(figure), path)
    return path


def _animate(figures: Sequence[Figure], path: Path) -> Path:
    pictures = [_pixels(figure).quantize(64) for figure in figures]
    durations = [160] * (len(pictures) - 1) + [1600]
    with atomic_path(path) as scratch:
        pictures[0].save(scratch, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path
