"""Generators: modules (noise, labels, guidance_scale) -> samples, each sample in one forward pass.

A configuration names its generator by a class of this package whose name ends in "Config".
"""

from drifting.generators.base import Generator, GeneratorConfig
from drifting.generators.dit import DiT, DiTConfig, DiTSize
from drifting.generators.mlp import MLP, DecoderMLP, DecoderMLPConfig, MLPConfig
from drifting.generators.noise import sobol_noise
from drifting.generators.unet import UNet, UNetConfig, UNetSize

__all__ = [
    "MLP",
    "DecoderMLP",
    "DecoderMLPConfig",
    "DiT",
    "DiTConfig",
    "DiTSize",
    "Generator",
    "GeneratorConfig",
    "MLPConfig",
    "UNet",
    "UNetConfig",
    "UNetSize",
    "sobol_noise",
]
