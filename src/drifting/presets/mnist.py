"""Presets for MNIST on a CPU: in pixels, in the space of a small auto-encoder, and the classifier that evaluates both."""

import dataclasses

from drifting.config import ClassifierConfig, LossConfig, RunConfig
from drifting.data import ImagesData
from drifting.encoders import AutoencoderConfig
from drifting.fields import MeanShift
from drifting.generators import DecoderMLPConfig
from drifting.presets.settings import joint
from drifting.training.schedule import Schedule

_SCHEDULE = Schedule(
    steps=8000,
    labels_per_step=3,
    generated=128,
    positives=384,
    guidance_scale=1.2,
    unconditional=128,
    learning_rate=3e-3,
    warmup_steps=200,
    decay_after=2500,
    decay_power=1.5,
    ema_decay=0.998,
    statistics_every=100,
)


def mnist_pixel(data: str | None = None, unconditional: bool = False) -> RunConfig:
    """Train a generator of MNIST digits that drift in the space of their 784 pixels.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/mnist, else the Hub, by default.
        unconditional: one joint population in place of one for each class.

    Command: drifting train mnist-pixel. Hardware: two CPU cores. Time: 10 minutes. Expected: Frechet distance in the classifier's
    features 3 times that of real digits, 98 % classified correctly. Measured: docs/results.md, 2026-11-25; joint: not run.
    """
    config = RunConfig(
        preset="mnist-pixel",
        data=ImagesData(name="mnist", path=data, channels=1),
        generator=DecoderMLPConfig(),
        # With an affinity floor every class would end at its mean, as for the small digits.
        loss=LossConfig(field=MeanShift(affinity_floor=0.0)),
        schedule=_SCHEDULE,
        log_every=50,
        snapshots=16,
        snapshot_samples=500,
    )
    return joint(config) if unconditional else config


def mnist_encoder(data: str | None = None, unconditional: bool = False) -> RunConfig:
    """Train an auto-encoder with a code of 64 numbers, then a generator of MNIST digits that drift in its features.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/mnist, else the Hub, by default.
        unconditional: one joint population in place of one for each class.

    Command: drifting train mnist-encoder. Hardware: two CPU cores. Time: 10 minutes, with one for the auto-encoder. Expected:
    3.4 times, 97 %. Measured: docs/results.md, 2026-11-25; joint: not run.
    """
    encoder = AutoencoderConfig(code_dim=64, width=16, steps=2000, features=("code", "pixels"))
    config = mnist_pixel(data, unconditional)
    # Steps are fewer, because each costs more. Codes separate classes with less guidance, which keeps more variety.
    schedule = dataclasses.replace(config.schedule, steps=6000, guidance_scale=min(1.12, config.schedule.guidance_scale))
    return dataclasses.replace(config, preset="mnist-encoder", encoder=encoder, schedule=schedule)


def mnist_classifier(data: str | None = None) -> ClassifierConfig:
    """Train the classifier that evaluates MNIST generators. No generator is trained in its features.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/mnist, else the Hub, by default.

    Command: drifting train mnist-classifier. Hardware: two CPU cores. Time: three minutes. Expected: 99.4 % test accuracy.
    Measured: docs/results.md, 2026-11-25.
    """
    return ClassifierConfig(preset="mnist-classifier", data=ImagesData(name="mnist", path=data, channels=1))
