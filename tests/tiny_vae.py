"""A tiny auto-encoder that the tests save themselves: latents of 4 channels, 2 pixels to a place."""

from pathlib import Path

import pytest
import torch


def save_vae(folder: Path, *, latent_channels: int = 4, seed: int = 0) -> Path:
    """Write an AutoencoderKL with random weights as diffusers does, and return its folder; skips where the library is not there."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=latent_channels,
            scaling_factor=0.5,
        )
    network.save_pretrained(folder)
    return folder
