"""The training loop: an iterator of steps. It draws, steps and averages; what is logged, drawn or saved is up to the caller.
A signal stops it between two steps, see `polite_stop`.

All randomness comes from one stream whose state is part of the training state, so that a resumed run goes on bit for bit.

Several processes each hold the same stream, draw what all of them need and keep their own share, so that a run does not depend on
their number: their own labels with all samples of those or, where there are none, their own samples of the one population.
"""

import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drifting._cpu import keep_freed_memory
from drifting.data.dataset import owned
from drifting.distributed import Processes
from drifting.encoders.base import FeatureEncoder
from drifting.errors import InputError
from drifting.generators.base import draw_noise
from drifting.guidance import draw_guidance_scale, unconditional_weight
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.training.accumulate import label_batched_step, microbatched_step
from drifting.training.positives import Positives
from drifting.training.schedule import Schedule
from drifting.training.state import TrainingState
from drifting.training.step import Batch, computed_in, drifting_step


@dataclass(frozen=True)
class Step:
    """What the loop yields after each optimizer step.

    Attributes:
        number: of the step, counted from 1.
        report: the loss with its report, on the device.
        stored_bytes: of the features that microbatches kept, and their gradients.
    """

    number: int
    report: FeatureLoss
    stored_bytes: int = 0

    @property
    def loss(self) -> Tensor:
        """The loss, on the device. Where drifts are normalized it is nearly constant: watch the drift norms."""
        return self.report.loss

    @property
    def drift_norms(self) -> dict[str, dict[float, Tensor]]:
        """Feature -> temperature -> mean square of the raw drift, on the device: what shrinks in training."""
        return {name: feature.drift_norms for name, feature in self.report.features.items()}


def train(
    state: TrainingState, positives: Positives, encoder: FeatureEncoder, loss: DriftingLoss, schedule: Schedule
) -> Iterator[Step]:
    """Train from the state's step to the schedule's last, yielding after each step.

    Args:
        state: what is trained; advanced in place.
        positives: features of real samples.
        encoder: the feature space in which samples drift, in the precision that it is to compute in.
        loss: the drifting loss over its features.
        schedule: batch shape and optimizer settings.

    Raises:
        InputError: if a step cannot be shared equally, see `check_shares`.
    """
    check_shares(schedule, positives.num_classes, state.processes)
    keep_freed_memory()
    state.generator.train()
    network, no_sync = state.processes.wrap_ddp(state.generator)
    network = torch.compile(network) if schedule.compile else network
    generator = computed_in(schedule.precision, network, state.device)
    while state.step < schedule.steps:
        batch = draw_batch(state, positives, schedule)
        state.step += 1
        with_statistics = state.step % schedule.statistics_every == 0 or state.step == 1
        state.optimizer.zero_grad(set_to_none=True)
        options = {"statistics": with_statistics, "processes": state.processes}
        report, stored = _add_gradients((generator, encoder, loss), batch, schedule, no_sync, options)
        if schedule.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.generator.parameters(), schedule.max_grad_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(state.step)
        state.optimizer.step()
        for average in state.averages.values():
            average.update_parameters(state.generator)
        state.note_faults(report)
        report = replace(report, loss=state.processes.all_reduce_sum(report.loss.detach()) / state.processes.size)
        yield Step(state.step, report, stored)


def _add_gradients(
    networks: tuple[Callable[..., Tensor], FeatureEncoder, DriftingLoss],
    batch: Batch,
    schedule: Schedule,
    no_sync: Callable[[], AbstractContextManager[None]],
    options: Mapping[str, Any],
) -> tuple[FeatureLoss, int]:
    """Add the gradient of a batch to that of the weights, at once or in parts; return the report and the bytes that were stored."""
    labels, samples = batch.noise.shape[:2]
    microbatch_size = schedule.microbatch_size or labels * samples
    # Parts of one size have one weight; the bound of a recipe need not divide the labels of other data, or of a share of them.
    most = min(schedule.labels_per_microbatch or labels, labels)
    at_once = max(size for size in range(1, most + 1) if labels % size == 0)
    if at_once < labels:
        some = [partial(batch.of, slice(start, start + at_once)) for start in range(0, labels, at_once)]
        return label_batched_step(*networks, some, no_sync=no_sync, **options), 0
    if microbatch_size < labels * samples:
        return microbatched_step(*networks, batch, size=microbatch_size, no_sync=no_sync, **options)
    report = drifting_step(*networks, batch, **options)
    report.loss.backward()
    return report, 0


def check_shares(schedule: Schedule, num_classes: int | None, processes: Processes) -> None:
    """Raise InputError unless what is to be shared in a step can be shared equally among the processes."""
    counts = {"generated samples": schedule.generated, "positives": schedule.positives}
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
    groups = (1 if labels is None else len(labels), schedule.generated)
    own = processes.share(schedule.generated if labels is None else len(labels))
    noise, codes = _draw_prior(state, groups, labels, own)
    own_real = processes.share(schedule.positives) if labels is None else own
    real = positives.draw(labels, schedule.positives, state.rng, own_real)
    independent_noise, independent_codes = (
        _draw_prior(state, groups, labels, own) if schedule.independent_negatives else (None, None)
    )
    return Batch(
        labels=None if labels is None else labels[own],
        noise=noise,
        style_indices=codes,
        # Every process needs all positives of the one population, and has encoded a part of them.
        positives=processes.all_gather(real, 1) if labels is None else real,
        independent_noise=independent_noise,
        independent_style_indices=independent_codes,
        **_draw_guidance(positives, schedule, groups[0], own, state.rng),
    )


def _draw_prior(state: TrainingState, groups: tuple[int, int], labels: Tensor | None, own: slice) -> tuple[Tensor, Tensor | None]:
    """Return noise and style codes, [labels, samples, ...], of the own labels or, of a single group, the own samples."""
    noise = draw_noise((*groups, *state.generator.noise_shape), state.rng)
    codes = state.generator.draw_style_indices(groups[0] * groups[1], state.rng)
    return owned(noise, labels, own), None if codes is None else owned(codes.unflatten(0, groups), labels, own)


def _draw_guidance(positives: Positives, schedule: Schedule, labels: int, own: slice, rng: torch.Generator) -> dict[str, Any]:
    told, scale = None, torch.full((labels,), schedule.guidance_scale, device=rng.device)
    if schedule.guidance_exponent is not None:
        highest, unguided_prob = schedule.highest_guidance_scale, schedule.unguided_prob
        law = {"exponent": schedule.guidance_exponent, "highest": highest, "unguided_prob": unguided_prob}
        told = scale = draw_guidance_scale(labels, **law, rng=rng)
    elif schedule.guidance_scale == 1:
        return {}
    # An independent batch repels as a whole; of its own batch a sample does not repel itself, which the weight counts on.
    repelling = schedule.generated + schedule.independent_negatives
    return {
        "guidance_scale": None if told is None else told[own],
        "unconditional": positives.draw_unconditional(labels, schedule.unconditional, rng, own),
        "unconditional_weight": unconditional_weight(scale[own], repelling, schedule.unconditional),
    }


class Interrupted(Exception):
    """Training was stopped from outside; the state is saved. The message says how to go on.

    Args:
        step: that it stopped after.
        steps: that there were to be.
        command: by which it goes on.
    """

    def __init__(self, step: int, steps: int, command: str) -> None:
        super().__init__(f"Stopped at step {step} of {steps}; everything is saved. Go on with: {command}")


def command_to_go_on(preset: str, folder: Path, processes: int = 1, *, verb: str = "train") -> str:
    """Return the command by which a run of so many processes goes on; `preset` is the kind of an encoder for train-encoder."""
    launched = f"torchrun --nproc-per-node {processes} -m " if processes > 1 else ""
    return f"{launched}drifting {verb} {preset} --save-dir {shlex.quote(str(folder))} --resume"


def stopping_signals() -> list[int]:
    """Return the signals by which a process is asked to stop."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return [int(number) for number in numbers]


@contextmanager
def polite_stop() -> Iterator[list[int]]:
    """Turn the first Ctrl-C (or termination, or hang-up) into a filled list that the loop looks at between steps.

    The second acts as usual. A hang-up that is ignored, as nohup asks for, stays so.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in stopping_signals():
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals belong to somebody else
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
