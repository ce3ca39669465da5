"""Networks and inputs for tests of the generators that take labels, guidance scales and style indices."""

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def randomized(network: Network) -> Network:
    """Change all weights of a network: many start at zero, where the condition has no effect."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def conditional_inputs(sample_shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return the inputs of four samples for a network with 3 classes and 2 style codes of 4 classes."""
    rng = torch.Generator().manual_seed(1)
    return {
        "noise": torch.randn(4, *sample_shape, generator=rng).to(dtype),
        "labels": torch.tensor([0, 1, 2, 0]),
        "guidance_scale": torch.tensor([1.0, 1.5, 2.0, 3.0]).to(dtype),
        "style_indices": torch.randint(4, (4, 2), generator=rng),
    }
