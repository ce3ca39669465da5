"""How a run is optimized: the shape of a step, guidance, the optimizer and averages of weights, with their checks."""

from dataclasses import dataclass

from drifting._checks import PRECISIONS, check_choice, check_counts, check_optimizer
from drifting.errors import InputError
from drifting.generators.noise import NOISES
from drifting.guidance import check_guidance_law, check_guidance_scale

# Bound of the factors of temperatures, and of their inverses.
_SMALLEST_FACTOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a run is optimized.

    Attributes:
        steps: number of optimizer steps.
        labels_per_step: number of classes in a step; each is a population of its own. 1 where there are no labels.
        generated: number of generated samples of each label in a step.
        positives: number of real samples of each label in a step.
        noise: how the noise of the generated samples of each label is drawn: independent, or as the points of a scrambled sobol
            sequence, which represent the generator better. Samples then spread farther, see `generators.noise`.
        independent_negatives: generate a second batch that repels in place of the first.
        detached_samples: number of further generated samples of each label that repel without a gradient, which saves memory.
        place_share: share of the places of every feature that samples drift in, drawn anew in every step; 1 for all. Features of
            one place are in every step. Where a feature has many places that say much the same, fewer take less time.
        temperature_factors: factors of all temperatures at the first and at the last step. In between, the factor changes by the
            same ratio in every step. (1, 1) for the temperatures as they are.
        temperature_learning_rate: learning rate at which a factor of all temperatures is learned, from 1 on, see
            `training.temperature`; None to learn none.
        microbatch_size: generated samples of one forward pass with graph, to bound memory; None for all. See `training.step`.
        labels_per_microbatch: largest number of labels whose features are in memory at a time, to bound memory further; None for
            all. A process splits its labels into equal parts. See `training.step`.
        compile: let torch.compile fuse generator and encoder, at the cost of minutes before the first step. On a CPU it saves a
            tenth of a step of the small image presets, which pays in whole runs; it was not run on a GPU yet.
        guidance_scale: how strongly a class is set apart from all others, at least 1 (not at all); see `guidance`. If scales are
            drawn, it is the default scale of sampling.
        guidance_exponent: draw a scale for each label of a step, from the density scale^-exponent on [1, highest_guidance_scale],
            and pass it to the generator; None to train at `guidance_scale` alone.
        highest_guidance_scale: highest guidance scale that is drawn.
        unguided_prob: probability of drawing a guidance scale of exactly 1.
        unconditional: number of real samples of any label that repel those of each label in a step, where there is guidance.
        precision: compute the generator and the encoder in "float32" or in "bfloat16" during training; weights, loss, averages and
            samples are float32 either way. See `training.step`.
        optimizer: train with "adamw" or with "muon", see `training.state`.
        learning_rate: highest learning rate of the optimizer.
        weight_decay: weight decay of the optimizer; 0 for none.
        betas: decay rates of the moments of AdamW; with Muon, for the weights that it leaves to AdamW.
        warmup_steps: number of steps over which the learning rate rises linearly from 0.
        decay_after: step after which the learning rate falls as (decay_after / step) ** decay_power; None for never. It depends
            only on the step, so a run can be continued for longer than planned.
        decay_power: power of the fall of the learning rate after `decay_after`.
        cooldown: share of the steps, at the end, in which the learning rate falls linearly to 0. It gives images more contrast and
            variety, see docs/log.md. A run that is continued for more steps cools down again.
        max_grad_norm: norm that gradients are scaled down to; None for no clipping.
        ema_decay: decay of the average of the weights from which samples are made.
        other_ema_decays: decays of further averages of the weights; at the end the best of all averages is kept as the generator,
            see `Recorder`.
        statistics_every: number of steps between reports of how the kernel spreads.
    """

    steps: int
    labels_per_step: int = 1
    generated: int
    positives: int
    noise: str = "independent"
    independent_negatives: bool = False
    detached_samples: int = 0
    place_share: float = 1.0
    temperature_factors: tuple[float, float] = (1.0, 1.0)
    temperature_learning_rate: float | None = None
    microbatch_size: int | None = None
    labels_per_microbatch: int | None = None
    compile: bool = False
    guidance_scale: float = 1.0
    guidance_exponent: float | None = None
    highest_guidance_scale: float = 4.0
    unguided_prob: float = 0.0
    unconditional: int = 0
    precision: str = "float32"
    optimizer: str = "adamw"
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_after: int | None = None
    decay_power: float = 0.5
    cooldown: float = 0.0
    max_grad_norm: float | None = 2.0
    ema_decay: float = 0.999
    other_ema_decays: tuple[float, ...] = ()
    statistics_every: int = 50

    @property
    def draws_guidance(self) -> bool:
        """Whether guidance scales are drawn and passed to the generator."""
        return self.guidance_exponent is not None

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        rise = min(1.0, step / max(1, self.warmup_steps))
        fall = 1.0 if self.decay_after is None else min(1.0, self.decay_after / step) ** self.decay_power
        if self.cooldown:  # the rate of the last step is not 0 yet
            fall *= min(1.0, max(0, self.steps + 1 - step) / max(1.0, self.cooldown * self.steps))
        return self.learning_rate * rise * fall

    def temperature_factor_at(self, step: int) -> float:
        """Return the factor of all temperatures in a step, counted from 1."""
        first, last = self.temperature_factors
        return first * (last / first) ** ((step - 1) / max(1, self.steps - 1))

    def scale_of_samples(self, requested: float | None = None) -> float | None:
        """Return the guidance scale to pass to a generator that was trained with this schedule; None if it takes none.

        Args:
            requested: guidance scale of the samples; `guidance_scale` by default.

        Raises:
            InputError: if the generator was not trained at this scale.
        """
        if requested is None:
            return self.guidance_scale if self.draws_guidance else None
        check_guidance_scale(requested)
        if not self.draws_guidance and requested != self.guidance_scale:
            own = f"guidance scale {self.guidance_scale:g}"
            raise InputError(f"guidance_scale is {requested:g}, but the run was trained at {own} alone: leave it out")
        if self.draws_guidance and requested > self.highest_guidance_scale:
            end = f"{self.highest_guidance_scale:g}"
            raise InputError(f"guidance_scale is {requested:g}, but the run was trained up to {end}: pass a number from 1 to {end}")
        return requested if self.draws_guidance else None


def check_schedule(schedule: Schedule, *, labeled: bool) -> None:
    """Raise InputError for settings of a training that contradict each other or the data; counts are not checked."""
    check_optimizer(schedule)
    _check_guidance(schedule, labeled=labeled)
    if schedule.microbatch_size is not None:
        check_counts({"microbatch_size": schedule.microbatch_size})
    _check_passes(schedule, labeled=labeled)
    check_choice("precision", schedule.precision, PRECISIONS)
    if schedule.noise != "independent":
        check_choice("noise", schedule.noise, NOISES)
    if not 0 <= schedule.decay_power <= 100:
        raise InputError(f"decay_power is {schedule.decay_power}: pass a number from 0 to 100")
    if not 0 <= schedule.cooldown <= 1:
        raise InputError(f"cooldown is {schedule.cooldown}: pass the share of steps in which the rate falls, from 0 to 1")
    if schedule.decay_after is not None and schedule.decay_after < 1:
        raise InputError(f"decay_after is {schedule.decay_after}: pass at least 1, or None for no decay")
    decays = {"ema_decay": (schedule.ema_decay,), "other_ema_decays": schedule.other_ema_decays}
    for name, values in decays.items():
        if not all(0 <= value < 1 for value in values):
            raise InputError(f"{name} is {', '.join(map(str, values))}: pass a number from 0 to below 1")
    if len({*decays["ema_decay"], *decays["other_ema_decays"]}) <= len(decays["other_ema_decays"]):
        raise InputError(f"other_ema_decays is {schedule.other_ema_decays}: name each once, and ema_decay not again")
    if not 0 < schedule.place_share <= 1:
        raise InputError(f"place_share is {schedule.place_share}: pass the share of places in a step, above 0 and up to 1")
    _check_samples(schedule)
    _check_temperature_factor(schedule)


def _check_temperature_factor(schedule: Schedule) -> None:
    factors, rate = schedule.temperature_factors, schedule.temperature_learning_rate
    are_two = isinstance(factors, tuple | list) and len(factors) == 2
    if not (are_two and all(_SMALLEST_FACTOR <= factor <= 1 / _SMALLEST_FACTOR for factor in factors)):
        raise InputError(f"temperature_factors is {factors}: pass two numbers above 0, from {_SMALLEST_FACTOR:g}, such as (3, 1)")
    if rate is None:
        return
    if factors != (1, 1):
        raise InputError(f"temperature_factors is {factors} and temperature_learning_rate {rate}: pass one of them")
    if not 0 < rate <= 1:
        raise InputError(f"temperature_learning_rate is {rate}: pass a number above 0 and up to 1, or None to learn no temperature")


def _check_samples(schedule: Schedule) -> None:
    if schedule.detached_samples < 0:
        raise InputError(f"detached_samples is {schedule.detached_samples}: pass 0 for none, or more")
    if schedule.generated == 1 and not schedule.independent_negatives and not schedule.detached_samples:
        raise InputError(
            "batch_size leaves 1 generated sample per label and nothing to repel it: "
            "pass at least 2 per label, detached_samples or independent_negatives"
        )


def _check_passes(schedule: Schedule, *, labeled: bool) -> None:
    at_once = schedule.labels_per_microbatch
    if at_once is None:
        return
    check_counts({"labels_per_microbatch": at_once})
    if not labeled:
        raise InputError(f"labels_per_microbatch is {at_once}, but the data have no labels: pass microbatch_size in place of it")
    if schedule.microbatch_size is not None:
        raise InputError(f"labels_per_microbatch is {at_once} and microbatch_size {schedule.microbatch_size}: pass one of them")


def _check_guidance(schedule: Schedule, *, labeled: bool) -> None:
    scale, exponent = schedule.guidance_scale, schedule.guidance_exponent
    if scale == 1 and exponent is None and schedule.unguided_prob == 0:
        return
    check_guidance_scale(scale)
    if exponent is None and schedule.unguided_prob != 0:
        raise InputError(f"unguided_prob is {schedule.unguided_prob}, but no scales are drawn: pass guidance_exponent too")
    if exponent is not None:
        highest = schedule.highest_guidance_scale
        check_guidance_law(exponent=exponent, highest=highest, unguided_prob=schedule.unguided_prob)
        if scale > highest:
            raise InputError(f"guidance_scale is {scale}, but is drawn up to {highest}: pass a number from 1 to {highest}")
    if not labeled:
        name, value, fix = ("guidance_scale", scale, 1) if exponent is None else ("guidance_exponent", exponent, None)
        raise InputError(f"{name} is {value}, but the data have no labels: pass {fix}")
    if schedule.unconditional < 1:
        raise InputError(f"unconditional is {schedule.unconditional}, but guidance needs unconditional samples: pass at least 1")
