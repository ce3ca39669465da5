"""The pictures of a run: points or images, their drift, the curves of the training."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._seeds import stream_seed
from drifting.config import RunConfig
from drifting.data import ImagesData, StreamedData
from drifting.data.dataset import Source, reference_samples
from drifting.data.digits import load_digits
from drifting.data.pixels import to_bytes, to_signed
from drifting.data.points import PlaneData
from drifting.loss import DriftingLoss, drifting_loss
from drifting.metrics.memorization import nearest
from drifting.metrics.two_sample import energy_distance
from drifting.plotting import draw_comparison, draw_images, draw_points
from drifting.plotting.panels import Log

# Of pictures of images: at most so many.
_COLUMNS, _ROWS = 10, 20
Pictures = Callable[..., list[Path]]


def build_pictures(config: RunConfig) -> Pictures:
    """Return the function (folder, snapshots=, log=) that draws the pictures of a run."""
    return _PICTURES[config.data.kind](config, config.data.source(config.seed))


def _image_pictures(config: RunConfig, source: Source) -> Pictures:
    title = config.data.title
    classes = source.num_classes or _COLUMNS
    columns = max(1, min(_COLUMNS, config.snapshot_samples // classes))
    rows = min(classes, config.snapshot_samples, _ROWS)
    names = config.data.class_names

    def grid(samples: Tensor) -> Tensor:
        """Return samples of the first classes, one class a row; they come with all classes in turn."""
        return samples[: classes * columns].unflatten(0, (columns, -1))[:, :rows].transpose(0, 1)

    real = grid(reference_samples(source, classes * columns, 0))
    train = to_bytes(load_digits().train) if config.data.kind == "digits" else cast(ImagesData, config.data).load("train").images

    def draw(folder: Path, *, snapshots: Mapping[int, Tensor], log: Log) -> list[Path]:
        shown = {step: grid(samples) for step, samples in snapshots.items()}
        last = shown[max(shown)]
        _, indices = nearest(last.flatten(0, 1).flatten(1), to_signed(train).flatten(1))
        near = to_signed(train[indices]).unflatten(0, (rows, columns))
        in_turn = {step: samples.transpose(0, 1).flatten(0, 1) for step, samples in shown.items()}
        pictures = draw_images(
            folder, title=title, real=real, snapshots=in_turn, log=log, labeled=source.num_classes is not None, names=names
        )
        return [*pictures, draw_comparison(folder, title=title, real=real, generated=last, nearest=near, names=names)]

    return draw


def _streamed_pictures(config: RunConfig, source: Source) -> Pictures:
    """Return the pictures of images too many for memory: latents are decoded, and nobody looks for the nearest real images."""
    data = cast(StreamedData, config.data)
    decode = data.decoder(config.device)
    rows, columns = _layout(source.num_classes, config.snapshot_samples)
    count, labeled = rows * columns, source.num_classes == rows

    def draw(folder: Path, *, snapshots: Mapping[int, Tensor], log: Log) -> list[Path]:
        anything = source.draw_unconditional(1, count, torch.Generator().manual_seed(stream_seed(0, "pictures")))[0]
        real = decode(reference_samples(source, count, 0) if labeled else anything)
        in_rows = to_signed(real).unflatten(0, (columns, rows)).transpose(0, 1)
        # As bytes: they are large images, at every stage of the training.
        shown = {step: decode(samples[:count]) for step, samples in snapshots.items()}
        return draw_images(
            folder,
            title=data.title,
            real=in_rows,
            snapshots=shown,
            log=log,
            labeled=labeled,
            names=data.class_names if labeled else None,
        )

    return draw


def _layout(classes: int | None, count: int) -> tuple[int, int]:
    """Return rows and columns of a picture of `count` samples, classes in turn: one class a row, unless there are too many."""
    if classes is not None and classes <= min(_ROWS, count // 2):
        return classes, min(_COLUMNS, count // classes)
    side = min(_COLUMNS, math.isqrt(count))
    return side, side


def _point_pictures(config: RunConfig, source: Source) -> Pictures:
    real, other = reference_samples(source, 2 * config.snapshot_samples, 0).chunk(2)
    data = cast(PlaneData, config.data)
    frame = data.frame
    floor = energy_distance(real, other)

    loss = config.loss.build()
    at: Callable[..., Tensor] | None = getattr(loss.field, "at", None)

    def drift(at: Callable[..., Tensor], places: Tensor, generated: Tensor) -> Tensor:
        seen = (frame.standardize(places), frame.standardize(generated), real)
        temperatures, _ = bandwidths(loss, *seen[1:])
        return frame.scale * torch.stack([at(*seen, temperature=value) for value in temperatures]).sum(0)

    def draw(folder: Path, *, snapshots: Mapping[int, Tensor], log: Log) -> list[Path]:
        restored = {step: frame.restore(points) for step, points in snapshots.items()}
        return draw_points(
            folder,
            title=data.title,
            real=frame.restore(real),
            snapshots=restored,
            log=log,
            drift=None if at is None else partial(drift, at),
            floor=floor,
        )

    return draw


# Kind of data -> what draws it.
_PICTURES: Mapping[str, Callable[[RunConfig, Source], Pictures]] = {
    "points": _point_pictures,
    "digits": _image_pictures,
    "images": _image_pictures,
    "streamed": _streamed_pictures,
}


def bandwidths(loss: DriftingLoss, generated: Float[Tensor, "n d"], positives: Float[Tensor, "p d"]) -> tuple[list[float], float]:
    """Return the temperatures in the units of samples, and the unit of the drift that training has for these samples."""
    if not loss.settings["normalize_features"]:
        return list(loss.temperatures), 1.0
    scale = float(drifting_loss(generated[None], positives[None], **loss.settings).scale)
    return [scale * temperature for temperature in loss.temperatures], scale / generated.shape[1] ** 0.5
