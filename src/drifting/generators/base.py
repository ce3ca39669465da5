"""What a generator is: noise in, samples out, in one forward pass."""

from torch import nn


class Generator(nn.Module):
    """A module (noise, labels, guidance_scale) -> samples.

    Attributes:
        noise_shape: shape of the noise of one sample.
        sample_shape: shape of one sample.
        num_classes: number of labels, or None for a generator that takes none.
    """

    noise_shape: tuple[int, ...]
    sample_shape: tuple[int, ...]
    num_classes: int | None
