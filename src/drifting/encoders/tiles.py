"""Images and square tiles of them as features, without a network.

A whole image has so many coordinates that the samples of a step are nearly equally far from each other. A tile has few: its drift
says more about details, and that of the whole image how they fit together.

Shapes: b images, c channels, h x w pixels; k tiles of s x s pixels, row-major, neighbors t pixels apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from drifting.encoders.base import EncoderConfig, FeatureEncoder, Features, Weights, identity
from drifting.encoders.pooling import tiles, tiles_cover
from drifting.errors import InputError


class TileFeatures(nn.Module):
    """Feature encoder: the whole image as one location of "sample", and each tile as a location of "tiles", [b, k, s s c].

    Args:
        tiles: side s of the tiles in pixels.
        stride: distance t between the starts of two neighboring tiles in pixels. Pixels that no tile reaches are in "sample" alone.
    """

    def __init__(self, tiles: int, stride: int) -> None:
        super().__init__()
        self.tiles, self.stride = tiles, stride

    def forward(self, samples: Float[Tensor, "b c h w"]) -> Features:
        """Return both features."""
        return {**identity(samples), "tiles": tiles(samples, self.tiles, self.stride)}


@dataclass(frozen=True, kw_only=True)
class TilesConfig(EncoderConfig):
    """Drift in the space of images and of square tiles of them, see `TileFeatures`.

    Attributes:
        tiles: side of the tiles in pixels; None for none, which leaves the image alone.
        tile_stride: distance between the starts of two neighboring tiles in pixels; None for tiles that do not overlap.
    """

    tiles: int | None = None
    tile_stride: int | None = None

    def build_network(self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]) -> None:
        """Return None, because there is no network; raises InputError if tiles do not cover the images."""
        if self.tiles is None:
            if self.tile_stride is not None:
                raise InputError(f"encoder.tile_stride is {self.tile_stride}, but encoder.tiles is None: pass both")
            return
        if len(image_shape) != 3:
            raise InputError(f"encoder.tiles is {self.tiles}, but samples have the shape {tuple(image_shape)}: leave it out")
        stride = self.tiles if self.tile_stride is None else self.tile_stride
        if not tiles_cover(image_shape, self.tiles, stride):
            shape = f"{stride} pixels apart, which do not cover images of {image_shape[1]} x {image_shape[2]} pixels exactly"
            raise InputError(f"encoder.tiles is {self.tiles}, {shape}: pass a divisor, or another encoder.tile_stride")

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> FeatureEncoder:
        """Return the encoder; it has no weights."""
        return identity if self.tiles is None else TileFeatures(self.tiles, self.tile_stride or self.tiles)
