"""Variants of a configuration: `joint` makes one population of all classes, `smoke` a tiny version.

The tiny version has the same classes, encoder, bank and guidance, in sizes at which two steps take about a second.
"""

import dataclasses
from typing import Any, TypeVar

from drifting.config import AnyConfig, ClassifierConfig, RunConfig
from drifting.data import BankConfig, ImageFilesData
from drifting.encoders import AutoencoderConfig, LearnedConfig, MAEConfig, MAEFeaturesConfig, ResNetConfig
from drifting.generators import DecoderMLPConfig, DiTConfig, MLPConfig, UNetConfig
from drifting.training.schedule import Schedule

Config = TypeVar("Config", bound=AnyConfig)


def joint(config: RunConfig) -> RunConfig:
    """Return a run of images with a single population, as large as all populations of a step together, without guidance."""
    schedule = config.schedule
    sizes = {name: schedule.labels_per_step * getattr(schedule, name) for name in ("generated", "positives")}
    together = dataclasses.replace(schedule, labels_per_step=1, guidance_scale=1.0, **sizes)
    return dataclasses.replace(config, data=config.data.changed(conditional=False), schedule=together)


# Optimizer steps of a tiny version.
_STEPS = 2
# Side in pixels of images from files, and of images that are encoded as latents of half the side.
# The last maps of a masked auto-encoder then have 2 x 2 places; normalized over a single place, their gradients are unbounded.
_IMAGE_SIZE, LATENT_IMAGE_SIZE = 128, 32
Part = TypeVar("Part")

# Class -> largest values of its fields, or of each number in a tuple. Smaller values and None stay.
_AT_MOST: dict[type, dict[str, int]] = {
    RunConfig: {"log_every": 1, "checkpoint_every": _STEPS, "keep": 1, "snapshots": 1, "snapshot_samples": 20},
    Schedule: {
        "steps": _STEPS,
        "labels_per_step": 2,
        "generated": 4,
        "positives": 6,
        "unconditional": 3,
        "labels_per_microbatch": 1,
        "warmup_steps": 1,
        "decay_after": 1,
        "statistics_every": 1,
    },
    BankConfig: {"capacity_per_class": 8, "unconditional_capacity": 12, "push_per_step": 4},
    MLPConfig: {"width": 16},
    DecoderMLPConfig: {"width": 16, "code_dim": 16, "decoder_width": 8},
    UNetConfig: {"widths": 8, "heads": 2, "blocks": 1, "cond_dim": 16, "head_width": 4, "num_styles": 3, "style_classes": 4},
    DiTConfig: {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "cond_dim": 16,
        "num_context_tokens": 2,
        "num_styles": 3,
        "style_classes": 4,
    },
    AutoencoderConfig: {"code_dim": 8, "width": 4, "steps": _STEPS, "batch_size": 8},
    ResNetConfig: {"width": 4, "feature_dims": 8, "steps": _STEPS, "batch_size": 8},
    LearnedConfig: {"width": 4},
    MAEFeaturesConfig: {"width": 12, "depths": 2, "resize": 32},
    MAEConfig: {
        "width": 12,
        "depths": 2,
        "steps": _STEPS,
        "batch_size": 8,
        "microbatch_size": 5,
        "warmup_steps": 1,
        "classified_steps": 1,
        "classification_warmup": 1,
    },
    ClassifierConfig: {"width": 4, "steps": _STEPS, "batch_size": 8},
    ImageFilesData: {"image_size": _IMAGE_SIZE},
}
_ALWAYS = {"device": "cpu", "precision": "float32"}


def smoke(config: Config) -> Config:
    """Return a tiny version of a configuration (networks, batches, bank, counts) that trains two steps on a CPU in float32."""
    parts = {field.name: _shrunk(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return _shrunk(dataclasses.replace(config, **parts))


def _shrunk(part: Part) -> Part:
    """Return a part of a configuration in its tiny size, or unchanged if it has none."""
    limits = next((limits for kind, limits in _AT_MOST.items() if isinstance(part, kind)), None)
    if limits is None or not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    small = {name: _at_most(getattr(part, name), limit) for name, limit in limits.items()}
    fixed = {name: value for name, value in _ALWAYS.items() if hasattr(part, name)}
    return dataclasses.replace(part, **small, **fixed)


def _at_most(value: Any, limit: int) -> Any:
    if isinstance(value, tuple):
        return tuple(min(number, limit) for number in value)
    return None if value is None else min(value, limit)
