"""Figures of points in the plane, and the parts that all figures share: colors, panels, the curves of training, and files.

matplotlib is imported when the first figure is made: loading it takes half a second, which most commands do not need.

Shapes: n samples, r real samples.
"""

import importlib.util
import itertools
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from drifting._files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any

if importlib.util.find_spec("matplotlib") is None:  # fail at the start of a training, not at its end
    raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

# Okabe and Ito's palette, which is distinguishable with any color vision.
REAL, GENERATED = "#0072B2", "#D55E00"
LINES = ("#000000", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#0072B2", "#D55E00")

# Drift norms below this share of the largest one are zeros that rounded: at the start of a training, kernels can underflow.
_SMALLEST_SHOWN = 1e-8

# Height of the title of a panel in inches; names of rows take about as much of its width.
_PANEL_TITLE = 0.5

# Step -> samples at that step, including the start (0) and the end.
Snapshots = Mapping[int, Tensor]
# Lines of metrics.jsonl.
Log = Sequence[Mapping[str, Any]]


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of a size in inches; $ begins no formula in its title.

    Figures are drawn without a backend, so matplotlib is imported without MPLBACKEND: a notebook sets it for all its processes, and
    the import would fail where that backend is not installed.
    """
    if "matplotlib" not in sys.modules:
        backend = os.environ.pop("MPLBACKEND", None)
        try:
            import matplotlib
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
        if backend:
            with suppress(ValueError):
                matplotlib.rcParams["backend"] = backend
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, parse_math=False)
    return figure


def panels(rows: int, columns: int, *, size: float, title: str, aspect: float = 1.0) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels, `size` inches wide and `aspect` times as high below its title, and its axes row by row."""
    figure = new_figure(size * columns, ((size - _PANEL_TITLE) * aspect + _PANEL_TITLE) * rows + 0.5, title)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def progress_figure(
    title: str, snapshots: Snapshots, draw: Callable[[Axes, int], None], draw_real: Callable[[Axes], None], *, aspect: float = 1.0
) -> Figure:
    """Return a figure of samples at seven steps of the training, and real data; `aspect` is that of `panels`."""
    figure, axes = panels(2, 4, size=2.9, title=f"{title}: samples through training", aspect=aspect)
    steps = sorted(snapshots)
    for index, panel in enumerate(axes[:-1]):
        draw(panel, steps[round(index * (len(steps) - 1) / (len(axes) - 2))])
    draw_real(axes[-1])
    return figure


def losses_figure(title: str, log: Log, floor: float | None = None) -> Figure:
    """Return a figure of the curves of a training: loss, raw drift norms, and the two-sample distance with its floor.

    A second row shows the figures of the batches, if there are any: signal and noise, spread of the samples, and spread of the
    kernel or errors of the transport plans.
    """
    measured = any(name.startswith("diversity/") for line in log for name in line)
    figure, axes = panels(1 + measured, 3, size=4.2, title=f"{title}: what is measured during training")
    left, middle, right = axes[:3]
    if measured:
        _draw_batches(axes[3:], log)
    steps = [line["step"] for line in log]
    losses = [line.get("loss", math.nan) for line in log]
    left.plot(steps, losses, color=LINES[0])
    left.set(title="loss", xlabel="step", ylabel="mean square of the drift that is regressed")
    if losses and max(losses) > 20 * min(losses) > 0:
        left.set_yscale("log")
    elif losses and 0 < max(losses) < 1.01 * min(losses):
        # The loss of normalized drifts is constant, and its rounding errors are no curve.
        left.set_ylim(0, 1.2 * max(losses))
    _draw_drift_norms(middle, log)
    compared = [line for line in log if "energy_distance" in line]
    distances = [line["energy_distance"] for line in compared]
    right.plot([line["step"] for line in compared], distances, color=LINES[0], marker="o", markersize=3, label="samples and data")
    if floor is not None:
        right.axhline(floor, color=REAL, linestyle="--", label="data and data")
        right.legend()
    right.set(title="two-sample distance", xlabel="step", ylabel="squared energy distance", yscale="log")
    return figure


# Title of a panel -> kind of figures, and the label of each kind.
_BATCHES: Mapping[str, Mapping[str, str]] = {
    "signal (1) or noise (0)": {"half_cosine": ""},
    "spread of the samples, relative to real ones": {
        "diversity": "between samples",
        "least_diversity": "in the group where it is lowest",
        "remoteness": "from samples to data",
    },
    "share of one-hot rows (flat: dashed)": {"one_hot_share": "", "flat_share": ""},
    "errors of the rows of the transport plans": {"marginal_residual": ""},
}


def _draw_batches(axes: Sequence[Axes], log: Log) -> None:
    """Draw the figures of the batches, each the median over all features: by temperature, where it has one.

    Fields without kernels have none of the last figures, and most have no transport plans.
    """
    logged = {name.partition("/")[0] for line in log for name in line}
    drawable = [(title, kinds) for title, kinds in _BATCHES.items() if logged.intersection(kinds)]
    for panel in axes[len(drawable) :]:
        panel.set_axis_off()
    for panel, (title, kinds) in zip(axes, drawable, strict=False):
        drawn: list[list[float]] = []
        for style, (kind, label) in zip(itertools.cycle(("-", "--") if "dashed" in title else ("-",)), kinds.items(), strict=False):
            curves: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
            for line in log:
                for name in (name for name in line if name.startswith(f"{kind}/")):
                    of = label or f"temperature {name.rpartition('/')[2]}"
                    curves[of][line["step"]].append(line[name])
            colors = itertools.islice(itertools.cycle(LINES), 0 if not label else list(kinds).index(kind), None)
            for color, (of, values) in zip(colors, curves.items(), strict=False):
                medians = [float(np.median(each)) for each in values.values()]
                if label and medians in drawn:  # of one group, the lowest is the mean
                    continue
                drawn.append(medians)
                panel.plot(list(values), medians, style, color=color, label=None if style == "--" else of)
        panel.set(title=title, xlabel="step")
        panel.legend(fontsize="small")


def _draw_drift_norms(axes: Axes, log: Log) -> None:
    """Draw the raw drift norm of every temperature: its geometric mean over the features and, thin, that of each feature."""
    norms = sorted({name for line in log for name in line if name.startswith("drift_norm/")})
    steps, by_temperature = [line["step"] for line in log], defaultdict(list)
    for name in norms:
        by_temperature[name.split("/")[2]].append([line.get(name, math.nan) for line in log])
    count = max(map(len, by_temperature.values()), default=0)
    for color, (temperature, curves) in zip(itertools.cycle(LINES), by_temperature.items(), strict=False):
        if count > 1:
            axes.plot(steps, np.transpose(curves), color=color, linewidth=0.6, alpha=0.35)
        # A norm may be 0, where all samples are alike.
        middle = np.exp(np.log(np.maximum(curves, np.finfo(float).tiny)).mean(0))
        axes.plot(steps, middle, color=color, label=f"temperature {temperature}")
        _draw_floor(axes, log, temperature, color)
    title = f"raw drift norm of {count} features" if count > 1 else "raw drift norm, per temperature"
    title += ", and noise (dashed)" if any(name.startswith("noise_floor/") for line in log for name in line) else ""
    axes.set(title=title, xlabel="step", ylabel="mean square of the raw drift", yscale="log")
    _leave_out_underflow(axes, np.array([curve for curves in by_temperature.values() for curve in curves]))
    if by_temperature:
        axes.legend(fontsize="small")


def _draw_floor(axes: Axes, log: Log, temperature: str, color: str) -> None:
    """Draw the noise floor at a temperature, dashed: its geometric mean over the features."""
    known: dict[int, list[float]] = defaultdict(list)
    for line in log:
        names = (name for name in line if name.startswith("noise_floor/") and name.split("/")[-1] == temperature)
        known[line["step"]] += [line[name] for name in names]
    known = {step: values for step, values in known.items() if values}
    if known:
        middle = [float(np.exp(np.log(np.maximum(values, np.finfo(float).tiny)).mean())) for values in known.values()]
        axes.plot(list(known), middle, "--", color=color, linewidth=0.8)


def _leave_out_underflow(axes: Axes, norms: np.ndarray) -> None:
    """Limit a logarithmic axis to the norms that are not far below the largest one, if there are others."""
    positive = norms[np.isfinite(norms) & (norms > 0)]
    if positive.size and norms.min(initial=math.inf, where=np.isfinite(norms)) < _SMALLEST_SHOWN * positive.max():
        axes.set_ylim(positive[positive >= _SMALLEST_SHOWN * positive.max()].min() / 2, 2 * positive.max())


def pixels(figure: Figure) -> Image.Image:
    """Return a figure as an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the path's suffix, atomically."""
    with atomic_path(path) as scratch:
        image.save(scratch)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a picture and return its path."""
    figure.set_dpi(110)
    save_image(pixels(figure), path)
    return path


def save_figures(folder: Path, figures: Mapping[str, Figure], animation: Iterable[Figure]) -> list[Path]:
    """Write every figure as NAME.png and the animation as training.gif; return their paths."""
    paths = [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]
    moving = [pixels(figure).quantize(64) for figure in animation]
    durations = [160] * (len(moving) - 1) + [1600]
    paths.append(folder / "training.gif")
    with atomic_path(paths[-1]) as scratch:
        moving[0].save(scratch, save_all=True, append_images=moving[1:], duration=durations, loop=0)
    return paths


_MARGIN = 1.15
_GRID = 23
_MOST_POINTS = 2048


@dataclass(frozen=True)
class _Scene:
    """Samples and data in one window of the plane."""

    title: str
    real: Float[Tensor, "r 2"]
    snapshots: Mapping[int, Float[Tensor, "n 2"]]

    @property
    def window(self) -> list[tuple[float, float]]:
        """Limits of both axes, with equal lengths."""
        low, high = self.real.amin(0), self.real.amax(0)
        half = _MARGIN * float((high - low).max()) / 2
        return [(center - half, center + half) for center in ((low + high) / 2).tolist()]

    def scatter(self, axes: Axes, points: Float[Tensor, "n 2"], color: str, title: str) -> None:
        x, y = points[:_MOST_POINTS].T.numpy()
        axes.scatter(x, y, s=3, color=color, alpha=0.5, linewidths=0)
        horizontal, vertical = self.window
        axes.set(xlim=horizontal, ylim=vertical, aspect="equal", xlabel="x", ylabel="y")
        axes.set_title(title, parse_math=False)
        axes.locator_params(nbins=5)

    def samples(self) -> Figure:
        figure, (left, right) = panels(1, 2, size=4.6, title=f"{self.title}: real data and samples made in one pass")
        last = max(self.snapshots)
        self.scatter(left, self.real, REAL, f"data ({len(self.real):,})")
        self.scatter(right, self.snapshots[last], GENERATED, f"samples ({len(self.snapshots[last]):,}), step {last}")
        return figure

    def progress(self) -> Figure:
        return progress_figure(
            self.title,
            self.snapshots,
            lambda axes, step: self.scatter(axes, self.snapshots[step], GENERATED, f"step {step}"),
            lambda axes: self.scatter(axes, self.real, REAL, "data"),
        )

    def field(self, drift: Callable[[Tensor, Tensor], Tensor]) -> Figure:
        figure, axes = panels(1, 2, size=5.4, title=f"{self.title}: where the drift field points")
        figure.set_figwidth(figure.get_figwidth() + 1.2)  # for the color bar
        places = torch.cartesian_prod(*(torch.linspace(low, high, _GRID, dtype=torch.float64) for low, high in self.window))
        shown = {"before training": self.snapshots[min(self.snapshots)], "after training": self.snapshots[max(self.snapshots)]}
        arrows = [drift(places, points) for points in shown.values()]
        lengths = [vectors.norm(dim=1).clamp(min=1e-12) for vectors in arrows]
        everything = torch.cat(lengths).log10()
        limits = (float(everything.quantile(0.05)), float(everything.max()))
        for panel, (name, points), vectors, length in zip(axes, shown.items(), arrows, lengths, strict=True):
            self.scatter(panel, self.real, REAL, name)
            self.scatter(panel, points, GENERATED, name)
            arrays = (part.numpy() for part in (*places.T, *(vectors / length[:, None]).T, length.log10()))
            panel.quiver(*arrays, cmap="cividis", scale=30, width=0.004, clim=limits)
        figure.colorbar(axes[0].collections[-1], ax=axes, label="log10 of the drift's length", shrink=0.8)
        for label, color, x in (("data", REAL, 0.02), ("samples", GENERATED, 0.08)):
            figure.text(x, 0.98, f"● {label}", color=color, va="top")
        return figure

    def moment(self, step: int) -> Figure:
        figure, (axes,) = panels(1, 1, size=4.0, title="")
        self.scatter(axes, self.real, REAL, "")
        self.scatter(axes, self.snapshots[step], GENERATED, f"{self.title}: step {step}")
        return figure


def draw_points(
    folder: Path,
    *,
    title: str,
    real: Float[Tensor, "r 2"],
    snapshots: Mapping[int, Float[Tensor, "n 2"]],
    log: Log,
    drift: Callable[[Tensor, Tensor], Tensor] | None = None,
    floor: float | None = None,
) -> list[Path]:
    """Draw samples.png, progress.png, drift_field.png, losses.png and training.gif of points in the plane.

    Args:
        folder: folder of the pictures.
        title: name of the data.
        real: real points.
        snapshots: step -> generated points, including the start (0) and the end.
        log: lines of metrics.jsonl.
        drift: (places, generated) -> the field at those places, toward `real` and away from `generated`; None leaves it out.
        floor: squared energy distance of two real samples of this size.
    """
    scene = _Scene(title, real, snapshots)
    figures = {
        "samples": scene.samples(),
        "progress": scene.progress(),
        **({} if drift is None else {"drift_field": scene.field(drift)}),
        "losses": losses_figure(title, log, floor),
    }
    return save_figures(folder, figures, map(scene.moment, sorted(snapshots)))


def points_figure(points: Float[Tensor, "n 2"]) -> Image.Image:
    """Return a scatter plot of points in their own coordinates."""
    figure, (axes,) = panels(1, 1, size=5.0, title="")
    x, y = points.T.numpy()
    axes.scatter(x, y, s=4, color=GENERATED, alpha=0.6, linewidths=0)
    axes.set(aspect="equal", title=f"{len(points):,} samples", xlabel="x", ylabel="y")
    return pixels(figure)


@dataclass(frozen=True)
class Measured:
    """What was measured of one field on one problem: one value for each seed.

    Attributes:
        problem, field: their names.
        floors: distance from the data, in multiples of that of real data.
        recall: share of real data that samples cover.
    """

    problem: str
    field: str
    floors: Sequence[float]
    recall: Sequence[float]


def draw_fields(path: Path, measured: Sequence[Measured], title: str) -> Path:
    """Write a figure of fields on problems: distances and recall of every seed as dots, one row of panels for each problem."""
    problems: dict[str, list[Measured]] = {}
    for one in measured:
        problems.setdefault(one.problem, []).append(one)
    heights = [0.7 + 0.24 * len(shown) for shown in problems.values()]
    figure = new_figure(9.0, sum(heights) + 1.0, title)
    axes = figure.subplots(len(problems), 2, squeeze=False, sharey="row", height_ratios=heights)
    for (problem, shown), (left, right) in zip(problems.items(), axes, strict=True):
        _draw_seeds(left, [one.floors for one in shown])
        _draw_seeds(right, [one.recall for one in shown])
        left.set_yticks(range(len(shown)), [one.field for one in shown])
        left.set_ylim(len(shown) - 0.5, -0.5)
        left.set_ylabel(problem, parse_math=False)
    axes[-1][0].set_xlabel("distance from the data / that of real data (left is better)")
    axes[-1][1].set_xlabel("recall (right is better)")
    return save_figure(figure, path)


def _draw_seeds(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    """Draw one line of dots for each field, with its median; the axis is logarithmic if the values are far apart."""
    for row, seeds in enumerate(values):
        axes.plot(seeds, [row] * len(seeds), "o", color=GENERATED, markersize=4, alpha=0.6)
        axes.plot([float(np.median(seeds))] if seeds else [], [row] if seeds else [], "|", color=LINES[0], markersize=14)
    everything = [value for seeds in values for value in seeds]
    if everything and max(everything) > 10 * min(everything) > 0:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="y", alpha=0.3)
