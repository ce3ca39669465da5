"""The noise that the generator pushes forward.

Training draws whole batches from one random stream. Sampling gives every sample a counter-based stream of its own, so that
sample i of a seed is the same in any batch, order or number of processes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_MASK = 2**64 - 1


def draw_noise(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Return standard normal noise of a shape, on the device of rng."""
    return torch.randn(tuple(shape), generator=rng, device=rng.device)


def seeded_noise(indices: Sequence[int], shape: Sequence[int], seed: int) -> Float[Tensor, "b *shape"]:
    """Return standard normal noise on the CPU, one row per index, each a function of (seed, index) alone.

    Args:
        indices: which samples of the seed.
        shape: shape of the noise of one sample.
        seed: any integer.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed & _MASK, index], np.uint64))).standard_normal(
            tuple(shape), dtype=np.float32
        )
        for index in indices
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)
