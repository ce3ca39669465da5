"""What a run shows of itself: its pictures and its figures."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._seeds import stream_seed
from drifting.config.build import build_loss
from drifting.config.data import (
    DigitsData,
    ImagesData,
    LatentsData,
    PointsData,
    StreamedData,
    ToyData,
)
from drifting.config.export import build_decoder
from drifting.config.run import RunConfig
from drifting.config.sources import build_source, load_split
from drifting.data.dataset import InMemorySource, Source, reference_samples
from drifting.data.digits import load_digits
from drifting.data.pixels import to_bytes, to_signed
from drifting.data.points import Frame
from drifting.data.toys import toy
from drifting.errors import InputError
from drifting.evaluation import Metrics, Sampler, evaluate_digits, evaluate_points
from drifting.loss import DriftingLoss, drifting_loss
from drifting.metrics.memorisation import nearest
from drifting.metrics.two_sample import energy_distance
from drifting.plotting import draw_comparison, draw_images, draw_points
from drifting.plotting.panels import Log

# Seeds of real points that no picture, frame or training draws.
_EVALUATION_STREAM = 10**6
# Of an evaluation: with ten times as many it takes a hundred times as long.
_MOST_POINTS = 100_000
# Of pictures of images: at most so many.
_COLUMNS, _ROWS = 10, 20

Pictures = Callable[..., list[Path]]


def build_evaluation(config: RunConfig, count: int = 10_000) -> Callable[[Sampler], Metrics]:
    """Return the function that measures a sampler against the real data of a run: so many points, or digits, which are all used.

    Raises:
        InputError: for fewer than 2 points, of a sampler or in each half of a data set.
    """
    if isinstance(config.data, DigitsData):
        return partial(evaluate_digits, split=load_digits())
    source = build_source(config)
    if count < 2:
        raise InputError(f"num_samples is {count}: ask for at least 2")
    if isinstance(source, InMemorySource):
        count = min(count, len(source.samples) // 2)
        if count < 2:
            origin = getattr(config.data, "path", None)
            few = f"data is '{origin}' of {len(source.samples)} points, of which one half is compared with the other"
            raise InputError(f"{few}: evaluate a run of at least 4")
    if count > _MOST_POINTS:
        raise InputError(f"num_samples is {count}, all pairs of which are compared, for hours: ask for at most {_MOST_POINTS}")
    modes = toy(config.data.dataset).modes if isinstance(config.data, ToyData) else None
    return partial(
        evaluate_points,
        real=lambda total, seed: reference_samples(source, total, _EVALUATION_STREAM + seed),
        count=count,
        drift=partial(_training_drift, build_loss(config)),
        batch=min(config.schedule.generated, count),
        endless=not isinstance(source, InMemorySource),
        modes=modes,
    )


def build_pictures(config: RunConfig) -> Pictures:
    """Return the function (folder, frames=, log=) that draws the pictures of a run."""
    source = build_source(config)
    if isinstance(config.data, DigitsData | ImagesData):
        return _image_pictures(config, source)
    if isinstance(config.data, StreamedData):
        return _streamed_pictures(config, config.data, source)
    return _point_pictures(config, source)


def _image_pictures(config: RunConfig, source: Source) -> Pictures:
    title = config.data.name if isinstance(config.data, ImagesData) else "digits"
    classes = source.num_classes or _COLUMNS
    columns = max(1, min(_COLUMNS, config.frame_samples // classes))
    rows = min(classes, config.frame_samples, _ROWS)
    names = getattr(config.data, "class_names", None)

    def grid(samples: Tensor) -> Tensor:
        """Return samples of the first classes, one class a row; they come with all classes in turn."""
        return samples[: classes * columns].unflatten(0, (columns, -1))[:, :rows].transpose(0, 1)

    real = grid(reference_samples(source, classes * columns, 0))
    train = load_split(config.data, "train").images if isinstance(config.data, ImagesData) else to_bytes(load_digits().train)

    def draw(folder: Path, *, frames: Mapping[int, Tensor], log: Log) -> list[Path]:
        shown = {step: grid(samples) for step, samples in frames.items()}
        last = shown[max(shown)]
        _, indices = nearest(last.flatten(0, 1).flatten(1), to_signed(train).flatten(1))
        near = to_signed(train[indices]).unflatten(0, (rows, columns))
        in_turn = {step: samples.transpose(0, 1).flatten(0, 1) for step, samples in shown.items()}
        pictures = draw_images(
            folder, title=title, real=real, frames=in_turn, log=log, labelled=source.num_classes is not None, names=names
        )
        return [*pictures, draw_comparison(folder, title=title, real=real, generated=last, nearest=near, names=names)]

    return draw


def _streamed_pictures(config: RunConfig, data: StreamedData, source: Source) -> Pictures:
    """Return the pictures of images too many for memory: latents are decoded, and nobody looks for the nearest real images."""
    decode = build_decoder(config, config.device)
    rows, columns = _layout(source.num_classes, config.frame_samples)
    count, labelled = rows * columns, source.num_classes == rows
    title = Path(data.path or "").name + (", decoded latents" if isinstance(data, LatentsData) else "")

    def draw(folder: Path, *, frames: Mapping[int, Tensor], log: Log) -> list[Path]:
        anything = source.draw_unconditional(1, count, torch.Generator().manual_seed(stream_seed(0, "pictures")))[0]
        real = decode(reference_samples(source, count, 0) if labelled else anything)
        in_rows = to_signed(real).unflatten(0, (columns, rows)).transpose(0, 1)
        # As bytes: they are large images, at every stage of the training.
        shown = {step: decode(samples[:count]) for step, samples in frames.items()}
        return draw_images(
            folder,
            title=title,
            real=in_rows,
            frames=shown,
            log=log,
            labelled=labelled,
            names=data.class_names if labelled else None,
        )

    return draw


def _layout(classes: int | None, count: int) -> tuple[int, int]:
    """Return rows and columns of a picture of `count` samples, classes in turn: one class a row, unless there are too many."""
    if classes is not None and classes <= min(_ROWS, count // 2):
        return classes, min(_COLUMNS, count // classes)
    side = min(_COLUMNS, math.isqrt(count))
    return side, side


def _point_pictures(config: RunConfig, source: Source) -> Pictures:
    real, other = reference_samples(source, 2 * config.frame_samples, 0).chunk(2)
    frame = config.data.frame if isinstance(config.data, PointsData) else Frame((0.0, 0.0), 1.0)
    title = Path(config.data.path).stem if isinstance(config.data, PointsData) else getattr(config.data, "dataset", "")
    floor = energy_distance(real, other)

    loss = build_loss(config)
    at: Callable[..., Tensor] | None = getattr(loss.field, "at", None)

    def drift(at: Callable[..., Tensor], places: Tensor, generated: Tensor) -> Tensor:
        seen = (frame.standardise(places), frame.standardise(generated), real)
        temperatures, _ = _bandwidths(loss, *seen[1:])
        return frame.scale * torch.stack([at(*seen, temperature=value) for value in temperatures]).sum(0)

    def draw(folder: Path, *, frames: Mapping[int, Tensor], log: Log) -> list[Path]:
        restored = {step: frame.restore(points) for step, points in frames.items()}
        return draw_points(
            folder,
            title=title,
            real=frame.restore(real),
            frames=restored,
            log=log,
            drift=None if at is None else partial(drift, at),
            floor=floor,
        )

    return draw


def _training_drift(loss: DriftingLoss, generated: Float[Tensor, "n d"], positives: Float[Tensor, "p d"]) -> Float[Tensor, "n d"]:
    """Return the raw drift by the field that trains, of all temperatures together, in the units of the norms that training logs."""
    temperatures, unit = _bandwidths(loss, generated, positives)
    moved, real = generated[None], positives[None]
    drift = loss.field(
        moved,
        real,
        moved,
        temperatures=generated.new_tensor(temperatures),
        weights=None,
        num_self=len(generated),
        distances=None,
    )
    return drift.sum(0)[0] / unit


def _bandwidths(loss: DriftingLoss, generated: Float[Tensor, "n d"], positives: Float[Tensor, "p d"]) -> tuple[list[float], float]:
    """Return the temperatures in the units of samples, and the unit of the drift that training has for these samples."""
    if not loss.settings["normalize_features"]:
        return list(loss.temperatures), 1.0
    scale = float(drifting_loss(generated[None], positives[None], **loss.settings).scale)
    return [scale * temperature for temperature in loss.temperatures], scale / generated.shape[1] ** 0.5
