"""A small convolutional classifier, whose features evaluate generators. No generator is trained in them.

Three convolutions, each of which halves the image, and one hidden layer: about 16 MFLOP for an image of 28 x 28 pixels.

Shapes: b images, c channels, h x w pixels, k classes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting.errors import InputError

EMBEDDING = 128


class Classifier(nn.Module):
    """Images in [-1, 1] -> logits.

    Args:
        image_shape: channels, height and width of one image, each side at least 8.
        num_classes: number of labels.
        width: channels of the first convolution; the others have twice and four times as many.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        channels, *sides = image_shape
        if min(sides) < 8:
            raise InputError(f"image_shape is {tuple(image_shape)}: pass images of at least 8 x 8 pixels")
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        self.stages = nn.Sequential(_halving(channels, width, 5), _halving(width, 2 * width, 3), _halving(2 * width, 4 * width, 3))
        places = (sides[0] // 8) * (sides[1] // 8)
        self.hidden = nn.Linear(4 * width * places, EMBEDDING, bias=False)
        self.norm = nn.BatchNorm1d(EMBEDDING)
        self.output = nn.Linear(EMBEDDING, num_classes)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - a quarter faster on a CPU

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 128"]:
        """Return the features before the last layer."""
        maps = self.stages(images.contiguous(memory_format=torch.channels_last))
        return nn.functional.relu(self.norm(self.hidden(maps.flatten(1))))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits of every class."""
        return self.output(self.embed(images))


def _halving(before: int, after: int, kernel: int) -> nn.Sequential:
    """Return convolution, 2 x 2 max pooling, batch normalization, ReLU: normalizing after pooling is cheaper."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.ReLU()
    )
