"""The training loop: an iterator of steps. It draws, steps and averages; what is logged, drawn or saved is up to the caller.

All randomness comes from one stream whose state is part of the training state, so that a resumed run goes on bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from drifting.checkpoint import flatten_optimizer, load_weights, restore_optimizer
from drifting.ema import exponential_average
from drifting.encoders.base import FeatureEncoder
from drifting.generators.base import Generator
from drifting.guidance import draw_guidance_scale, unconditional_weight
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.prior import draw_noise
from drifting.training.micro_batch import micro_batched_step
from drifting.training.optimizer import build_optimizer
from drifting.training.positives import Positives
from drifting.training.precision import computed_in
from drifting.training.schedule import Schedule
from drifting.training.step import Batch, drifting_step

# Seeds of a CPU stream count modulo 2^32; weights are drawn with the seed itself.
_TRAINING_STREAM = 2**31


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite: one sentence that names step, feature and temperature."""


@dataclass(frozen=True)
class Step:
    """What the loop yields after each optimiser step.

    Attributes:
        number: of the step, counted from 1.
        report: the loss with its report, on the device.
        stored_bytes: of the features that micro-batches kept, and their gradients.
    """

    number: int
    report: FeatureLoss
    stored_bytes: int = 0


class TrainingState:
    """Everything that changes during training, and its form on disk.

    Args:
        generator: the network to train; its device is that of the run.
        schedule: the optimiser's settings.
        seed: of the one random stream.
    """

    def __init__(self, generator: Generator, schedule: Schedule, seed: int) -> None:
        self.generator = generator
        self.averages = {decay: exponential_average(generator, decay) for decay in (schedule.ema_decay, *schedule.other_ema_decays)}
        self.chosen = schedule.ema_decay
        self.optimizer = build_optimizer(generator, schedule)
        self.device = next(generator.parameters()).device
        self.rng = torch.Generator(self.device).manual_seed(_TRAINING_STREAM + seed)
        self.step = 0
        self._faults: dict[tuple[str, float], Tensor] = {}

    @property
    def averaged(self) -> Generator:
        """The generator with averaged weights: the one to sample from. That of `ema_decay`, unless another was `chosen`."""
        return cast(Generator, self.averages[self.chosen].module)

    def _averages_by_name(self) -> dict[str, AveragedModel]:
        first, *others = self.averages.items()
        return {"average": first[1], **{f"average-{decay}": average for decay, average in others}}

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
            **{name: average.state_dict() for name, average in self._averages_by_name().items()},
            "optimizer": flatten_optimizer(self.optimizer),
            "rng": {"state": self.rng.get_state()},
        }
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def restore(self, tensors: dict[str, Tensor], step: int, origin: str) -> None:
        """Take over a state returned by `tensors`."""

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

        load_weights(self.generator, part("generator"), origin)
        for name, average in self._averages_by_name().items():
            load_weights(average, part(name), origin)
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
        encoder: the feature space in which samples drift, in the precision that it is to compute in.
        loss: the drifting loss over its features.
        schedule: batch shape and optimiser settings.
    """
    state.generator.train()
    generator = computed_in(schedule.precision, state.generator, state.device)
    while state.step < schedule.steps:
        batch = draw_batch(state, positives, schedule)
        state.step += 1
        with_statistics = state.step % schedule.statistics_every == 0 or state.step == 1
        state.optimizer.zero_grad(set_to_none=True)
        parts, stored = (generator, encoder, loss, batch), 0
        if schedule.micro_batch is None or schedule.micro_batch >= batch.noise.shape[:2].numel():
            report = drifting_step(*parts, statistics=with_statistics)
            report.loss.backward()
        else:
            report, stored = micro_batched_step(*parts, size=schedule.micro_batch, statistics=with_statistics)
        if schedule.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.generator.parameters(), schedule.max_grad_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(state.step)
        state.optimizer.step()
        for average in state.averages.values():
            average.update_parameters(state.generator)
        state.note_faults(report)
        yield Step(state.step, report, stored)


def draw_batch(state: TrainingState, positives: Positives, schedule: Schedule) -> Batch:
    """Draw labels, noise and real samples of one step from the state's random stream."""
    labels = None
    if positives.num_classes is not None:
        labels = torch.randperm(positives.num_classes, generator=state.rng, device=state.device)[: schedule.labels_per_step]
    groups = (1 if labels is None else len(labels), schedule.generated)
    noise, codes = _draw_prior(state, groups)
    real = positives.draw(labels, schedule.positives, state.rng)
    independent_noise, independent_codes = _draw_prior(state, groups) if schedule.independent_negatives else (None, None)
    return Batch(
        labels=labels,
        noise=noise,
        style_indices=codes,
        positives=real,
        independent_noise=independent_noise,
        independent_style_indices=independent_codes,
        **_draw_guidance(positives, schedule, groups[0], state.rng),
    )


def _draw_prior(state: TrainingState, groups: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Return noise and style codes, [labels, samples, ...]."""
    noise = draw_noise((*groups, *state.generator.noise_shape), state.rng)
    codes = state.generator.draw_style_indices(groups[0] * groups[1], state.rng)
    return noise, None if codes is None else codes.unflatten(0, groups)


def _draw_guidance(positives: Positives, schedule: Schedule, labels: int, rng: torch.Generator) -> dict[str, Any]:
    told, scale = None, torch.full((labels,), schedule.guidance_scale, device=rng.device)
    if schedule.guidance_exponent is not None:
        highest, unguided_share = schedule.highest_guidance_scale, schedule.unguided_share
        law = {"exponent": schedule.guidance_exponent, "highest": highest, "unguided_share": unguided_share}
        told = scale = draw_guidance_scale(labels, **law, rng=rng)
    elif schedule.guidance_scale == 1:
        return {}
    # An independent batch repels as a whole; of its own batch a sample does not repel itself, which the weight counts on.
    repelling = schedule.generated + schedule.independent_negatives
    return {
        "guidance_scale": told,
        "unconditional": positives.draw_unconditional(labels, schedule.unconditional, rng),
        "unconditional_weight": unconditional_weight(scale, repelling, schedule.unconditional),
    }
