"""From a vector to an image by matrix products on few pixels: the second half of an auto-encoder, and of a generator of images.

A matrix product makes a map of a quarter of the side; twice, every place of a map makes the 2 x 2 places that it stands for. That
is faster on a CPU than transposed convolutions, and strokes come out whole, as they do not from a perceptron on pixels. A third
doubling, from a map of an eighth of the side, is for large images.

Images whose parts vary more than those of a digit take blocks on the maps of a quarter and an eighth of the side, maps +
convolution(silu(maps)) over 3 x 3 places, by which every place knows what its neighbors draw, and none ends in a square.

Smoothing, which is optional, is the filter [1 2 1] / 4 along both axes after the last doubling. It stops pixels that alternate,
which an encoder with strides hardly sees.

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
    """Return channels and side of square images with a side divisible by the divisor, or raise InputError."""
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
        blocks: residual convolutions at a quarter of the side, and as many at an eighth.
        smoothing: filter the image.
        doublings: of the side of the first map, 2 or 3.

    Raises:
        InputError: if images are not square, with a side that the doublings reach, or doublings are neither 2 nor 3.
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
        # Of a convolution over single places the matrix product remains; channels come last throughout.
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
    """Return maps + convolution(silu(maps)), once for every block."""
    for block in blocks:
        maps = maps + block(silu(maps).movedim(-1, 1)).movedim(1, -1)
    return maps


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
