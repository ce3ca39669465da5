"""The space of the samples themselves, and of square tiles of images, as features: there is no network.

A whole image has so many coordinates that the samples of a step are nearly equally far from each other. A tile has few: its drift
says more about details, and that of the whole image how they fit together.

Shapes: b images, c channels, h x w pixels, k = (h / s)(w / s) tiles of s x s pixels, row-major.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from drifting.encoders.base import EncoderConfig, FeatureEncoder, Features, Weights, identity
from drifting.encoders.pooling import windows
from drifting.errors import InputError


class PixelFeatures(nn.Module):
    """Feature encoder: the whole image as one location of "sample", and each tile as a location of "tiles", [b, k, s s c].

    Args:
        tiles: side s of the tiles in pixels; it divides both sides of the images.
    """

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.tiles = tiles

    def forward(self, samples: Float[Tensor, "b c h w"]) -> Features:
        """Return both features."""
        return {**identity(samples), "tiles": windows(samples, self.tiles, self.tiles).flatten(2)}


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(EncoderConfig):
    """Drift in the space of the samples themselves, see `Identity` and `PixelFeatures`.

    Attributes:
        tiles: side in pixels of the square tiles of images in which samples drift too; None for none.
    """

    tiles: int | None = None

    def build_network(self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]) -> None:
        """Return None, because there is no network; raises InputError if tiles do not divide the images."""
        if self.tiles is None:
            return
        if len(image_shape) != 3:
            raise InputError(f"encoder.tiles is {self.tiles}, but samples have the shape {tuple(image_shape)}: leave it out")
        if self.tiles < 1 or any(side % self.tiles for side in image_shape[1:]):
            sides = " x ".join(map(str, image_shape[1:]))
            raise InputError(f"encoder.tiles is {self.tiles}, which does not divide images of {sides} pixels: pass a divisor")

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> FeatureEncoder:
        """Return the encoder; it has no weights."""
        return identity if self.tiles is None else PixelFeatures(self.tiles)
