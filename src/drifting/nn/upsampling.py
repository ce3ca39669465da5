"""From a vector to an image by matrix products on few pixels: the second half of an auto-encoder, and of a generator of images.

A matrix product makes a map of a quarter of the side; twice, every place of a map makes the 2 x 2 places that it stands for. That
is faster on a CPU than transposed convolutions, and strokes come out whole, as they do not from a perceptron on pixels.

Images whose parts vary more than those of a digit take blocks at a quarter of the side, maps + convolution(silu(maps)) over 3 x 3
places, by which every place knows what its neighbours draw, and none ends in a square.

Smoothing, which is optional, is the filter [1 2 1] / 4 along both axes after the last doubling. It stops pixels that alternate,
which an encoder with strides hardly sees.

Shapes: b samples, f features, c channels, h x h pixels (h divisible by 4), w width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

from drifting.errors import InputError


def check_square(image_shape: Sequence[int]) -> tuple[int, int]:
    """Return channels and side of square images with a side divisible by 4, or raise InputError."""
    channels, height, side = image_shape
    if height != side or side % 4 != 0 or side == 0:
        raise InputError(f"image_shape is {tuple(image_shape)}: pass square images with a side divisible by 4")
    return channels, side


class Decoder(nn.Module):
    """Vectors -> images, unbounded.

    Args:
        features: length of a vector.
        image_shape: channels, height and width of one image; square, with a side divisible by 4.
        width: channels at half the side; a quarter of the side has twice as many.
        blocks: residual convolutions at a quarter of the side.
        smoothing: filter the image.

    Raises:
        InputError: if images are not square, with a side divisible by 4.
    """

    def __init__(self, features: int, image_shape: Sequence[int], width: int, *, blocks: int = 0, smoothing: bool = False) -> None:
        super().__init__()
        channels, self.side = check_square(image_shape)
        self.width, self.smoothing = width, smoothing
        self.spread = nn.Linear(features, (self.side // 4) ** 2 * 2 * width)
        # Of a convolution over single places the matrix product remains; channels come last throughout.
        self.first = nn.Linear(2 * width, 4 * width)
        self.second = nn.Conv2d(width, 4 * channels, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 3, padding=1) for _ in range(blocks))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - faster on a CPU

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b c h h"]:
        """Return an image for every vector."""
        quarter = self.spread(features).unflatten(1, (self.side // 4, self.side // 4, 2 * self.width))
        for block in self.blocks:
            quarter = quarter + block(silu(quarter).movedim(-1, 1)).movedim(1, -1)
        half = double(self.first(silu(quarter))).movedim(-1, 1)
        half = self.second(silu(half))
        images = double(half.movedim(1, -1)).movedim(-1, 1)
        return smoothed(images) if self.smoothing else images


def double(maps: Float[Tensor, "b m m c"]) -> Float[Tensor, "b 2*m 2*m c//4"]:
    """Return maps of twice the side: the channels of a place, in four parts, become its upper, then its lower two places."""
    count, side, _, channels = maps.shape
    parts = maps.reshape(count, side, side, 2, 2, channels // 4)
    return parts.transpose(2, 3).reshape(count, 2 * side, 2 * side, channels // 4)


def smoothed(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return images filtered by [1 2 1] / 4 along both axes, edges repeated: alternating pixels cancel, even surfaces stay."""
    weights = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    channels = images.shape[1]
    kernel = (weights[:, None] * weights).expand(channels, 1, 3, 3)
    return conv2d(pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
