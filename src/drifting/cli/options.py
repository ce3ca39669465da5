"""What the commands that train can be asked for."""

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may differ from the preset."""

    steps: Annotated[int | None, arg(aliases=["--drift-steps"])] = None
    """Optimiser steps."""
    encoder_steps: int | None = None
    """Optimiser steps of the encoder that a run trains before its generator."""
    batch_size: int | None = None
    """Generated samples of a step, over all its labels; real ones follow in proportion."""
    learning_rate: float | None = None
    """Of the optimiser."""
    optimizer: str | None = None
    """adamw or muon."""
    temperatures: tuple[float, ...] | None = None
    """Bandwidths of the drift field."""
    seed: int | None = None
    """Of weights, noise and data."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps."""
    parallel: str | None = None
    """How several processes hold the weights: ddp, each a copy, or fsdp, each a share."""
    precision: str | None = None
    """float32, or bfloat16: of the networks, in training."""
    keep: int | None = None
    """How many checkpoints to keep."""
    micro_batch: int | None = None
    """Generated samples of one pass: bounds memory, at the price of another forward pass, and changes nothing else."""
    labels_per_pass: int | None = None
    """Labels whose features are held at a time, at most: bounds memory further, at the price of two more forward passes."""
    checkpointing: bool | None = None
    """Compute activations of the generator again in the backward pass: less memory, a third more time."""
    compile: bool | None = None
    """Let torch.compile fuse generator and encoder, which takes minutes before the first step."""


AS_PRESET = Settings()


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What to train on."""

    dataset: str | None = None
    """Which toy: moons, swiss_roll, checker, circles, spirals, eight_gaussians, pinwheel."""
    data: str | None = None
    """Your data: points in a .csv or .npy file for toy; a folder or file of images, a Hub id; or what `drifting latents` wrote."""
    unconditional: bool = False
    """One joint population of images, without labels."""
    encoder_weights: str | None = None
    """A trained encoder: the folder of train-encoder or its file, which brings its settings; for ImageNet also hub:NAME."""
    vae: str | None = None
    """Name or folder of the auto-encoder, for a recipe on latents that is given images."""
    image_size: int | None = None
    """Pixels to a side, for images that are to be cropped and resized."""
    channels: int | None = None
    """1 or 3, to convert images to grey or to colour."""

    def given(self) -> dict[str, Any]:
        """Return what was asked for."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


DEFAULT = Choices()


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """What may differ from the defaults of the kind of encoder."""

    image_size: int | None = None
    """Pixels to a side, for images that are to be cropped and resized."""
    channels: int | None = None
    """1 or 3, to convert images to grey or to colour."""
    arch: str | None = None
    """resnet18 or resnet50; of mae, whose blocks are plain, so many of them in each stage."""
    width: int | None = None
    """Channels of the first stage."""
    small_stem: bool | None = None
    """A stem for small images, or that of ImageNet, which takes a quarter of the side; not of mae."""
    feature_dims: tuple[int, ...] | None = None
    """Lengths to which the features of the last stages are projected; not of mae."""
    patch: int | None = None
    """Side of the patches of mae."""
    classification_weight: float | None = None
    """Share of the classes in the loss of mae."""
    steps: int | None = None
    """Optimiser steps."""
    batch_size: int | None = None
    """Images of a step."""
    learning_rate: float | None = None
    """Of AdamW."""
    crop: float | None = None
    """Of the area of an image, the largest share that a crop leaves out; not of mae."""
    flip: float | None = None
    """Probability of a mirrored image; not of mae."""
    jitter: float | None = None
    """Probability of changed colours, of simclr."""
    grey: float | None = None
    """Probability of an image without colour, of simclr."""
    temperature: float | None = None
    """Of the loss of simclr."""
    seed: int | None = None
    """Of weights, order and augmentation."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps."""


AS_KIND = EncoderSettings()


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """How latents are computed and laid down."""

    image_size: int = 256
    """Pixels to a side, after a centre crop to a square."""
    split: str = "train"
    """Which images: of the folder train/, which are all where there is none, or of another such as val/."""
    batch_size: int = 32
    """Images of a pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 or mps."""
    shard_size: int = 4096
    """Images of a file."""


AS_USUAL = LatentSettings()
