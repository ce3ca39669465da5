"""What a generator is: noise in, samples out, in one forward pass."""

import torch
from jaxtyping import Int
from torch import Tensor, nn


class Generator(nn.Module):
    """A module (noise, labels, guidance_scale) -> samples.

    One that takes style codes is called with `style_indices` as well. They are part of the randomness of a sample, as its noise is:
    whoever draws the noise draws them, and passes the same ones again to compute the same samples again.

    Attributes:
        noise_shape: shape of the noise of one sample.
        sample_shape: shape of one sample.
        num_classes: number of labels, or None for a generator that takes none.
        guided: whether it takes a guidance scale; one that does not ignores it.
        num_styles: style codes of one sample; 0 for a generator that takes none.
        style_classes: each code is below this number.
    """

    noise_shape: tuple[int, ...]
    sample_shape: tuple[int, ...]
    num_classes: int | None
    guided: bool = False
    num_styles: int = 0
    style_classes: int = 0

    def draw_style_indices(self, count: int, rng: torch.Generator) -> Int[Tensor, "b s"] | None:
        """Return uniform style codes of `count` samples on the device of rng, or None for a generator that takes none."""
        if self.num_styles == 0:
            return None
        return torch.randint(self.style_classes, (count, self.num_styles), generator=rng, device=rng.device)
