"""The configuration of a run, and how everything is built from it: the only file that knows every class.

A configuration is frozen, complete and JSON: written into the run folder and into every checkpoint, it is all that is needed to
sample again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drifting.data.images import load_digits
from drifting.data.points import Frame, frame_of, load_points
from drifting.data.source import InMemorySource, Source, StreamSource, reference_samples
from drifting.data.toys import toy
from drifting.encoders.base import FeatureEncoder
from drifting.encoders.identity import identity
from drifting.errors import InputError
from drifting.evaluation import Metrics, Sampler, evaluate_digits, evaluate_points
from drifting.fields.diagnostics import mean_shift_at
from drifting.fields.mean_shift import mean_shift
from drifting.generators.base import Generator
from drifting.generators.mlp import MLP
from drifting.inputs import check_temperatures
from drifting.loss import TEMPERATURES, DriftingLoss
from drifting.metrics.two_sample import energy_distance
from drifting.plotting import draw_images, draw_points
from drifting.plotting.panels import Log
from drifting.training.loop import Schedule

VERSION = 1
# Seeds of real points that no picture, frame or training draws.
_EVALUATION_STREAM = 10**6


@dataclass(frozen=True, kw_only=True)
class ToyData:
    """A distribution in the plane, see `data.toys`."""

    dataset: str


@dataclass(frozen=True, kw_only=True)
class PointsData:
    """A user's own points. `centre` and `scale` are found when the file is first read and kept with the run."""

    path: str
    centre: tuple[float, float] | None = None
    scale: float | None = None

    @property
    def frame(self) -> Frame:
        """Where the points lie; only of a resolved configuration."""
        if self.centre is None or self.scale is None:
            raise InputError(f"data is '{self.path}', whose centre and scale are not known yet: resolve the configuration first")
        return Frame(self.centre, self.scale)


@dataclass(frozen=True, kw_only=True)
class DigitsData:
    """Handwritten digits of 8 x 8 pixels, embedded in scikit-learn."""


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A `generators.mlp.MLP`."""

    noise_dim: int = 32
    width: int = 256
    depth: int = 3
    gain: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """A `loss.DriftingLoss` with the paper's field."""

    temperatures: tuple[float, ...] = TEMPERATURES
    affinity_floor: float = 1e-6
    normalize_features: bool = True
    normalize_drift: bool = True


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, completely.

    Attributes:
        preset: the name it was made from.
        data, generator, loss, schedule: its parts.
        seed: of the weights and of the training stream.
        device: where it trains: cpu, cuda, cuda:1, mps.
        log_every: steps between lines of metrics.jsonl.
        checkpoint_every: steps between checkpoints.
        keep: how many checkpoints to keep.
        frames: how many times samples are set aside for the pictures of the training, the start not counted.
        frame_samples: how many samples each time.
    """

    preset: str
    data: ToyData | PointsData | DigitsData
    generator: MLPConfig
    loss: LossConfig
    schedule: Schedule
    seed: int = 0
    device: str = "cpu"
    log_every: int = 25
    checkpoint_every: int = 500
    keep: int = 2
    frames: int = 24
    frame_samples: int = 2048

    def __post_init__(self) -> None:
        """Raise InputError for a value with which training could not work."""
        schedule = self.schedule
        counts = {
            "steps": schedule.steps,
            "generated": schedule.generated,
            "positives": schedule.positives,
            "labels_per_step": schedule.labels_per_step,
            "log_every": self.log_every,
            "checkpoint_every": self.checkpoint_every,
            "keep": self.keep,
            "frames": self.frames,
            "frame_samples": self.frame_samples,
            "statistics_every": schedule.statistics_every,
        }
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} is {value}: pass at least 1")
        check_temperatures(self.loss.temperatures)
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed is {self.seed}: pass a whole number from 0 to {2**31 - 1}")
        if not 0 < schedule.learning_rate <= 1e30:  # beyond, the optimiser itself overflows
            raise InputError(f"learning_rate is {schedule.learning_rate}: pass a number above 0, such as 1e-3")
        if schedule.decay_after is not None and schedule.decay_after < 1:
            raise InputError(f"decay_after is {schedule.decay_after}: pass at least 1, or None for no decay")
        if not 0 <= schedule.ema_decay < 1:
            raise InputError(f"ema_decay is {schedule.ema_decay}: pass a number from 0 to below 1")
        if schedule.generated == 1 and not schedule.independent_negatives:
            raise InputError(
                "batch_size leaves 1 generated sample per label and nothing to repel it: "
                "pass at least 2 per label, or independent negatives"
            )


def resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with everything that depends on the data and the machine filled in and checked."""
    try:
        device = torch.device(config.device)
    except RuntimeError:
        raise InputError(f"device is '{config.device}': pass cpu, cuda, cuda:1 or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 0):
        raise InputError(f"device is '{config.device}', which this machine does not offer: pass --device cpu")
    if isinstance(config.data, PointsData) and config.data.scale is None:
        centre, scale = frame_of(load_points(Path(config.data.path)), config.data.path)
        path = str(Path(config.data.path).resolve())
        config = dataclasses.replace(config, data=PointsData(path=path, centre=centre, scale=scale))
    return config


def build_source(config: RunConfig) -> Source:
    """Return the real samples a run trains on."""
    match config.data:
        case ToyData(dataset=name):
            return StreamSource(toy(name).draw, (2,))
        case PointsData(path=path) as data:
            return InMemorySource(data.frame.standardise(load_points(Path(path))))
        case DigitsData():
            split = load_digits()
            return InMemorySource(split.train, split.train_labels)


def build_generator(config: RunConfig) -> Generator:
    """Return the generator with its initial weights, which depend on the seed alone, on the CPU."""
    shape, num_classes = ((1, 8, 8), 10) if isinstance(config.data, DigitsData) else ((2,), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MLP(sample_shape=shape, num_classes=num_classes, **vars(config.generator))


def build_encoder(config: RunConfig) -> FeatureEncoder:
    """Return the feature space in which the samples of a run drift."""
    del config
    return identity


def build_loss(config: RunConfig) -> DriftingLoss:
    """Return the drifting loss of a run."""
    return DriftingLoss(**vars(config.loss))


def build_export(config: RunConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the map from the generator's samples to the user's form: points in their coordinates, images as uint8 [n, h, w, c]."""
    match config.data:
        case PointsData() as data:
            return data.frame.restore
        case DigitsData():
            return lambda images: ((images + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1)
        case _:
            return lambda points: points


def build_evaluation(config: RunConfig) -> Callable[[Sampler], Metrics]:
    """Return the function that measures a sampler against the real data of a run."""
    if isinstance(config.data, DigitsData):
        return partial(evaluate_digits, split=load_digits())
    source = build_source(config)
    count = min(10_000, len(source.samples) // 2) if isinstance(source, InMemorySource) else 10_000
    modes = toy(config.data.dataset).modes if isinstance(config.data, ToyData) else None
    return partial(
        evaluate_points,
        real=lambda total, seed: reference_samples(source, total, _EVALUATION_STREAM + seed),
        count=count,
        drift=lambda generated, positives: _summed(config.loss, mean_shift, generated, positives),
        batch=min(config.schedule.generated, count),
        modes=modes,
    )


def build_pictures(config: RunConfig) -> Callable[..., list[Path]]:
    """Return the function (folder, frames=, log=) that draws the pictures of a run."""
    source = build_source(config)
    if isinstance(config.data, DigitsData):
        columns = max(1, min(10, config.frame_samples // 10))
        real = reference_samples(source, 10 * columns, 0).unflatten(0, (columns, 10)).transpose(0, 1)
        return partial(draw_images, title="digits", real=real)
    real, other = reference_samples(source, 2 * config.frame_samples, 0).chunk(2)
    frame = config.data.frame if isinstance(config.data, PointsData) else Frame((0.0, 0.0), 1.0)
    title = config.data.dataset if isinstance(config.data, ToyData) else Path(config.data.path).stem
    floor = energy_distance(real, other)

    def drift(places: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        seen = (frame.standardise(places), frame.standardise(generated), real)
        return frame.scale * _summed(config.loss, mean_shift_at, *seen)

    def draw(folder: Path, *, frames: Mapping[int, torch.Tensor], log: Log) -> list[Path]:
        restored = {step: frame.restore(points) for step, points in frames.items()}
        return draw_points(folder, title=title, real=frame.restore(real), frames=restored, log=log, drift=drift, floor=floor)

    return draw


def _summed(loss: LossConfig, field: Callable[..., torch.Tensor], *samples: torch.Tensor) -> torch.Tensor:
    """Return the drift of all temperatures of a loss together."""
    parts = [field(*samples, temperature=value, affinity_floor=loss.affinity_floor) for value in loss.temperatures]
    return torch.stack(parts).sum(0)


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, with its version."""
    parts = {name: {"type": type(getattr(config, name)).__name__} for name in ("data", "generator")}
    plain = dataclasses.asdict(config)
    return {"version": VERSION, **plain, **{name: {**kind, **plain[name]} for name, kind in parts.items()}}


def from_json(values: dict[str, Any], origin: str) -> RunConfig:
    """Return the configuration written by `to_json`; raises InputError if it is of a newer version or not one at all."""
    version = values.get("version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise InputError(f"configuration '{origin}' has no version: name the folder of a run made by drifting")
    if version > VERSION:
        raise InputError(f"configuration '{origin}' has version {version}, newer than {VERSION}: update drifting to read it")
    try:
        fields = {name: value for name, value in values.items() if name != "version"}
        fields["data"] = _of_type(fields["data"], (ToyData, PointsData, DigitsData))
        fields["generator"] = _of_type(fields["generator"], (MLPConfig,))
        fields["loss"] = LossConfig(**_tuples(fields["loss"]))
        fields["schedule"] = Schedule(**_tuples(fields["schedule"]))
        return RunConfig(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"configuration '{origin}' is damaged ({error}): restore it or train again") from None


def _of_type(values: dict[str, Any], kinds: Sequence[type]) -> Any:
    kind = {kind.__name__: kind for kind in kinds}[values["type"]]
    return kind(**_tuples({name: value for name, value in values.items() if name != "type"}))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
