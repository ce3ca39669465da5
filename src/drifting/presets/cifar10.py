"""CIFAR-10 in the features of four encoders, each in a size for two CPU cores and one for a GPU; and their judge.

The features are the means of an encoder's maps beside means and standard deviations of the colours of 8 x 8 tiles of the image: an
encoder sees shapes, and one that was trained to overlook colour cannot teach it.
"""

import dataclasses

from drifting.config import (
    ClassifierConfig,
    DecoderMLPConfig,
    ImagesData,
    LossConfig,
    ResNetConfig,
    RunConfig,
    SimCLRConfig,
    UNetConfig,
)
from drifting.generators.unet import SIZES
from drifting.presets.joint import joint
from drifting.training.schedule import Schedule

_COLOURS = ("image_mean_4", "image_std_4")
_ONE = ("stage4_mean", *_COLOURS)
_FOUR = ("stage1_mean", "stage2_mean", "stage3_mean", *_ONE)

_SCHEDULE = Schedule(
    steps=1600,
    labels_per_step=2,
    generated=64,
    positives=256,
    guidance_scale=1.2,
    unconditional=64,
    learning_rate=3e-3,
    warmup_steps=50,
    decay_after=600,
    ema_decay=0.99,
    statistics_every=100,
)
_GPU_SCHEDULE = dataclasses.replace(
    _SCHEDULE,
    steps=5000,
    labels_per_step=10,
    precision="bfloat16",
    learning_rate=5e-4,
    warmup_steps=500,
    decay_after=2000,
    ema_decay=0.999,
)


def resnet18(
    data: str | None = None, unconditional: bool = False, encoder_weights: str | None = None, *, gpu: bool = False
) -> RunConfig:
    """Train a generator of CIFAR-10 that drifts in the 512 features of a ResNet-18, which learns the classes first.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/cifar10, else the Hub, by default.
        unconditional: one joint population in place of one for each class.
        encoder_weights: file of a trained encoder of this size, in place of the training.
        gpu: the size for a GPU.

    Command: drifting train cifar10-resnet18. Hardware: two CPU cores, or a GPU. Measured: not run, in either size.
    """
    encoder = ResNetConfig(arch="resnet18", feature_dims=(512,), features=_ONE, weights=encoder_weights)
    return _run("cifar10-resnet18", encoder, data, unconditional, gpu)


def resnet50(
    data: str | None = None, unconditional: bool = False, encoder_weights: str | None = None, *, gpu: bool = False
) -> RunConfig:
    """Do the same in the 2048 features of a ResNet-50; arguments as for `resnet18`. Measured: not run."""
    encoder = ResNetConfig(arch="resnet50", feature_dims=(2048,), features=_ONE, weights=encoder_weights)
    return _run("cifar10-resnet50", encoder, data, unconditional, gpu)


def multiscale(
    data: str | None = None, unconditional: bool = False, encoder_weights: str | None = None, *, gpu: bool = False
) -> RunConfig:
    """Do the same in the features of all four stages of a ResNet-18, 64 + 128 + 256 + 512; arguments as for `resnet18`.

    Measured: the first 1000 steps on one thread, docs/results.md, 2026-11-25.
    """
    encoder = ResNetConfig(arch="resnet18", feature_dims=(64, 128, 256, 512), features=_FOUR, weights=encoder_weights)
    return _run("cifar10-multiscale", encoder, data, unconditional, gpu)


def simclr(
    data: str | None = None, unconditional: bool = False, encoder_weights: str | None = None, *, gpu: bool = False
) -> RunConfig:
    """Do the same in the 512 features of a ResNet-18 that SimCLR trains without labels; arguments as for `resnet18`.

    Measured: the first 1000 steps on one thread, docs/results.md, 2026-11-25.
    """
    encoder = SimCLRConfig(arch="resnet18", feature_dims=(512,), features=_ONE, weights=encoder_weights)
    return _run("cifar10-simclr", encoder, data, unconditional, gpu)


def classifier(data: str | None = None) -> ClassifierConfig:
    """Train the judge of CIFAR-10 generators, which is never a space that they train in.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/cifar10, else the Hub, by default.

    Command: drifting train cifar10-classifier. Expected: 79 % test accuracy. Measured: docs/results.md, 2026-11-25.
    """
    source = ImagesData(name="cifar10", path=data, colour=True)
    return ClassifierConfig(preset="cifar10-classifier", data=source, steps=1200, shift=3, rotation=0.0, scale=0.0, flip=0.5)


def _run(name: str, encoder: ResNetConfig, data: str | None, unconditional: bool, gpu: bool) -> RunConfig:
    # Two views of an image, and a ResNet-50, take twice the time.
    few = 1200 if isinstance(encoder, SimCLRConfig) or encoder.arch == "resnet50" else 2400
    training = {"width": 64, "steps": 6000, "batch_size": 256} if gpu else {"width": 16, "steps": few}
    drawer = DecoderMLPConfig(noise_dim=32, code_dim=256, decoder_width=64, smoothing=True)
    config = RunConfig(
        preset=f"{name}-gpu" if gpu else name,
        data=ImagesData(name="cifar10", path=data, colour=True),
        generator=UNetConfig(**vars(SIZES["gpu"])) if gpu else drawer,
        encoder=dataclasses.replace(encoder, **training),
        # With a floor under the affinities every class would end at its mean.
        loss=LossConfig(affinity_floor=0.0),
        schedule=_GPU_SCHEDULE if gpu else _SCHEDULE,
        log_every=50,
        frames=12,
        frame_samples=1000,
    )
    return joint(config) if unconditional else config
