"""The training loop: an iterator of steps. It draws, steps and averages; what is logged, drawn or saved is up to the caller.

All randomness comes from one stream whose state is part of the training state, so that a resumed run goes on bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from drifting.checkpoint import flatten_optimizer, load_weights, restore_optimizer
from drifting.ema import exponential_average
from drifting.encoders.base import FeatureEncoder
from drifting.generators.base import Generator
from drifting.guidance import unconditional_weight
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.prior import draw_noise
from drifting.training.positives import Positives
from drifting.training.step import Batch, drifting_step

# Seeds of a CPU stream count modulo 2^32; weights are drawn with the seed itself.
_TRAINING_STREAM = 2**31


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite: one sentence that names step, feature and temperature."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a run is optimised.

    Attributes:
        steps: number of optimiser steps.
        labels_per_step: classes in a step; each is a population of its own. 1 where there are no labels.
        generated: generated samples of each label in a step.
        positives: real samples of each label in a step.
        independent_negatives: generate a second batch that repels in place of the first.
        guidance_scale: how strongly a class is set apart from all others, at least 1, which is not at all; see `guidance`.
        unconditional: real samples of any label that repel those of each label in a step, where the scale is above 1.
        learning_rate, betas, weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        decay_after: step after which it falls as (decay_after / step) ** decay_power; None for never. It depends on the step
            alone, so that a run may go on for longer than was planned.
        decay_power: how fast it falls then.
        max_grad_norm: gradients are scaled down to this norm; None for no clipping.
        ema_decay: of the average of the weights that is sampled from.
        statistics_every: steps between reports of how the kernel spreads.
    """

    steps: int
    labels_per_step: int = 1
    generated: int
    positives: int
    independent_negatives: bool = False
    guidance_scale: float = 1.0
    unconditional: int = 0
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_after: int | None = None
    decay_power: float = 0.5
    max_grad_norm: float | None = 2.0
    ema_decay: float = 0.999
    statistics_every: int = 50

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        rise = min(1.0, step / max(1, self.warmup_steps))
        fall = 1.0 if self.decay_after is None else min(1.0, self.decay_after / step) ** self.decay_power
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class Step:
    """What the loop yields after each optimiser step: its number, counted from 1, and the loss with its report, on the device."""

    number: int
    report: FeatureLoss


class TrainingState:
    """Everything that changes during training, and its form on disk.

    Args:
        generator: the network to train; its device is that of the run.
        schedule: the optimiser's settings.
        seed: of the one random stream.
    """

    def __init__(self, generator: Generator, schedule: Schedule, seed: int) -> None:
        self.generator = generator
        self.average = exponential_average(generator, schedule.ema_decay)
        self.optimizer = torch.optim.AdamW(
            generator.parameters(),
            lr=schedule.learning_rate,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        self.device = next(generator.parameters()).device
        self.rng = torch.Generator(self.device).manual_seed(_TRAINING_STREAM + seed)
        self.step = 0
        self._faults: dict[tuple[str, float], Tensor] = {}

    @property
    def averaged(self) -> Generator:
        """The generator with averaged weights: the one to sample from."""
        return cast(Generator, self.average.module)

    def note_faults(self, report: FeatureLoss) -> None:
        """Remember on the device at which step a drift first was not finite; nothing is read back here."""
        for name, feature in report.features.items():
            for temperature, norm in feature.drift_norms.items():
                first = self._faults.get((name, temperature), torch.zeros((), dtype=torch.long, device=self.device))
                self._faults[name, temperature] = torch.where((first == 0) & ~norm.isfinite(), self.step, first)

    def check_faults(self) -> None:
        """Raise DivergenceError if a drift was not finite since the start, or a weight is not now. Reads from the device."""
        found = [(int(first), name, temperature) for (name, temperature), first in self._faults.items() if int(first) > 0]
        if found:
            step, name, temperature = min(found)
            raise DivergenceError(
                f"the loss became NaN or infinite at step {step}, in feature '{name}' at temperature {temperature:g}: "
                "lower the learning rate or lengthen the warm-up, and resume from the last checkpoint"
            )
        if not bool(torch.stack([weight.isfinite().all() for weight in self.generator.parameters()]).all()):
            raise DivergenceError(
                f"the weights became NaN or infinite at step {self.step}: "
                "lower the learning rate or lengthen the warm-up, and resume from the last checkpoint"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors."""
        parts = {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": flatten_optimizer(self.optimizer),
            "rng": {"state": self.rng.get_state()},
        }
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def restore(self, tensors: dict[str, Tensor], step: int, origin: str) -> None:
        """Take over a state returned by `tensors`."""

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

        load_weights(self.generator, part("generator"), origin)
        load_weights(self.average, part("average"), origin)
        restore_optimizer(self.optimizer, part("optimizer"))
        self.rng.set_state(part("rng")["state"])
        self.step = step


def train(
    state: TrainingState, positives: Positives, encoder: FeatureEncoder, loss: DriftingLoss, schedule: Schedule
) -> Iterator[Step]:
    """Train from the state's step to the schedule's last, yielding after each step.

    Args:
        state: what is trained; advanced in place.
        positives: features of real samples.
        encoder: the feature space in which samples drift.
        loss: the drifting loss over its features.
        schedule: batch shape and optimiser settings.
    """
    state.generator.train()
    while state.step < schedule.steps:
        batch = draw_batch(state, positives, schedule)
        state.step += 1
        with_statistics = state.step % schedule.statistics_every == 0 or state.step == 1
        report = drifting_step(state.generator, encoder, loss, batch, statistics=with_statistics)
        state.optimizer.zero_grad(set_to_none=True)
        report.loss.backward()
        if schedule.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.generator.parameters(), schedule.max_grad_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(state.step)
        state.optimizer.step()
        state.average.update_parameters(state.generator)
        state.note_faults(report)
        yield Step(state.step, report)


def draw_batch(state: TrainingState, positives: Positives, schedule: Schedule) -> Batch:
    """Draw labels, noise and real samples of one step from the state's random stream."""
    labels = None
    if positives.num_classes is not None:
        labels = torch.randperm(positives.num_classes, generator=state.rng, device=state.device)[: schedule.labels_per_step]
    shape = (1 if labels is None else len(labels), schedule.generated, *state.generator.noise_shape)
    return Batch(
        labels=labels,
        noise=draw_noise(shape, state.rng),
        positives=positives.draw(labels, schedule.positives, state.rng),
        independent_noise=draw_noise(shape, state.rng) if schedule.independent_negatives else None,
        **_draw_guidance(positives, schedule, shape[0], state.rng),
    )


def _draw_guidance(positives: Positives, schedule: Schedule, labels: int, rng: torch.Generator) -> dict[str, Any]:
    if schedule.guidance_scale == 1:
        return {}
    # An independent batch repels as a whole; of its own batch a sample does not repel itself, which the weight counts on.
    repelling = schedule.generated + schedule.independent_negatives
    return {
        "unconditional": positives.draw_unconditional(labels, schedule.unconditional, rng),
        "unconditional_weight": float(
            unconditional_weight(torch.tensor(schedule.guidance_scale), repelling, schedule.unconditional)
        ),
    }
