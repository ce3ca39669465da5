"""Resize and standardize images as published networks expect them.

Shapes: b images, c channels, h x w pixels.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from drifting.errors import InputError

# Mean and standard deviation of ImageNet's channels, for images in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Statistics = tuple[Sequence[float], Sequence[float]]


class Standardize(nn.Module):
    """Images in [-1, 1] -> input of a network: resized, then (x - mean) / std with x in [0, 1]. It has no weights.

    Args:
        image_shape: channels, height and width of the images.
        statistics: mean and standard deviation of every channel, for images in [0, 1].
        resize: side of the square that images are resized to, bilinearly without antialiasing; None to keep their size.
    """

    def __init__(self, image_shape: Sequence[int], statistics: Statistics, resize: int | None = None) -> None:
        super().__init__()
        channels, *sides = image_shape
        if {len(values) for values in statistics} != {channels} or min(statistics[1]) <= 0:
            raise InputError(f"statistics is {statistics}: pass means and standard deviations above 0 for {channels} channels")
        self.image_shape, self.resize = tuple(image_shape), resize
        self.sides = (resize, resize) if resize else tuple(sides)
        # Not persistent: the state dict has only the keys of the published weights.
        self.register_buffer("mean", torch.tensor(statistics[0])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(statistics[1])[:, None, None], persistent=False)

    def check(self, images: Tensor) -> None:
        """Raise InputError unless images have the expected channels, height and width."""
        if tuple(images.shape[1:]) != self.image_shape:
            taken = f"the encoder takes {self.image_shape}: convert them, or name an encoder for such images"
            raise InputError(f"images have the shape {tuple(images.shape[1:])}, but {taken}")

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        """Return the standardized images, with channels last in memory, the fastest layout for convolutions."""
        self.check(images)
        if self.resize:
            images = interpolate(images, self.sides, mode="bilinear", align_corners=False)
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        return ((images + 1) / 2 - mean).div(std).contiguous(memory_format=torch.channels_last)
