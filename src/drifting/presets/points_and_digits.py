"""Presets for the smallest runs, on a CPU: points in the plane, which show the field at work, and handwritten digits.

Digits of 8 x 8 pixels drift in pixels; those of MNIST in pixels or in the space of a small auto-encoder, with a classifier that
evaluates both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from drifting.config import ClassifierConfig, LossConfig, RunConfig
from drifting.data import DigitsData, ImagesData, PointsData, ToyData
from drifting.data.points import toy as check_toy
from drifting.encoders import AutoencoderConfig, LearnedConfig, TilesConfig
from drifting.errors import InputError
from drifting.generators import DecoderMLPConfig, MLPConfig
from drifting.presets.fields import PAPER, TWICE_AHEAD
from drifting.presets.variants import joint
from drifting.training.schedule import Schedule

# Toys trained with the settings of the authors' notebook: one small temperature, no normalization, Adam at 1e-3. The start and the
# end are ours. At 0.05, mass moves slowly along the roll. Therefore the network is more nonlinear from the first step on, and
# Adam's second moment forgets the large gradients of the start. At the end, when the drift is only noise, the learning rate decays.
# On the checkerboard, mass moves between the cells only at their corners. Therefore its steps are larger for longer.
ANCHORS: Mapping[str, Mapping[str, Any]] = {
    "swiss_roll": {"learning_rate": 1e-3, "decay_after": 1200, "decay_power": 3.0, "betas": (0.9, 0.99), "ema_decay": 0.96},
    "checker": {"learning_rate": 2e-3, "decay_after": 1600, "decay_power": 2.0, "betas": (0.9, 0.99), "ema_decay": 0.99},
}
# The other toys have separate parts. At a temperature of 0.05 no mass moves between distant parts, so the temperatures are larger.
# The network must split its noise, which it learns fast enough only with few noise dimensions, large initial weights and large
# steps. The steps shrink later, because at the end the normalized drift is only noise. docs/log.md lists what was tried.
_SEPARATE = {"learning_rate": 6e-3, "decay_after": 1000, "decay_power": 3.0, "betas": (0.9, 0.95), "ema_decay": 0.998}
# Toy -> temperatures and noise dimensions of toys with thin shapes or narrow gaps, which the field resolves down to its smallest
# temperature, or with more separate parts, which need fewer noise dimensions.
_THIN = {"spirals": ((0.05, 0.2), 2), "circles": ((0.05, 0.3), 4), "gaussian_grid": ((0.05, 0.15), 4)}


def toy(dataset: str | None = None, data: str | None = None) -> RunConfig:
    """Train on a toy distribution or on the user's own points.

    Args:
        dataset: one of `data.TOYS`; moons by default.
        data: path of a .npy file of shape [n, 2] or of a text table, instead of a toy.

    Command: drifting train toy --dataset moons. Hardware: two CPU cores. Time: two minutes; four for the toys that are not anchors.
    Expected: energy distance of 10,000 samples to the data at most 1.5 times that of real points; 1.6 times for gaussian_grid.
    Measured: docs/results.md, 2026-11-25; gaussian_grid: docs/log.md, 2026-12-01.

    Source: the authors' notebook for swiss_roll and checker; the rest is ours.
    """
    if dataset is not None and data is not None:
        raise InputError(f"dataset is '{dataset}' and data is '{data}': pass one of them")
    dataset = dataset or "moons"
    check_toy(dataset)
    # The user's own points are taken for separate parts.
    shape = dataset if data is None else ""
    anchor = shape in ANCHORS
    temperatures, noise_dim = ((0.05,), 32) if anchor else _THIN.get(shape, ((0.1, 0.3), 4))
    return RunConfig(
        preset="toy",
        data=ToyData(dataset=dataset) if data is None else PointsData(path=data),
        generator=MLPConfig(noise_dim=noise_dim, width=256, depth=3, gain=1.3 if anchor else 3.0),
        loss=LossConfig(
            temperatures=temperatures,
            field=PAPER,
            normalize_features=False,
            normalize_drift=not anchor,
        ),
        schedule=Schedule(steps=2000, generated=2048, positives=2048, max_grad_norm=None, **ANCHORS.get(shape, _SEPARATE)),
    )


def digits() -> RunConfig:
    """Train a class-conditional generator of 8 x 8 digits, in the space of their 64 pixels.

    Command: drifting train digits. Hardware: one CPU core. Time: a minute.
    Expected: two classifiers recognize the label of at least 97 % of the samples; energy distance at most twice that of real
    digits.
    Measured: docs/results.md, 2026-11-29.
    """
    return RunConfig(
        preset="digits",
        data=DigitsData(),
        generator=MLPConfig(noise_dim=32, width=512, depth=3),
        loss=LossConfig(field=TWICE_AHEAD),
        schedule=Schedule(
            steps=1200,
            labels_per_step=10,
            generated=64,
            positives=64,
            learning_rate=1e-3,
            warmup_steps=100,
            ema_decay=0.998,
        ),
        snapshot_samples=500,
    )


_SCHEDULE = Schedule(
    steps=2400,
    labels_per_step=3,
    generated=128,
    positives=384,
    # Even noise spreads samples too, so that less repulsion suffices; see docs/log.md.
    noise="sobol",
    guidance_scale=1.12,
    unconditional=128,
    optimizer="muon",
    learning_rate=3e-3,
    warmup_steps=200,
    decay_after=1020,
    decay_power=1.5,
    cooldown=0.6,
    ema_decay=0.998,
    statistics_every=100,
)


def _repelling(repulsion: float) -> LossConfig:
    # A little more repulsion makes up for a network whose samples are too much alike, see docs/fields.md.
    return LossConfig(field=dataclasses.replace(PAPER, repulsion=repulsion))


def mnist_pixel(data: str | None = None, unconditional: bool = False) -> RunConfig:
    """Train a generator of MNIST digits that drift in the space of their 784 pixels.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/mnist, else the Hub, by default.
        unconditional: one joint population in place of one for each class.

    Command: drifting train mnist-pixel. Hardware: one CPU core. Time: 28 minutes without AVX-512. Expected: Frechet distance in the
    classifier's features 1.8 times that of real digits, 99.4 % classified correctly. Measured: docs/results.md, 2026-12-01; joint:
    not run.
    """
    config = RunConfig(
        preset="mnist-pixel",
        data=ImagesData(name="mnist", path=data, channels=1),
        generator=DecoderMLPConfig(noise_dim=10, code_dim=256, decoder_width=48, decoder_blocks=1),
        # Tiles have few coordinates, so their drift teaches details; see docs/log.md.
        encoder=TilesConfig(tiles=8, tile_stride=4),
        loss=_repelling(1.005),
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

    Command: drifting train mnist-encoder. Hardware: one CPU core. Time: 27 minutes without AVX-512, with 2 for the auto-encoder.
    Expected: 2.0 times, 99 %. Measured: docs/results.md, 2026-12-01; joint: not run.
    """
    encoder = AutoencoderConfig(code_dim=64, width=16, steps=2000, features=("code", "pixels", "stage2", "tiles"))
    config = mnist_pixel(data)
    # Places of the encoder and tiles of pixels are many, so each step has a quarter of both.
    schedule = dataclasses.replace(config.schedule, steps=3600, decay_after=1550, place_share=0.25)
    parts = {"encoder": encoder, "generator": DecoderMLPConfig(noise_dim=10), "loss": _repelling(1.007)}
    config = dataclasses.replace(config, preset="mnist-encoder", schedule=schedule, **parts)
    return joint(config) if unconditional else config


def mnist_learned(data: str | None = None, unconditional: bool = False) -> RunConfig:
    """Train a generator of MNIST digits in features that are learned in the same training, without any pre-trained weights.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/mnist, else the Hub, by default.
        unconditional: one joint population in place of one for each class.

    Command: drifting train mnist-learned. Hardware: two CPU cores. Time, expected, measured: not run in full.

    Source: arXiv:2610.04703, with a narrower encoder and this library's generator and step.
    """
    config = mnist_pixel(data, unconditional)
    counts = {"generated": 32, "positives": 64, "unconditional": 32}
    schedule = dataclasses.replace(config.schedule, steps=1500, optimizer="adamw", decay_after=600, cooldown=0.0, **counts)
    loss, encoder = LossConfig(field=PAPER), LearnedConfig(width=16)
    return dataclasses.replace(config, preset="mnist-learned", encoder=encoder, loss=loss, schedule=schedule)


def mnist_classifier(data: str | None = None) -> ClassifierConfig:
    """Train the classifier that evaluates MNIST generators. No generator is trained in its features.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/mnist, else the Hub, by default.

    Command: drifting train mnist-classifier. Hardware: two CPU cores. Time: three minutes. Expected: 99.4 % test accuracy.
    Measured: docs/results.md, 2026-11-25.
    """
    return ClassifierConfig(preset="mnist-classifier", data=ImagesData(name="mnist", path=data, channels=1))
