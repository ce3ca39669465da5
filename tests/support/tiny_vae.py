"""A tiny auto-encoder of the library diffusers, with random weights, as a folder."""

from pathlib import Path

import pytest
import torch


def write_vae(folder: Path, *, seed: int = 0, scale: float = 0.5, latent_channels: int = 4) -> Path:
    """Write an auto-encoder that takes half of each side, and gives so many channels; skip where the library is missing."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            scaling_factor=scale,
            latent_channels=latent_channels,
        )
    network.save_pretrained(folder)
    return folder
