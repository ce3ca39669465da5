"""Presets for ImageNet at 256 x 256 pixels: the five recipes of the authors' release, on latents and on pixels, and their encoders.

A recipe is named after its space and the size of its generator. docs/imagenet.md lists the recipes, and the commands in order:
latents, encoder, generator.

Source: the authors' release; numbers of the paper are labeled *paper*.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from drifting.config import EncoderRunConfig, LossConfig, RunConfig
from drifting.data import BankConfig, ImageFilesData, LatentsData
from drifting.encoders import MAEConfig, MAEFeaturesConfig
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.generators import DiTConfig
from drifting.generators.dit import SIZES
from drifting.training.schedule import Schedule

CONVNEXT = "facebook/convnextv2-base-22k-224"
_PIXEL_PATCH = 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings in which the recipes differ.

    Attributes:
        size: size of the generator, a key of `generators.dit.SIZES`.
        parameters: parameters of the generator in millions; *paper*.
        frechet_distance: Frechet distance of 50,000 samples in Inception features; *paper*.
        encoder: encoder, a key of `ENCODERS`.
        push_per_step: number of real samples pushed into the bank at each step.
        schedule: fields of `Schedule`.
    """

    size: str
    parameters: int
    frechet_distance: float
    encoder: str
    push_per_step: int
    schedule: Mapping[str, Any]

    @property
    def pixels(self) -> bool:
        """Whether the recipe works on pixels instead of latents."""
        return self.encoder.startswith("pixel")


def _schedule(**fields: Any) -> Mapping[str, Any]:
    common = {"labels_per_step": 128, "positives": 64, "unconditional": 32, "guidance_exponent": 5.0, "warmup_steps": 10_000}
    return MappingProxyType(common | fields)


# `guidance_scale` is the default for sampling, taken from public ports of the release.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "ablation": Recipe(
            size="B/2",
            parameters=133,
            frechet_distance=8.46,
            encoder="latent-256",
            push_per_step=64,
            schedule=_schedule(
                steps=30_000,
                labels_per_step=64,
                unconditional=16,
                guidance_exponent=3.0,
                guidance_scale=2.0,
                learning_rate=2e-4,
                weight_decay=0.01,
                warmup_steps=5000,
            ),
        ),
        "latent-b": Recipe(
            size="B/2",
            parameters=133,
            frechet_distance=1.75,
            encoder="latent-640",
            push_per_step=128,
            schedule=_schedule(steps=200_000, guidance_scale=1.1, learning_rate=4e-4, weight_decay=0.0),
        ),
        "latent-l": Recipe(
            size="L/2",
            parameters=463,
            frechet_distance=1.54,
            encoder="latent-640",
            push_per_step=64,
            schedule=_schedule(steps=200_000, guidance_exponent=3.0, unguided_prob=0.5, learning_rate=4e-4, weight_decay=0.01),
        ),
        "pixel-b": Recipe(
            size="B/16",
            parameters=134,
            frechet_distance=1.76,
            encoder="pixel-640",
            push_per_step=128,
            schedule=_schedule(steps=100_000, positives=128, learning_rate=2e-4, weight_decay=0.01),
        ),
        "pixel-l": Recipe(
            size="L/16",
            parameters=464,
            frechet_distance=1.61,
            encoder="pixel-640",
            push_per_step=128,
            schedule=_schedule(steps=100_000, positives=128, learning_rate=4e-4, weight_decay=0.01),
        ),
    }
)

_NETWORK = {"depths": (3, 4, 6, 3)}
_TRAINING = {
    "batch_size": 8192,
    "learning_rate": 4e-3,
    "betas": (0.9, 0.95),
    "weight_decay": 0.01,
    "warmup_steps": 4000,
    "max_grad_norm": 2.0,
    "ema_decay": 0.9995,
    "precision": "bfloat16",
}
# The wide encoders also learn the classes in their last steps, as in the release; *paper* FID 4.28 -> 3.36.
_CLASSES = {"classification_weight": 0.1, "classified_steps": 3000, "classification_warmup": 1000}

# 30,000 steps of 8192 are 192 epochs, 200,000 are 1280 (*paper*). The size of a microbatch is ours.
ENCODERS: Mapping[str, MAEConfig] = MappingProxyType(
    {
        "latent-256": MAEConfig(width=256, patch=1, steps=30_000, microbatch_size=512, **_NETWORK, **_TRAINING),
        "latent-640": MAEConfig(width=640, patch=1, steps=200_000, microbatch_size=128, **_NETWORK, **_TRAINING, **_CLASSES),
        "pixel-640": MAEConfig(
            width=640, patch=_PIXEL_PATCH, steps=200_000, microbatch_size=128, **_NETWORK, **_TRAINING, **_CLASSES
        ),
    }
)


_OPTIMIZATION = {
    "generated": 64,
    "highest_guidance_scale": 4.0,
    "precision": "bfloat16",
    "betas": (0.9, 0.95),
    "max_grad_norm": 2.0,
    "ema_decay": 0.999,
    # Ours: the features of more labels do not fit on a device of 80 GB.
    "labels_per_microbatch": 2,
}


def recipe(name: str, data: str | None = None, encoder_weights: str | None = None, vae: str | None = None) -> RunConfig:
    """Train a generator of ImageNet's classes that drifts in the features of a masked auto-encoder.

    Args:
        name: one of `RECIPES`: ablation, latent-b, latent-l, pixel-b or pixel-l.
        data: cache of `drifting latents`, or a folder of images with `train` and `val`, whose latents are then written first. For
            pixels, the folder.
        encoder_weights: encoder.safetensors of `drifting train mae-...`, or the authors' weights as hub:NAME or in a folder; those
            of the authors by default.
        vae: name or folder of the auto-encoder that writes latents; that of the paper by default.

    Command: drifting train imagenet256-NAME --data IMAGENET --device cuda. Hardware: several GPUs. Time: not
    measured. Expected: FID 8.46, 1.75, 1.54, 1.76 and 1.61, in the order above; *paper*. Measured: not run on ImageNet.

    Source: all hyper-parameters are those of the authors' release.
    """
    chosen = RECIPES[name]
    network, large = ENCODERS[chosen.encoder], chosen.size.startswith("L")
    features = MAEFeaturesConfig(
        weights=encoder_weights,
        width=network.width,
        patch=network.patch,
        depths=network.depths,
        convnext=CONVNEXT if chosen.pixels else None,
    )
    return RunConfig(
        preset=f"imagenet256-{name}",
        data=_data(data, vae, pixels=chosen.pixels),
        generator=DiTConfig(**vars(SIZES[chosen.size]), bounded=False, output_std=0.0, gradient_checkpointing=large),
        encoder=features,
        loss=LossConfig(temperatures=(0.02, 0.05, 0.2), field=MeanShift(affinity_floor=1e-6)),
        schedule=Schedule(**_OPTIMIZATION, **chosen.schedule),
        # The bank takes 25 GB of pixels, but 2 GB of latents.
        bank=BankConfig(
            capacity_per_class=128,
            unconditional_capacity=1000,
            push_per_step=chosen.push_per_step,
            on_cpu=chosen.pixels,
        ),
        parallel="fsdp" if large else "ddp",
        cache_features=False,
        log_every=100,
        checkpoint_every=2000,
        snapshots=12,
        snapshot_samples=100,
    )


def mae(name: str, data: str | None = None, vae: str | None = None) -> EncoderRunConfig:
    """Train one of the masked auto-encoders of the recipes.

    Args:
        name: one of `ENCODERS`: latent-256, latent-640 or pixel-640.
        data: cache of `drifting latents`, or folder of images, as in `recipe`.
        vae: name or folder of the auto-encoder that writes latents, as in `recipe`.

    Command: drifting train mae-NAME --data CACHE --device cuda. Hardware: GPUs. Time, expected: not measured. Measured: not run on
    ImageNet.

    Source: paper, appendix A.3, also for the 1280 epochs. Batches of 8192 and the 192 epochs of the narrow one are those of public
    ports.
    """
    settings = ENCODERS[name]
    source = _data(data, vae, pixels=name.startswith("pixel"), conditional=settings.classification_weight > 0)
    return EncoderRunConfig(preset=f"mae-{name}", data=source, encoder=settings)


def _data(path: str | None, vae: str | None, *, pixels: bool, conditional: bool = True) -> ImageFilesData | LatentsData:
    if not pixels:
        return LatentsData(path=path, vae=vae, conditional=conditional)
    if vae is not None:
        raise InputError(f"vae is '{vae}', but this recipe works on pixels: leave it out")
    return ImageFilesData(path=path, conditional=conditional)
