"""A decoder from vectors to images, by matrix products on small maps: used by the auto-encoder and by a generator of images.

A matrix product makes a map with a quarter of the side of the image. Then every place of a map makes 2 x 2 places, twice. This is
faster on a CPU than transposed convolutions, and draws whole strokes, which a perceptron on pixels does not. For large images there
can be three doublings, which start from an eighth of the side.

Images that vary more than digits need blocks, maps + convolution(silu(maps)) over 3 x 3 places, on the maps of a quarter and an
eighth of the side. With them every place depends on its neighbors, which avoids visible square tiles.

The optional smoothing is the filter [1 2 1] / 4 along both axes after the last doubling. It removes alternating pixels, to which an
encoder with strides is almost blind.

Shapes: b samples, f features, c channels, h x h pixels (h divisible by 4, or by 8 with three doublings), w width.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

from drifting.errors import InputError


def check_square(image_shape: Sequence[int], divisor: int = 4) -> tuple[int, int]:
    """Return the channels and the side of square images, or raise InputError unless the divisor divides the side."""
    channels, height, side = image_shape
    if height != side or side % divisor != 0 or side == 0:
        raise InputError(f"image_shape is {tuple(image_shape)}: pass square images with a side divisible by {divisor}")
    return channels, side


class Decoder(nn.Module):
    """Vectors -> images, unbounded.

    Args:
        features: length of a vector.
        image_shape: channels, height and width of one image; square, with a side divisible by 4, or by 8 with three doublings.
        width: channels at half the side; a quarter of the side has twice as many, an eighth four times.
        blocks: number of residual convolutions at a quarter of the side, and as many at an eighth.
        smoothing: whether to smooth the images.
        doublings: number of doublings of the side, 2 or 3.

    Raises:
        InputError: if images are not square with a side divisible by 2^doublings, or doublings is neither 2 nor 3.
    """

    def __init__(
        self,
        features: int,
        image_shape: Sequence[int],
        width: int,
        *,
        blocks: int = 0,
        smoothing: bool = False,
        doublings: int = 2,
    ) -> None:
        super().__init__()
        if doublings not in (2, 3):
            raise InputError(f"doublings is {doublings}: pass 2 or 3")
        channels, side = check_square(image_shape, 2**doublings)
        self.smoothing = smoothing
        self.first_map = (side // 2**doublings, side // 2**doublings, width * 2 ** (doublings - 1))
        self.spread = nn.Linear(features, prod(self.first_map))
        if doublings == 3:
            self.early_blocks = _blocks(blocks, 4 * width)
            self.early = nn.Linear(4 * width, 8 * width)
        # A 1 x 1 convolution is a matrix product; channels come last throughout.
        self.first = nn.Linear(2 * width, 4 * width)
        self.second = nn.Conv2d(width, 4 * channels, 3, padding=1)
        self.blocks = _blocks(blocks, 2 * width)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - faster on a CPU

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b c h h"]:
        """Return an image for every vector."""
        maps = self.spread(features).unflatten(1, self.first_map)
        if hasattr(self, "early"):
            maps = double(self.early(silu(_through(self.early_blocks, maps))))
        half = double(self.first(silu(_through(self.blocks, maps)))).movedim(-1, 1)
        half = self.second(silu(half))
        images = double(half.movedim(1, -1)).movedim(-1, 1)
        return smoothed(images) if self.smoothing else images


def _blocks(count: int, channels: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))


def _through(blocks: nn.ModuleList, maps: Float[Tensor, "b m m c"]) -> Float[Tensor, "b m m c"]:
    """Return maps + convolution(silu(maps)), repeated for every block."""
    for block in blocks:
        maps = maps + block(silu(maps).movedim(-1, 1)).movedim(1, -1)
    return maps


def double(maps: Float[Tensor, "b m m c"]) -> Float[Tensor, "b 2*m 2*m c//4"]:
    """Return maps of twice the side: the channels of a place become four places, first the upper two, then the lower two."""
    count, side, _, channels = maps.shape
    parts = maps.reshape(count, side, side, 2, 2, channels // 4)
    return parts.transpose(2, 3).reshape(count, 2 * side, 2 * side, channels // 4)


def smoothed(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return images filtered by [1 2 1] / 4 along both axes, with edges repeated: alternating pixels cancel, flat areas stay."""
    weights = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    channels = images.shape[1]
    kernel = (weights[:, None] * weights).expand(channels, 1, 3, 3)
    return conv2d(pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
