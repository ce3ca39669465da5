"""The training loop: an iterator of steps. It draws, steps and averages; the caller logs, draws pictures and saves.

A signal stops it between two steps, see `polite_stop`. All randomness comes from one stream whose state is part of the training
state, so a resumed run continues bit for bit.

Several processes hold the same stream. Each draws the random numbers of all of them and keeps its own share, so a run does not
depend on their number: each has its own labels with all samples of these or, without labels, its own samples of the population.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from drifting._torch import keep_freed_memory, stream_seed
from drifting.data.dataset import owned
from drifting.distributed import Processes
from drifting.encoders.base import FeatureEncoder
from drifting.errors import InputError
from drifting.guidance import draw_guidance_scale, unconditional_weight
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.training.changes import Changes
from drifting.training.encoder import LearnedEncoder
from drifting.training.positives import Places, Positives
from drifting.training.schedule import Schedule
from drifting.training.state import TrainingState
from drifting.training.step import Batch, computed_in, drifting_step, label_batched_step, microbatched_step


@dataclass(frozen=True)
class Step:
    """The result of an optimizer step, which the loop yields.

    Attributes:
        number: number of the step, counted from 1.
        report: loss with its report, on the device.
        stored_bytes: size of the features and their gradients that microbatches kept.
        temperature_factor: factor of all temperatures in the step; None if they stay as they are.
        changes: figures of `training.changes`, on the device, every `statistics_every` steps; otherwise empty.
        encoder_loss: loss of an encoder that learns in the same training, see `encoders.learned`; None if it is fixed.
    """

    number: int
    report: FeatureLoss
    stored_bytes: int = 0
    temperature_factor: Tensor | float | None = None
    changes: Mapping[str, Tensor] = field(default_factory=dict)
    encoder_loss: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """The loss, on the device. It is nearly constant if drifts are normalized: watch the drift norms instead."""
        return self.report.loss

    @property
    def drift_norms(self) -> dict[str, dict[float, Tensor]]:
        """Feature -> temperature -> mean square of the raw drift, on the device, which falls in training."""
        return {name: feature.drift_norms for name, feature in self.report.features.items()}


def train(
    state: TrainingState, positives: Positives, encoder: FeatureEncoder, loss: DriftingLoss, schedule: Schedule
) -> Iterator[Step]:
    """Train from the state's step to the schedule's last, yielding after each step.

    Args:
        state: training state; advanced in place.
        positives: features of real samples.
        encoder: feature encoder, in its compute precision.
        loss: drifting loss of the features.
        schedule: batch shape and optimizer settings.

    Raises:
        InputError: if the processes cannot share a step equally, see `check_shares`.
    """
    check_shares(schedule, positives.num_classes, state.processes)
    keep_freed_memory()
    state.generator.train()
    network, no_sync = state.processes.wrap_ddp(state.generator)
    network = torch.compile(network) if schedule.compile else network
    generator = computed_in(schedule.precision, network, state.device)
    while state.step < schedule.steps:
        batch = draw_batch(state, positives, schedule)
        number = state.step + 1
        batch = _at_temperature(batch, state, schedule)
        batch, encode = at_places(batch, encoder, state, schedule)
        measured = number % schedule.statistics_every == 0
        state.optimizer.zero_grad(set_to_none=True)
        # The first batch says nothing about the training, but its kernel tells whether the temperatures fit.
        options = {"statistics": measured or (number == 1 and "field"), "processes": state.processes}
        report, stored = _add_gradients((generator, encode, loss), batch, schedule, no_sync, options)
        changes = Changes(state.generator) if measured else None
        if schedule.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.generator.parameters(), schedule.max_grad_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(number)
        state.optimizer.step()
        for average in state.averages.values():
            average.update_parameters(state.generator)
        state.step = number  # not before the weights have moved: a step that is stopped earlier is taken again
        state.record_faults(report)
        report = replace(report, loss=state.processes.all_reduce_sum(report.loss.detach()) / state.processes.size)
        if state.temperature is not None:
            state.temperature.learn(report)
        encoder_loss = None if state.encoder is None else _learn_encoder(state, positives, generator, schedule)
        figures = {} if changes is None else changes.figures()
        yield Step(number, report, stored, batch.temperature_factor, figures, encoder_loss)


@torch.no_grad()
def _learn_encoder(state: TrainingState, positives: Positives, generator: Callable[..., Tensor], schedule: Schedule) -> Tensor:
    """Let the encoder learn from a batch of its own, and return its loss."""
    batch = draw_batch(state, positives.samples(), schedule)
    (inputs,) = batch.inputs(batch.noise, batch.style_indices)
    generated = generator(*inputs).unflatten(0, batch.noise.shape[:2])
    real = batch.positives["sample"].unflatten(3, generated.shape[2:]).flatten(1, 2)
    with torch.enable_grad():
        return cast(LearnedEncoder, state.encoder).learn(real, generated)


def _at_temperature(batch: Batch, state: TrainingState, schedule: Schedule) -> Batch:
    """Return the batch of the next step with the factor of its temperatures, if they are annealed or learned."""
    if state.temperature is not None:
        return replace(batch, temperature_factor=state.temperature.value, learns_temperature=True)
    if schedule.temperature_factors == (1, 1):
        return batch
    return replace(batch, temperature_factor=schedule.temperature_factor_at(state.step + 1))


def at_places(batch: Batch, encoder: FeatureEncoder, state: TrainingState, schedule: Schedule) -> tuple[Batch, FeatureEncoder]:
    """Return the batch and the encoder of the next step, both of the places that are chosen for it, if not of all."""
    if schedule.place_share == 1:
        return batch, encoder
    places = Places(schedule.place_share, stream_seed(state.seed, f"places of step {state.step + 1}"))
    unconditional = None if batch.unconditional is None else places.of(batch.unconditional)
    return replace(batch, positives=places.of(batch.positives), unconditional=unconditional), places.encoder(encoder)


def _add_gradients(
    networks: tuple[Callable[..., Tensor], FeatureEncoder, DriftingLoss],
    batch: Batch,
    schedule: Schedule,
    no_sync: Callable[[], AbstractContextManager[None]],
    options: Mapping[str, Any],
) -> tuple[FeatureLoss, int]:
    """Add the gradient of a batch to that of the weights, at once or in parts; return the report and the number of stored bytes."""
    labels, samples = batch.noise.shape[:2]
    microbatch_size = schedule.microbatch_size or labels * samples
    # Parts must have equal sizes to have equal weights, but the setting need not divide the labels of this process.
    most = min(schedule.labels_per_microbatch or labels, labels)
    at_once = max(size for size in range(1, most + 1) if labels % size == 0)
    if at_once < labels:
        parts = [partial(batch.of, slice(start, start + at_once)) for start in range(0, labels, at_once)]
        return label_batched_step(*networks, parts, no_sync=no_sync, **options), 0
    if microbatch_size < labels * samples:
        return microbatched_step(*networks, batch, size=microbatch_size, no_sync=no_sync, **options)
    report = drifting_step(*networks, batch, **options)
    report.loss.backward()
    return report, 0


def check_shares(schedule: Schedule, num_classes: int | None, processes: Processes, *, learns: bool = False) -> None:
    """Raise InputError unless the processes can share the labels, or else the samples, of a step equally.

    An encoder that `learns` in the same training is trained by one process.
    """
    if learns and processes.size > 1:
        raise InputError(f"world size is {processes.size}, but the encoder learns in the same training: start one process")
    counts = {"generated samples": schedule.generated, "positives": schedule.positives}
    counts |= {"detached samples": schedule.detached_samples} if schedule.detached_samples else {}
    if schedule.temperature_learning_rate is not None and num_classes is None and processes.size > 1:
        rate = schedule.temperature_learning_rate
        raise InputError(f"temperature_learning_rate is {rate}, which several processes need labels for: pass None, or start one")
    if num_classes is not None:
        counts = {"labels": min(schedule.labels_per_step, num_classes)}
    for what, count in counts.items():
        if count % processes.size:
            fitting = max(size for size in range(1, processes.size) if all(other % size == 0 for other in counts.values()))
            raise InputError(
                f"world size is {processes.size}, which does not divide the {count} {what} of a step: "
                f"start as many processes as do, such as {fitting}"
            )


def draw_batch(state: TrainingState, positives: Positives, schedule: Schedule) -> Batch:
    """Draw labels, noise and real samples of one step from the state's random stream, and keep this process's share."""
    labels, processes = None, state.processes
    if positives.num_classes is not None:
        labels = torch.randperm(positives.num_classes, generator=state.rng, device=state.device)[: schedule.labels_per_step]
    generated = schedule.generated
    own = processes.share(generated if labels is None else len(labels))
    noise, codes = _draw_prior(state, schedule, generated, labels, own)
    own_real = processes.share(schedule.positives) if labels is None else own
    real = positives.draw(labels, schedule.positives, state.rng, own_real)
    # The second batch has no gradient either, so more samples without gradient make it larger.
    independent = generated + schedule.detached_samples if schedule.independent_negatives else 0
    independent_noise, independent_codes = _draw_further(state, schedule, independent, labels, own)
    detached = 0 if independent else schedule.detached_samples
    detached_noise, detached_codes = _draw_further(state, schedule, detached, labels, own)
    return Batch(
        labels=None if labels is None else labels[own],
        noise=noise,
        style_indices=codes,
        # Each process encodes a part of the positives of the population, but needs all of them.
        positives=processes.all_gather(real, 1) if labels is None else real,
        independent_noise=independent_noise,
        independent_style_indices=independent_codes,
        detached_noise=detached_noise,
        detached_style_indices=detached_codes,
        **_draw_guidance(positives, schedule, 1 if labels is None else len(labels), own, state.rng),
    )


def _draw_prior(
    state: TrainingState, schedule: Schedule, count: int, labels: Tensor | None, own: slice
) -> tuple[Tensor, Tensor | None]:
    """Return noise and style codes, [labels, samples, ...], of this process's labels or, without labels, samples."""
    sets = 1 if labels is None else len(labels)
    noise, codes = state.generator.draw_prior(sets, count, state.rng, noise=schedule.noise)
    return owned(noise, labels, own), None if codes is None else owned(codes, labels, own)


def _draw_further(
    state: TrainingState, schedule: Schedule, count: int, labels: Tensor | None, own: slice
) -> tuple[Tensor | None, Tensor | None]:
    """Return the same of generated samples without gradient, whose number may be another; None if there are none."""
    if count == 0:
        return None, None
    return _draw_prior(state, schedule, count, labels, state.processes.share(count) if labels is None else own)


def _draw_guidance(positives: Positives, schedule: Schedule, labels: int, own: slice, rng: torch.Generator) -> dict[str, Any]:
    if schedule.guidance_exponent is not None:
        highest, unguided_prob = schedule.highest_guidance_scale, schedule.unguided_prob
        law = {"exponent": schedule.guidance_exponent, "highest": highest, "unguided_prob": unguided_prob}
        scale = draw_guidance_scale(labels, **law, rng=rng)
    elif schedule.guidance_scale == 1:
        return {}
    else:
        scale = torch.full((labels,), schedule.guidance_scale, device=rng.device)
    # The weight assumes that a sample does not repel itself, but all samples of an independent batch repel it.
    repelling = schedule.generated + schedule.detached_samples + schedule.independent_negatives
    return {
        "guidance_scale": scale[own] if schedule.draws_guidance else None,
        "unconditional": positives.draw_unconditional(labels, schedule.unconditional, rng, own),
        "unconditional_weight": unconditional_weight(scale[own], repelling, schedule.unconditional),
    }


class Interrupted(Exception):
    """Training was stopped by a signal; the state is saved. The message says how to continue.

    Args:
        step: number of steps that are done.
        steps: number of steps of the whole training.
        command: command that continues it.
    """

    def __init__(self, step: int, steps: int, command: str) -> None:
        super().__init__(f"Stopped at step {step} of {steps}; everything is saved. Go on with: {command}")


def stopping_signals() -> list[int]:
    """Return the signals that ask a process to stop."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return [int(number) for number in numbers]


@contextmanager
def polite_stop() -> Iterator[list[int]]:
    """Yield a list that receives the number of the first Ctrl-C, termination or hang-up; the loop checks it between steps.

    A second signal acts as usual. An ignored hang-up stays ignored, as nohup requires.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in stopping_signals():
            previous[number] = signal.signal(number, note)
    except ValueError:  # only the main thread can handle signals
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
