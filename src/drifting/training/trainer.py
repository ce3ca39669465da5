"""Train your own network by a drift field: the training state, the real samples and the loop of a run, without a run folder.

trainer = Trainer(network, data, noise_shape=32)
for step in trainer:
print(step.number, float(step.loss))
samples = trainer.sample(64)
"""

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from drifting._checks import check_counts, check_device, check_field, check_row_scale, check_seed
from drifting._json import read_dataclass
from drifting.data.batches import as_batch
from drifting.data.dataset import Source
from drifting.data.pairs import Conditions, PairedSource
from drifting.data.sources import InMemorySource, LoaderSource
from drifting.encoders.base import FeatureEncoder, Features, Frozen, Identity
from drifting.errors import InputError, reason
from drifting.generators.base import Generator, WrappedGenerator, noise_shape_of
from drifting.loss import DriftingLoss
from drifting.sampling import batch_of, forward, sample
from drifting.training.loop import Step, train
from drifting.training.positives import Positives
from drifting.training.schedule import Schedule, check_schedule
from drifting.training.state import TrainingState
from drifting.training.step import computed_in

_COUNTED = ("steps", "generated", "positives", "labels_per_step", "statistics_every")

Data = Tensor | tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]


class Trainer:
    """Train a module that maps noise to samples in one pass; iterating it trains, one step at a time.

    If an iteration is left, the next one continues where it stopped.

    Args:
        module: your network, called as module(noise), or as module(noise, labels) where the data have labels and as
            module(noise, conditions) where they have conditions; trained in place, all layers in training mode.
        data: real samples as floats: a tensor, a pair (samples, labels) of tensors, a data set of either, which is read into
            memory, or a DataLoader of batches of either, one of which is read in every step. Also a data set of the library
            `datasets`, or a loader over one, with one column of samples and at most one of labels.
        conditions: one condition for each sample of a tensor `data`, such as an observation for each action. Samples that are
            generated for one condition repel each other, and only the real sample of the condition attracts them.
        encoder: feature encoder, the space in which samples drift: a callable from samples to features [b, d] or [b, k, d] with k
            locations, or to a mapping of such features. A module is frozen in place. None for the samples themselves.
        loss: drifting loss of the features; `DriftingLoss()` by default.
        schedule: steps, batch and optimizer; by default 1000 steps of 256 samples, of 32 samples of each of at most 16 classes, or
            of 8 samples for each of at most 64 conditions. `labels_per_step` is the number of conditions of a step.
        noise_shape: shape of the noise of one sample, or its length; by default the `noise_shape` of the module.
        num_classes: number of labels of a DataLoader; by default the `num_classes` of the module.
        seed: seed of everything random in the training, except the initial weights of the module.
        device: device of the training; by default that of the module.

    Raises:
        InputError: if module, data, encoder and schedule do not fit together.
    """

    def __init__(  # noqa: PLR0913 - all parts of a training
        self,
        module: nn.Module,
        data: Data,
        *,
        conditions: Tensor | None = None,
        encoder: Callable[[Tensor], Any] | None = None,
        loss: DriftingLoss | None = None,
        schedule: Schedule | None = None,
        noise_shape: int | Sequence[int] | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        check_seed(seed)
        if loss is not None and not isinstance(loss, DriftingLoss):
            raise InputError(f"loss is a {type(loss).__name__}: pass a DriftingLoss, with any field")
        _check_bare(module)
        self.module, self.loss = module, DriftingLoss() if loss is None else loss
        place = _device_of(module, device)
        classes = getattr(module, "num_classes", None) if num_classes is None else num_classes
        source = _open(data, schedule, classes, seed, place) if conditions is None else _pairs(data, conditions)
        self.schedule = schedule or _default_schedule(source.num_classes, paired=conditions is not None)
        check_counts({name: getattr(self.schedule, name) for name in _COUNTED})
        read_dataclass(type(self.schedule), vars(self.schedule))  # refuses values of other types
        if self.loss.settings["scale_per_row"]:
            check_row_scale(self.loss.field, normalize_features=self.loss.settings["normalize_features"])
        check_field(self.loss.field, has_independent=self.schedule.independent_negatives)
        check_schedule(self.schedule, labeled=source.num_classes is not None)
        if conditions is not None and self.schedule.positives != 1:
            raise InputError(f"positives is {self.schedule.positives}, but a condition has one real sample: pass 1")
        generator = _as_generator(module, source, noise_shape).to(place)
        _check_guidance(generator, self.schedule)
        self._encoder = _as_encoder(encoder, self.schedule, place)
        _try(generator, source, self._encoder, place)
        self._positives = Positives(source, self._encoder)
        self._state = TrainingState(generator, self.schedule, seed)

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return self._state.step

    @property
    def averaged(self) -> nn.Module:
        """A copy of the module with averaged weights, which makes the samples."""
        averaged = self._state.averaged
        return averaged.module if isinstance(averaged, _ModuleGenerator) else averaged

    def __iter__(self) -> Iterator[Step]:
        """Train to the last step of the schedule and yield each step; raises DivergenceError if the loss is not finite."""
        for step in train(self._state, self._positives, self._encoder, self.loss, self.schedule):
            if step.number % self.schedule.statistics_every == 0 or step.number == self.schedule.steps:
                self._state.check_faults()
            yield step

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        conditions: Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> Float[Tensor, "s *sample"]:
        """Return samples of the averaged weights on the CPU, one pass each; arguments as in `sampling.sample`.

        A trainer with conditions cycles through other `conditions`, or by default through those of the training.
        """
        generator = self._state.averaged
        if conditions is not None:
            if not isinstance(generator, _ModuleGenerator) or generator.conditions is None:
                raise InputError("conditions are given, but the trainer has none: leave them out")
            generator = generator.under(conditions)
        size = batch_of(generator.sample_shape)
        return sample(generator, count, seed=seed, labels=labels, guidance_scale=guidance_scale, batch_size=size)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of all that changes in training: weights, averages, optimizer, random stream, position in the data."""
        positives = {f"positives.{name}": value for name, value in self._positives.tensors().items()}
        tensors = {**self._state.tensors(), **positives, "step": torch.tensor(self.step)}
        return {name: value.detach().clone() for name, value in tensors.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], origin: str = "the state") -> None:
        """Restore the result of `state_dict` of a trainer with the same module, data and schedule.

        On a CPU the training then continues bit for bit as the other would have; the schedule may have more steps.

        Raises:
            InputError: if the state does not fit.
        """
        if "step" not in tensors:
            raise InputError(f"checkpoint is '{origin}', which has no step: pass what state_dict() returned")
        step = int(tensors["step"])
        if not 0 <= step <= self.schedule.steps:
            raise InputError(f"checkpoint is '{origin}', of step {step}: pass a schedule with at least {step} steps")
        prefix = "positives."
        positives = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        state = {name: value for name, value in tensors.items() if name != "step" and not name.startswith(prefix)}
        self._state.check(state, step, origin)
        self._positives.restore(positives, origin)
        self._state.restore(state, step, origin)


class _ModuleGenerator(WrappedGenerator):
    """A user's module as a generator, of the samples of labels or of conditions."""

    def __init__(
        self,
        module: nn.Module,
        noise_shape: tuple[int, ...],
        sample_shape: tuple[int, ...],
        num_classes: int | None,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__(module, noise_shape, sample_shape, num_classes)
        self.conditions = conditions

    def forward(self, noise: Tensor, labels: Tensor | None = None, guidance_scale: Tensor | None = None) -> Tensor:
        """Return what the module returns."""
        return super().forward(noise, labels if labels is None or self.conditions is None else self.conditions[labels])

    def under(self, conditions: Tensor) -> "_ModuleGenerator":
        """Return the same generator with other conditions; raises InputError unless they are like those of the training."""
        assert self.conditions is not None
        rows = self.conditions.rows
        if not isinstance(conditions, Tensor) or conditions.shape[1:] != rows.shape[1:] or conditions.ndim != rows.ndim:
            found = f"of shape {tuple(conditions.shape)}" if isinstance(conditions, Tensor) else f"a {type(conditions).__name__}"
            raise InputError(
                f"conditions is {found}: pass a tensor with one row of shape {tuple(rows.shape[1:])} for each condition"
            )
        if len(conditions) == 0 or not bool(conditions.isfinite().all()):
            raise InputError("conditions is empty or holds NaN or infinite values: pass at least one, and remove those")
        conditions = conditions.to(rows.dtype) if rows.is_floating_point() else conditions
        return _ModuleGenerator(self.module, self.noise_shape, self.sample_shape, len(conditions), Conditions(conditions))


def _device_of(module: nn.Module, device: torch.device | str | None) -> torch.device:
    weight = next(module.parameters(), None)
    if weight is None:
        raise InputError(f"module is a {type(module).__name__} without parameters: pass a network that can be trained")
    if device is None:
        return weight.device
    check_device(str(device))
    return torch.device(device)


def _open(data: Data, schedule: Schedule | None, num_classes: int | None, seed: int, device: torch.device) -> Source:
    """Return the source of the real samples."""
    if isinstance(data, DataLoader):
        capacity = schedule or _default_schedule(num_classes)
        unconditional = max(1, capacity.unconditional)
        memory = {"capacity": max(1, capacity.positives), "unconditional_capacity": unconditional, "device": device}
        source = LoaderSource(data, num_classes=num_classes, seed=seed, **memory)
        # The module may have classes, but the data no labels: the default schedule then is that without labels.
        unlabeled = schedule is None and num_classes is not None and source.num_classes is None
        return _open(data, None, None, seed, device) if unlabeled else source
    samples: Any = data
    if isinstance(data, TensorDataset):
        samples = data.tensors
    elif isinstance(data, Dataset) or hasattr(data, "with_format"):
        samples = _read(data)
    if not isinstance(samples, Tensor | tuple | list | Mapping):
        raise InputError(f"data is a {type(data).__name__}: pass a tensor, a pair of tensors, a Dataset or a DataLoader")
    return InMemorySource(*as_batch(samples))


def _pairs(data: Data, conditions: Tensor) -> PairedSource:
    """Return the source of samples with one condition each."""
    if not isinstance(data, Tensor) or not isinstance(conditions, Tensor):
        kinds = f"data is a {type(data).__name__} and conditions a {type(conditions).__name__}"
        raise InputError(f"{kinds}: pass both as tensors, with one row for each sample")
    return PairedSource(as_batch(data)[0], conditions)


def _read(data: Any) -> Any:
    """Return all samples of a data set of torch or of the library datasets, with their labels if it has any."""
    if not hasattr(data, "__len__"):
        raise InputError(f"data is a {type(data).__name__}, which has no length: pass a DataLoader over it")
    if hasattr(data, "with_format") and data.format["type"] is None:
        data = data.with_format("torch")
    items = [data[index] for index in range(len(data))]
    if not items:
        raise InputError("data is empty: pass at least one sample")
    if isinstance(items[0], Tensor):
        return _stacked(items)
    if all(isinstance(item, Mapping) for item in items):
        for name in (name for name, value in items[0].items() if isinstance(value, Tensor)):
            _stacked([item.get(name) for item in items])
        return default_collate(items)
    pairs = all(isinstance(item, tuple | list) and len(item) == 2 for item in items)
    if not pairs or not isinstance(items[0][0], Tensor):
        raise InputError(f"data has items of {type(items[0]).__name__}: pass a data set of tensors x, or of pairs (x, y)")
    samples, labels = zip(*items, strict=True)
    return _stacked(samples), torch.tensor([_whole(label) for label in labels])


def _stacked(samples: Sequence[Any]) -> Tensor:
    """Return samples as one tensor, or raise InputError unless all of them are tensors of the same shape."""
    forms = [tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__ for sample in samples]
    other = next((form for form in forms if form != forms[0]), None)
    if other is not None:
        raise InputError(f"data has samples of shape {forms[0]} and of {other}: pass tensors of one shape")
    return torch.stack(list(samples))


def _whole(label: Any) -> int:
    """Return a label as a number, or raise InputError unless it is a whole one."""
    try:
        return operator.index(label)
    except TypeError:
        found = f"{label.dtype} of shape {tuple(label.shape)}" if hasattr(label, "shape") else repr(label)
        raise InputError(f"labels has {found}: pass one whole number for each sample") from None


def _default_schedule(num_classes: int | None, *, paired: bool = False) -> Schedule:
    if num_classes is not None and paired:
        return Schedule(steps=1000, learning_rate=1e-3, labels_per_step=min(num_classes, 64), generated=8, positives=1)
    if num_classes is None:
        return Schedule(steps=1000, learning_rate=1e-3, generated=256, positives=256)
    return Schedule(steps=1000, learning_rate=1e-3, labels_per_step=min(num_classes, 16), generated=32, positives=32)


def _check_bare(module: nn.Module) -> None:
    """Raise InputError for a wrapper: saved weights would have its prefix in their names, and would not fit the module itself."""
    kind = type(module).__name__
    if hasattr(module, "_orig_mod"):
        raise InputError(f"module is a {kind} of torch.compile: pass the module itself, and compile=True in the schedule")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"module is a {kind}: pass the module that it wraps")


def _as_generator(module: nn.Module, source: Source, noise_shape: int | Sequence[int] | None) -> Generator:
    """Return the module as a generator of the samples of a source, or raise InputError if it cannot be one."""
    labeled, conditions = source.num_classes is not None, getattr(source, "conditions", None)
    if isinstance(module, Generator) and conditions is not None:
        raise InputError("module is a Generator, which takes labels, but conditions are given: pass a module that takes these")
    if conditions is None:
        _check_classes(module, source.num_classes)
    if isinstance(module, Generator):
        return module
    required, most = _arguments(module)
    if labeled and most < 2:
        raise InputError("module takes noise alone, but the data have labels or conditions: leave them out, or take both")
    if not labeled and required > 1:
        raise InputError(f"module takes {required} arguments, but the data have no labels: pass a pair (samples, labels)")
    shape = noise_shape_of(module, noise_shape)
    return _ModuleGenerator(module, shape, source.sample_shape, source.num_classes, conditions)


def _check_classes(module: nn.Module, wanted: int | None) -> None:
    """Raise InputError unless the module has the classes of the data. One that is no Generator may have more."""
    classes = getattr(module, "num_classes", None)
    if isinstance(module, Generator):
        fits = classes == wanted
    else:
        fits = wanted is None or not isinstance(classes, int) or classes >= wanted
    if not fits:
        raise InputError(f"module has {classes} classes, but the data {wanted}: build it with num_classes={wanted}")


def _arguments(module: nn.Module) -> tuple[int, float]:
    """Return the smallest and the largest number of positional arguments of a module."""
    required, most = 0, 0.0
    for argument in inspect.signature(module.forward).parameters.values():
        if argument.kind is argument.VAR_POSITIONAL:
            most = float("inf")
        elif argument.kind in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD):
            most += 1
            required += argument.default is argument.empty
    return required, most


def _check_guidance(generator: Generator, schedule: Schedule) -> None:
    if schedule.draws_guidance and not generator.guided:
        exponent = schedule.guidance_exponent
        raise InputError(f"guidance_exponent is {exponent}, but the module takes no guidance scale: pass None")
    if generator.guided and not schedule.draws_guidance:
        raise InputError("module takes a guidance scale, but none is drawn: pass a schedule with a guidance_exponent")


def _as_encoder(encoder: Callable[[Tensor], Any] | None, schedule: Schedule, device: torch.device) -> FeatureEncoder:
    """Return an encoder whose features have names and locations."""
    chosen = Identity() if encoder is None else encoder
    if isinstance(chosen, nn.Module) and not isinstance(chosen, Frozen):
        chosen = Frozen(chosen)
    network = chosen.to(device) if isinstance(chosen, nn.Module) else chosen
    network = torch.compile(network) if schedule.compile else network

    def encode(samples: Tensor) -> Features:
        found = network(samples)
        named = {"sample": found} if isinstance(found, Tensor) else found
        if not isinstance(named, Mapping) or not named:
            raise InputError(f"encoder returns a {type(found).__name__}: return a tensor, or tensors by name")
        for name, value in named.items():
            if not isinstance(value, Tensor) or value.ndim not in (2, 3) or len(value) != len(samples):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"encoder returns '{name}' as {shape}: return [b, d], or [b, k, d] with k locations")
        return {name: value[:, None] if value.ndim == 2 else value for name, value in named.items()}

    return computed_in(schedule.precision, encode, device)


@torch.no_grad()
def _try(generator: Generator, source: Source, encoder: FeatureEncoder, device: torch.device) -> None:
    """Raise InputError unless two samples of the generator are shaped like the data and can be encoded."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        noise = torch.randn(2, *generator.noise_shape, device=device)
        labels = None if generator.num_classes is None else torch.zeros(2, dtype=torch.long, device=device)
        scale = torch.ones(2, device=device) if generator.guided else None
        codes = generator.draw_style_indices(2, torch.Generator(device))
        try:
            made = forward(generator, [noise, labels, scale, *([] if codes is None else [codes])])
        except (RuntimeError, TypeError, IndexError) as error:
            inputs = f"noise {tuple(noise.shape)}" + ("" if labels is None else f" and labels up to {generator.num_classes}")
            if (conditions := getattr(source, "conditions", None)) is not None:
                inputs = f"noise {tuple(noise.shape)} and conditions {(2, *conditions.rows.shape[1:])}"
            raise InputError(f"module fails on {inputs} ({reason(error)}): pass another noise_shape") from error
        if not isinstance(made, Tensor) or tuple(made.shape[1:]) != tuple(source.sample_shape):
            shape = tuple(made.shape[1:]) if isinstance(made, Tensor) else type(made).__name__
            raise InputError(f"module makes samples {shape}, but the data are {tuple(source.sample_shape)}: let it make those")
        encoder(made.float())
