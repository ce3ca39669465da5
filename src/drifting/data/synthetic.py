"""Random data and networks of a few kilobytes: folders of images, a VAE and a backbone."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drifting._lazy import install_hint, quietly
from drifting._seeds import initial_weights
from drifting.errors import InputError

CLASSES = ("bright", "dark", "striped")

# Number of images of each class.
_COUNTS = {"train": 8, "test": 6}
_SEED = 0


def write_images(folder: Path, *, image_size: int, channels: int) -> Path:
    """Write noisy PNG images of three classes into train/CLASS and test/CLASS, and return the folder."""
    rng = np.random.default_rng(_SEED)
    shape = (image_size, image_size, channels)
    levels = {"bright": 200.0, "dark": 60.0, "striped": 255.0 * (np.arange(image_size) // 2 % 2)[:, None, None]}
    for split, count in _COUNTS.items():
        for name in CLASSES:
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = (levels[name] + 20 * rng.standard_normal(shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(place / f"{index}.png")
    return folder


def write_vae(folder: Path) -> Path:
    """Write an untrained auto-encoder with latents of four channels and half the side, and return its folder."""
    diffusers = _library("diffusers", "vae")
    with initial_weights(_SEED, "smoke auto-encoder"):
        network = diffusers.AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=4,
        )
    network.save_pretrained(folder)
    return folder


def write_convnext(folder: Path) -> Path:
    """Write an untrained ConvNeXt-V2 of four stages in the format of a published one, and return its folder."""
    transformers = _library("transformers", "encoders")
    with initial_weights(_SEED, "smoke backbone"):
        sizes = transformers.ConvNextV2Config(depths=[1, 1, 1, 1], hidden_sizes=[4, 8, 16, 32], image_size=32)
        with quietly("transformers"):
            transformers.ConvNextV2Model(sizes).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"smoke is given, which needs the library {name} here: {install_hint(extra)}") from None
