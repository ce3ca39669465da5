"""The noise that the generator pushes forward, and the style codes that belong to it.

Training draws whole batches from one random stream. Sampling gives every sample a counter-based stream of its own, so that
sample i of a seed is the same in any batch, order or number of processes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 2**64 - 1


def draw_noise(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Return standard normal noise of a shape, on the device of rng."""
    return torch.randn(tuple(shape), generator=rng, device=rng.device)


def seeded_noise(indices: Sequence[int], shape: Sequence[int], seed: int) -> Float[Tensor, "b *sample"]:
    """Return standard normal noise on the CPU, one row per index, each a function of (seed, index) alone.

    Args:
        indices: which samples of the seed.
        shape: shape of the noise of one sample.
        seed: any integer.
    """
    rows = [np.random.Generator(_stream(seed, index)).standard_normal(tuple(shape), dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def seeded_codes(indices: Sequence[int], num_styles: int, style_classes: int, seed: int) -> Int[Tensor, "b s"]:
    """Return style codes on the CPU, one row per index, each a function of (seed, index) alone.

    Args:
        indices: which samples of the seed, at least one.
        num_styles: codes of one sample.
        style_classes: each code is below this number.
        seed: any integer.
    """
    # Jumped, so that they share no numbers with the noise of the sample.
    streams = (np.random.Generator(_stream(seed, index).jumped()) for index in indices)
    return torch.from_numpy(np.stack([stream.integers(style_classes, size=num_styles) for stream in streams]))


def _stream(seed: int, index: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed & _MASK, index], np.uint64))
