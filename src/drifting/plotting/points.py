"""Pictures of points in the plane, in the coordinates of their data.

Shapes: n samples, r real samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from drifting.plotting.panels import (
    GENERATED,
    REAL,
    Axes,
    Figure,
    Log,
    losses_figure,
    panels,
    pixels,
    progress_figure,
    save_figures,
)

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
