"""The pictures of a run: points or images, their drift, the curves of the training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from drifting._torch import stream_seed
from drifting.config import RunConfig
from drifting.data import Decoder
from drifting.data.dataset import Source
from drifting.data.pixels import to_signed
from drifting.data.points import Frame
from drifting.data.sources import reference_samples
from drifting.loss import DriftingLoss, drifting_loss
from drifting.metrics.distances import energy_distance
from drifting.metrics.images import nearest
from drifting.plotting import draw_comparison, draw_images, draw_points
from drifting.plotting.figures import Log

# Largest grid of images in a picture.
_COLUMNS, _ROWS = 10, 20


def draw_pictures(
    config: RunConfig, folder: Path, *, snapshots: Mapping[int, Tensor], log: Log, source: Source | None = None
) -> list[Path]:
    """Draw the pictures of a run and return their paths; arguments as of `Drawing`, with a source that is made here for None."""
    source = config.data.source(config.seed) if source is None else source
    return config.data.depict(Drawing(config, source, folder, snapshots, log))


@dataclass(frozen=True)
class Drawing:
    """The ways to draw the samples of a run. The data of the run choose one, or draw their own pictures.

    Attributes:
        config: configuration of the run.
        source: source of real samples.
        folder: folder of the pictures.
        snapshots: step -> samples of that step, with the start (0) and the end.
        log: the lines of metrics.jsonl.
    """

    config: RunConfig
    source: Source
    folder: Path
    snapshots: Mapping[int, Tensor]
    log: Log

    def images(self, train: UInt8[Tensor, "s c h w"]) -> list[Path]:
        """Draw images, one class per row, and the training images nearest to the last ones."""
        config, source, names = self.config, self.source, self.config.data.class_names
        classes = source.num_classes or _COLUMNS
        columns = max(1, min(_COLUMNS, config.snapshot_samples // classes))
        rows = min(classes, config.snapshot_samples, _ROWS)

        def grid(samples: Tensor) -> Tensor:
            """Return samples of the first classes, one class per row; the classes of the samples are in turn."""
            return samples[: classes * columns].unflatten(0, (columns, -1))[:, :rows].transpose(0, 1)

        real = grid(reference_samples(source, classes * columns, 0))
        shown = {step: grid(samples) for step, samples in self.snapshots.items()}
        last = shown[max(shown)]
        _, indices = nearest(last.flatten(0, 1).flatten(1), to_signed(train).flatten(1))
        near = to_signed(train[indices]).unflatten(0, (rows, columns))
        in_turn = {step: samples.transpose(0, 1).flatten(0, 1) for step, samples in shown.items()}
        title, labeled = config.data.title, source.num_classes is not None
        pictures = draw_images(self.folder, title=title, real=real, snapshots=in_turn, log=self.log, labeled=labeled, names=names)
        return [*pictures, draw_comparison(self.folder, title=title, real=real, generated=last, nearest=near, names=names)]

    def decoded(self, decode: Decoder) -> list[Path]:
        """Draw images of data that do not fit into memory, without the nearest real images."""
        config, source = self.config, self.source
        rows, columns = layout(source.num_classes, config.snapshot_samples)
        count, labeled = rows * columns, source.num_classes == rows
        anything = source.draw_unconditional(1, count, torch.Generator().manual_seed(stream_seed(0, "pictures")))[0]
        real = decode(reference_samples(source, count, 0) if labeled else anything)
        return draw_images(
            self.folder,
            title=config.data.title,
            real=to_signed(real).unflatten(0, (columns, rows)).transpose(0, 1),
            # As bytes, because there are large images of every snapshot.
            snapshots={step: decode(samples[:count]) for step, samples in self.snapshots.items()},
            log=self.log,
            labeled=labeled,
            names=config.data.class_names if labeled else None,
        )

    def points(self, frame: Frame) -> list[Path]:
        """Draw points in the plane and, if the training field can compute it, the drift at every place."""
        real, other = reference_samples(self.source, 2 * self.config.snapshot_samples, 0).chunk(2)
        return draw_points(
            self.folder,
            title=self.config.data.title,
            real=frame.restore(real),
            snapshots={step: frame.restore(points) for step, points in self.snapshots.items()},
            log=self.log,
            drift=summed_drift(self.config.loss.build(), frame, real),
            floor=energy_distance(real, other),
        )


def summed_drift(
    loss: DriftingLoss, frame: Frame, real: Float[Tensor, "r 2"]
) -> Callable[[Float[Tensor, "q 2"], Float[Tensor, "n 2"]], Float[Tensor, "q 2"]] | None:
    """Return the function (places, generated) -> the drift at places, summed over all temperatures, in the user's coordinates.

    Args:
        loss: the loss with its field.
        frame: frame of the points.
        real: points that attract, standardized.

    Returns:
        The function; None if the field cannot be computed at any place.
    """
    at: Callable[..., Tensor] | None = getattr(loss.field, "at", None)
    if at is None:
        return None

    def drift(at: Callable[..., Tensor], places: Tensor, generated: Tensor) -> Tensor:
        points, samples = frame.standardize(places), frame.standardize(generated)
        temperatures, _ = bandwidths(loss, samples, real)
        return frame.scale * torch.stack([at(points, samples, real, temperature=value) for value in temperatures]).sum(0)

    return partial(drift, at)


def layout(classes: int | None, count: int) -> tuple[int, int]:
    """Return the rows and columns of a picture of `count` samples: one class per row, unless there are too many."""
    if classes is not None and classes <= min(_ROWS, count // 2):
        return classes, min(_COLUMNS, count // classes)
    side = min(_COLUMNS, math.isqrt(count))
    return side, side


def bandwidths(loss: DriftingLoss, generated: Float[Tensor, "n d"], positives: Float[Tensor, "p d"]) -> tuple[list[float], float]:
    """Return the temperatures in the units of the samples, and the unit of the drift in training on these samples."""
    if not loss.settings["normalize_features"]:
        return list(loss.temperatures), 1.0
    scale = float(drifting_loss(generated[None], positives[None], **loss.settings).scale)
    return [scale * temperature for temperature in loss.temperatures], scale / generated.shape[1] ** 0.5
