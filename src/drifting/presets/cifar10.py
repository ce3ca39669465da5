"""Presets for CIFAR-10 in the features of four encoders, each in a size for two CPU cores and for a GPU, and a classifier.

The last stage of an encoder is sensitive to shapes, and if it was trained to ignore colors, it cannot teach them. Therefore the
features also include those of the first two stages, which are sensitive to texture, and means and standard deviations of the colors
of 8 x 8 tiles of the image. Each feature is divided by a scale of its own. docs/cifar10.md compares the four.
"""

import dataclasses
from dataclasses import dataclass

from drifting.config import ClassifierConfig, LossConfig, RunConfig
from drifting.data import ImagesData
from drifting.encoders import LearnedConfig, ResNetConfig, SimCLRConfig
from drifting.fields import DriftField
from drifting.generators import DecoderMLPConfig, UNetConfig
from drifting.generators.unet import SIZES
from drifting.presets.fields import AHEAD, PAPER, TWICE_AHEAD
from drifting.presets.variants import joint
from drifting.training.schedule import Schedule

_COLORS = ("image_mean_4", "image_std_4", "chroma_std_4")
_TEXTURE = ("stage1_mean", "stage1_std", "stage2_mean", "stage2_std")
_ONE = ("stage4_mean", "stage4_std", "stage4_mean_2", *_TEXTURE, *_COLORS)
# Features that suit any ResNet.
FOUR = (*_ONE, "stage3_mean", "stage3_std", "stage3_mean_4")
# Texture by its place in the image.
_PLACES = ("stage2_mean_4", "stage2_std_4")
# The last stage of a narrow ResNet-50 is projected to 2048; places and spreads are those of the block before, which is not.
_LONG = tuple({"stage4_std": "stage4_block2_std", "stage4_mean_2": "stage4_block2_mean_2"}.get(name, name) for name in FOUR)
ALL_DIMS = (64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class System:
    """The settings in which the systems differ, in the size for two CPU cores.

    Attributes:
        what: description of the features.
        minutes: measured training times of the generator and its encoder; docs/results.md.
        measured: measured quality, in the features of the classifier; the Frechet distance of real images is 0.18.
        encoder: a narrow encoder, whose features are projected to the standard lengths.
        guidance_scale: guidance scale in training, above 1 if the features separate the classes too little.
        width: units of the hidden layers of the generator; with fewer, Muon takes less of a step.
        field: drift field.
        steps: number of steps, which takes about as long with either field.
    """

    what: str
    minutes: str
    measured: str
    encoder: ResNetConfig
    guidance_scale: float = 1.0
    width: int = 512
    field: DriftField = TWICE_AHEAD
    steps: int = 1600


SYSTEMS = {
    "resnet18": System(
        what="512 features of a ResNet-18",
        minutes="22 on one core, its encoder 14",
        measured="Frechet distance 1.5",
        encoder=ResNetConfig(arch="resnet18", width=16, feature_dims=ALL_DIMS, features=(*_ONE, *_PLACES), steps=2400),
        width=256,
        steps=1700,
    ),
    "resnet50": System(
        what="2048 features of a ResNet-50",
        minutes="22 on one core, its encoder 32",
        measured="Frechet distance 1.5",
        encoder=ResNetConfig(arch="resnet50", width=8, feature_dims=(2048,), features=_LONG, steps=4600),
        field=AHEAD,
        steps=1800,
    ),
    "multiscale": System(
        what="64 + 128 + 256 + 512 features of a ResNet-18",
        minutes="23 on one core, its encoder 17",
        measured="Frechet distance 1.2",
        encoder=ResNetConfig(
            arch="resnet18", width=16, feature_dims=ALL_DIMS, features=(*FOUR, *_PLACES), steps=2400, optimizer="muon"
        ),
        width=256,
    ),
    "simclr": System(
        what="512 features of SimCLR, without labels",
        minutes="27 on one core, its encoder 35",
        measured="Frechet distance 4.9",
        # Trained without labels, the last stage is weaker, so the whole third stage and the places of the second are added.
        encoder=SimCLRConfig(
            arch="resnet18",
            width=16,
            feature_dims=(512,),
            features=(*FOUR, *_PLACES),
            steps=3600,
            optimizer="muon",
            temperature=0.2,
            view_size=24,
        ),
        guidance_scale=1.3,
    ),
}

_DRAWER = DecoderMLPConfig(noise_dim=32, code_dim=256, decoder_width=64, decoder_blocks=1, smoothing=True)
_SCHEDULE = Schedule(
    steps=1600,
    labels_per_step=2,
    generated=64,
    positives=128,
    unconditional=64,
    optimizer="muon",
    learning_rate=3e-3,
    warmup_steps=50,
    decay_after=500,
    cooldown=0.6,
    ema_decay=0.99,
    statistics_every=100,
)
_GPU_ENCODER = {"width": 64, "steps": 6000, "batch_size": 256}
_GPU_SCHEDULE = dataclasses.replace(
    _SCHEDULE,
    steps=5000,
    labels_per_step=10,
    positives=256,
    precision="bfloat16",
    optimizer="adamw",
    learning_rate=5e-4,
    warmup_steps=500,
    decay_after=2000,
    cooldown=0.0,
    ema_decay=0.999,
)


def system(name: str, data: str | None = None, unconditional: bool = False, *, gpu: bool = False) -> RunConfig:
    """Train a generator of CIFAR-10 that drifts in the features of an encoder, which the run trains first.

    Args:
        name: one of `SYSTEMS`: resnet18 or resnet50 (512 or 2048 features of a classifier), multiscale (all stages of the
            ResNet-18, 64 + 128 + 256 + 512), simclr (512 features, learned without labels).
        data: folder or Hub id; $DRIFTING_DATA/cifar10, else the Hub, by default.
        unconditional: one joint population in place of one for each class.
        gpu: the size for a GPU.

    Command: drifting train cifar10-NAME. Hardware: two CPU cores, or a GPU. Expected, measured: docs/cifar10.md; on a GPU only a
    few hundred steps, docs/results.md.
    """
    preset, chosen = f"cifar10-{name}", SYSTEMS[name]
    encoder = dataclasses.replace(chosen.encoder, **(_GPU_ENCODER if gpu else {}))
    schedule = _GPU_SCHEDULE if gpu else dataclasses.replace(_SCHEDULE, steps=chosen.steps)
    config = RunConfig(
        preset=f"{preset}-gpu" if gpu else preset,
        data=ImagesData(name="cifar10", path=data, color=True),
        generator=UNetConfig(**vars(SIZES["gpu"])) if gpu else dataclasses.replace(_DRAWER, width=chosen.width),
        encoder=encoder,
        loss=LossConfig(field=PAPER if gpu else chosen.field),
        schedule=dataclasses.replace(schedule, guidance_scale=chosen.guidance_scale),
        log_every=50,
        snapshots=12,
        snapshot_samples=1000,
    )
    return joint(config) if unconditional else config


def learned(data: str | None = None, unconditional: bool = False) -> RunConfig:
    """Train a generator of CIFAR-10 in features that are learned in the same training, without any pre-trained weights.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/cifar10, else the Hub, by default.
        unconditional: one joint population in place of one for each class.

    Command: drifting train cifar10-learned. Hardware: two CPU cores, or a GPU. Time, expected, measured: not run in full.

    Source: arXiv:2610.04703, with a narrower encoder and this library's generator and step.
    """
    config = system("multiscale", data)
    features = (*LearnedConfig().features, *_COLORS)
    schedule = dataclasses.replace(config.schedule, generated=32, positives=64)
    config = dataclasses.replace(
        config, preset="cifar10-learned", encoder=LearnedConfig(width=16, features=features), schedule=schedule
    )
    return joint(config) if unconditional else config


def classifier(data: str | None = None) -> ClassifierConfig:
    """Train the classifier that evaluates CIFAR-10 generators. No generator is trained in its features.

    Args:
        data: folder or Hub id; $DRIFTING_DATA/cifar10, else the Hub, by default.

    Command: drifting train cifar10-classifier. Expected: 79 % test accuracy. Measured: docs/results.md, 2026-11-25.
    """
    source = ImagesData(name="cifar10", path=data, color=True)
    return ClassifierConfig(preset="cifar10-classifier", data=source, steps=1200, shift=3, rotation=0.0, scale=0.0, flip=0.5)
