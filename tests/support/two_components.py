"""Two classes that share two components: where the guided density is known."""

from collections.abc import Sequence

import torch
from torch import Tensor


def two_components(shares: Sequence[float], count: int, rng: torch.Generator) -> Tensor:
    """Return, for every class, samples of two Gaussians on a line 3 standard deviations apart; the shares are of the upper one."""
    upper = torch.rand(len(shares), count, generator=rng) < torch.tensor(shares)[:, None]
    return (torch.randn(len(shares), count, generator=rng) + 3 * upper)[..., None]


def upper_shares(samples: Tensor) -> Tensor:
    """Return the share of the upper component, from the share beyond the middle, on whose other side 6.7 % of each come out."""
    beyond, astray = (samples[..., 0] > 1.5).double().mean(1), torch.special.ndtr(torch.tensor(-1.5)).item()
    return (beyond - astray) / (1 - 2 * astray)
