"""A residual perceptron for small images: all matrix products, so it is fast on a CPU, and deep enough for sharp strokes.

    x <- x + W2 silu( W1 (norm(x) * (1 + scale_c) + shift_c) ),    image = W norm(x),

where every block has its own scale and shift for each class c, zero at the start. The last product starts small, at a grey image.

Shapes: b samples, z noise, w width, h hidden.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drifting.generators.base import Generator


class ResidualMLP(Generator):
    """Push noise through residual blocks; a label scales and shifts what every block sees.

    Args:
        noise_dim: length of the noise vector of one sample.
        sample_shape: shape of one sample.
        width: units of the residual stream.
        hidden: units inside a block.
        depth: number of blocks.
        num_classes: number of labels, or None for a generator that takes none.
    """

    def __init__(
        self, *, noise_dim: int, sample_shape: Sequence[int], width: int, hidden: int, depth: int, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.noise_shape = (noise_dim,)
        self.sample_shape = tuple(sample_shape)
        self.num_classes = num_classes
        self.input = nn.Linear(noise_dim, width)
        self.blocks = nn.ModuleList(_Block(width, hidden, num_classes) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, prod(self.sample_shape))

    def forward(
        self,
        noise: Float[Tensor, "b z"],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b *sample"]:
        """Return one sample per row of noise; `labels` are needed by a conditional generator, `guidance_scale` is not used."""
        features = self.input(noise)
        for block in self.blocks:
            features = block(features, labels)
        return self.output(self.norm(features)).unflatten(1, self.sample_shape)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, num_classes: int | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Embedding(num_classes or 1, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, features: Float[Tensor, "b w"], labels: Int[Tensor, " b"] | None) -> Float[Tensor, "b w"]:
        """Return the features with the block's part added; without labels all samples share one modulation."""
        chosen = features.new_zeros(len(features), dtype=torch.long) if labels is None else labels
        scale, shift = self.modulation(chosen).chunk(2, 1)
        seen = self.norm(features) * (1 + scale) + shift
        return features + self.contract(nn.functional.silu(self.expand(seen)))
