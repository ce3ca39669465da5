"""Presets: plain functions that return a complete `RunConfig`, and how a few settings of one are changed."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drifting.config import RunConfig
from drifting.errors import InputError
from drifting.inputs import nearest_name
from drifting.presets.digits import digits
from drifting.presets.toys import toy


@dataclass(frozen=True)
class Preset:
    """A line of `drifting presets`: what it makes, from which data, how long it takes, what to expect."""

    make: Callable[..., RunConfig]
    what: str
    data: str
    minutes: str
    expected: str


PRESETS = {
    "toy": Preset(toy, "points in the plane", "seven toys, or --data points.npy", "2 to 4", "energy distance as real data's"),
    "digits": Preset(digits, "8 x 8 handwritten digits by class", "embedded in scikit-learn", "1", "97 % named right, new ones"),
}


def preset(name: str, **choices: str) -> RunConfig:
    """Return a preset's configuration by name.

    Args:
        name: one of `PRESETS`.
        choices: what the preset lets one choose, such as the dataset of a toy.

    Raises:
        InputError: if there is no such preset, or it does not have such a choice.
    """
    if name not in PRESETS:
        raise InputError(f"preset is '{name}': did you mean '{nearest_name(name, PRESETS)}'? There are {', '.join(PRESETS)}")
    make = PRESETS[name].make
    accepted = make.__code__.co_varnames[: make.__code__.co_argcount]
    for choice, value in choices.items():
        if choice not in accepted:
            raise InputError(f"{choice} is '{value}', which the preset '{name}' does not take: leave it out")
    return make(**choices)


def check_choices(config: RunConfig, name: str, **choices: str) -> None:
    """Raise InputError unless a saved configuration is of the preset and the choices that are asked for."""
    asked = {"preset": name, **choices}
    saved = {"preset": config.preset, **vars(config.data), "data": getattr(config.data, "path", None)}
    for key, value in asked.items():
        before = saved.get(key)
        if value != before and not (key == "data" and before and Path(value).resolve() == Path(before)):
            raise InputError(f"{key} is '{value}', but the run to resume has {before}: leave it out, or name another --save-dir")


def adjust(
    config: RunConfig,
    *,
    batch_size: int | None = None,
    temperatures: tuple[float, ...] | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    keep: int | None = None,
) -> RunConfig:
    """Return a configuration with some settings changed; None leaves one as it is.

    Args:
        config: what to start from.
        batch_size: generated samples of a step over all its labels; the positives follow in proportion.
        temperatures: bandwidths of the drift field.
        steps: optimiser steps.
        learning_rate: of AdamW.
        seed: of weights, noise and data.
        device: where to train.
        keep: how many checkpoints to keep.
    """
    schedule = {"steps": steps, "learning_rate": learning_rate}
    if batch_size is not None:
        before, labels = config.schedule, config.schedule.labels_per_step
        if batch_size < 1 or batch_size % labels:
            raise InputError(f"batch_size is {batch_size}: pass a positive multiple of {labels}, the labels in a step")
        schedule["generated"] = batch_size // labels
        schedule["positives"] = max(1, round(batch_size / labels * before.positives / before.generated))
    loss = {"temperatures": temperatures}
    top = {"seed": seed, "device": device, "keep": keep}
    return _replace(config, **top, schedule=_replace(config.schedule, **schedule), loss=_replace(config.loss, **loss))


def _replace(instance, **changes):  # noqa: ANN202 - any dataclass
    return dataclasses.replace(instance, **{name: value for name, value in changes.items() if value is not None})
