"""A U-Net that maps noise to images: convolutions on small maps, with few operations.

    maps   = stem(noise)                                  one place per patch
    block  : maps + conv( silu( modulate( norm( conv( silu( norm(maps) ) ) ) ) ) )
    down   : blocks, then half the side; attention at the smallest side
    up     : blocks, which also take the maps of the way down, then twice the side
    sample = tanh( head(maps) )                           the side doubles up to that of the image

The initial weights keep the variance of the maps, so samples of an untrained network differ from each other as real images do. If
the samples were constant, their kernel would cover only each other, and their gradient through a normalizing encoder would be
unbounded.

Shapes: b samples, c channels, h x v pixels, e channels of the noise, w channels of a map, z width of the condition.

Source: ours, modeled on the U-Nets of diffusion models; the condition is that of the paper's generator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, silu

from drifting.errors import InputError
from drifting.generators.base import Generator, GeneratorConfig
from drifting.nn import Attention, Condition, check_sides, precise, run

Maps = Float[Tensor, "b w h v"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

# Mean of silu(x)^2 for standard normal x, for which the initial weights after a silu compensate.
_SILU_POWER = 0.3557


@dataclass(frozen=True, kw_only=True)
class UNetSize:
    """The size of a `UNet`.

    Attributes:
        patch: side of the patches of the image that are the places of the largest maps; a power of 2.
        widths: channels of the maps, each divisible by 4, from the largest map to the smallest; each map halves the side.
        blocks: number of blocks for each width, on the way down and again on the way up.
        heads: number of heads of the attention at the smallest side; 0 for no attention.
        cond_dim: width of the condition.
        head_width: channels of the head, at twice, four times, ... the side of the largest maps.
        noise_channels: channels of the noise, which has the height and width of the image; None for as many as the image has.
        num_styles: number of style codes of a sample.
        style_classes: number of values of a style code.
        embedding_std: initial standard deviation of the parts of the condition.
    """

    patch: int
    widths: tuple[int, ...]
    blocks: int
    heads: int
    cond_dim: int
    head_width: int = 32
    noise_channels: int | None = None
    num_styles: int = 32
    style_classes: int = 64
    embedding_std: float = 0.3


# Sizes for images of 32 x 32 pixels: for two CPU cores, on which large maps are slow, and for a GPU.
SIZES: Mapping[str, UNetSize] = MappingProxyType(
    {
        "cpu": UNetSize(patch=4, widths=(64, 128), blocks=1, heads=4, cond_dim=128, num_styles=8, style_classes=16),
        "gpu": UNetSize(patch=2, widths=(128, 256, 384), blocks=3, heads=6, cond_dim=384),
    }
)


class UNet(Generator):
    """Generator of images: a U-Net maps a noise image to an image.

    Args:
        sample_shape: channels, height and width of one image; both sides are divisible by patch * 2^(number of widths - 1).
        size: size of the network.
        num_classes: number of labels, or None for an unconditional generator.
        guided: whether the generator takes a guidance scale.
        bounded: whether to end with tanh, for images in [-1, 1].
        output_std: initial standard deviation of the output before tanh; 0.75 gives 0.5 after it, close to real images.
        gradient_checkpointing: whether to recompute the activations of a block in the backward pass: less memory, a third more
            time.

    Raises:
        InputError: if the sides or the patch do not fit, or the smallest maps cannot be split into heads.
    """

    def __init__(
        self,
        *,
        sample_shape: Sequence[int],
        size: UNetSize,
        num_classes: int | None = None,
        guided: bool = True,
        bounded: bool = True,
        output_std: float = 0.75,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(size)
        smallest = size.patch * 2 ** (len(size.widths) - 1)
        self.sample_shape = channels, height, width = check_sides(sample_shape, smallest)
        self.noise_shape = (size.noise_channels or channels, height, width)
        self.num_classes, self.num_styles, self.style_classes = num_classes, size.num_styles, size.style_classes
        self.size, self.guided, self.bounded, self.gradient_checkpointing = size, guided, bounded, gradient_checkpointing
        styles = {"num_styles": size.num_styles, "style_classes": size.style_classes, "std": size.embedding_std}
        self.condition = Condition(size.cond_dim, num_classes=num_classes, guided=guided, **styles)
        kernel, stride, padding = (size.patch, size.patch, 0) if size.patch > 1 else (3, 1, 1)
        self.stem = _spread_kept(nn.Conv2d(self.noise_shape[0], size.widths[0], kernel, stride, padding))
        self.maps = Level(size, (height // size.patch, width // size.patch), gradient_checkpointing)
        self.head = Head(size, channels, output_std)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - faster on a CPU and a GPU

    def forward(
        self,
        noise: Float[Tensor, "b e h v"],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | None = None,
        style_indices: Int[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b _ h v"]:
        """Return one image per noise image, in float32 even under autocast. For the other arguments see `drifting.nn.Condition`."""
        condition = self.condition(noise, labels, guidance_scale, style_indices)
        maps = self.maps(self.stem(noise.contiguous(memory_format=torch.channels_last)), silu(condition))
        samples = self.head(maps)
        return samples.tanh() if self.bounded else samples


@dataclass(frozen=True, kw_only=True)
class UNetConfig(UNetSize, GeneratorConfig):
    """The settings of a `UNet` that ends in tanh."""

    output_std: float = 0.75
    gradient_checkpointing: bool = False

    def build(self, *, sample_shape: tuple[int, ...], num_classes: int | None, guided: bool) -> UNet:
        """Return the generator; see `GeneratorConfig.build`."""
        self._check_images(sample_shape)
        return UNet(
            sample_shape=sample_shape,
            size=self,
            num_classes=num_classes,
            guided=guided,
            output_std=self.output_std,
            gradient_checkpointing=self.gradient_checkpointing,
        )


class Level(nn.Module):
    """Blocks on maps of one size on the way down and on the way up; between them the level below, or attention at the lowest level.

    Args:
        size: size of the network.
        sides: height and width of the maps.
        gradient_checkpointing: whether to recompute the activations of a block in the backward pass.
        depth: number of levels above this one.
    """

    def __init__(self, size: UNetSize, sides: tuple[int, int], gradient_checkpointing: bool, depth: int = 0) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        width, *deeper = size.widths[depth:]
        self.below = self.shrink = self.grow = self.attention = None
        if deeper:
            self.shrink = _spread_kept(nn.Conv2d(width, deeper[0], 2, stride=2))
            self.below = Level(size, (sides[0] // 2, sides[1] // 2), gradient_checkpointing, depth + 1)
            self.grow = _spread_kept(nn.Conv2d(deeper[0], 4 * width, 1))
        elif size.heads:
            self.attention = AttentionBlock(width, size.heads, sides[0] * sides[1])
        # The lowest level loses no resolution, so it needs no skip connection.
        before_up = 2 * width if deeper else width
        self.down = nn.ModuleList(Block(width, width, size.cond_dim) for _ in range(size.blocks))
        self.up = nn.ModuleList(Block(before_up, width, size.cond_dim) for _ in range(size.blocks))

    def forward(self, maps: Maps, active: Float[Tensor, "b z"]) -> Maps:
        """Return the maps after the level and all below it; `active` is silu(condition)."""
        skips = []
        for block in self.down:
            maps = run(block, maps, active, gradient_checkpointing=self.gradient_checkpointing)
            skips.append(maps)
        if self.below is not None and self.shrink is not None and self.grow is not None:
            maps = pixel_shuffle(self.grow(self.below(self.shrink(maps), active)), 2)
        elif self.attention is not None:
            maps = run(self.attention, maps, gradient_checkpointing=self.gradient_checkpointing)
        for block in self.up:
            inputs = maps if self.below is None else torch.cat([maps, skips.pop()], 1)
            maps = run(block, inputs, active, gradient_checkpointing=self.gradient_checkpointing)
        return maps


class Block(nn.Module):
    """A residual block of two convolutions. The condition modulates between them; at the start it has no effect.

    Args:
        in_width: channels of the input maps.
        width: channels of the output maps.
        cond_dim: width of the condition.
    """

    def __init__(self, in_width: int, width: int, cond_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(in_width), _norm(width)
        self.conv1 = _spread_kept(nn.Conv2d(in_width, width, 3, padding=1), _SILU_POWER)
        self.conv2 = _spread_kept(nn.Conv2d(width, width, 3, padding=1), _SILU_POWER)
        self.shortcut = nn.Identity() if in_width == width else _spread_kept(nn.Conv2d(in_width, width, 1))
        self.modulation = nn.Linear(cond_dim, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, maps: Float[Tensor, "b w h v"], active: Float[Tensor, "b z"]) -> Float[Tensor, "b _ h v"]:
        """Return the maps after the block; `active` is silu(condition)."""
        shift, scale = precise(self.modulation, active)[:, :, None, None].chunk(2, 1)
        inner = precise(self.norm2, self.conv1(silu(precise(self.norm1, maps))))
        return self.shortcut(maps) + self.conv2(silu(inner * (1 + scale) + shift))


class AttentionBlock(nn.Module):
    """Residual attention between all places of a map.

    Args:
        width: channels of the maps.
        heads: number of heads of the attention.
        places: number of places of a map.
    """

    def __init__(self, width: int, heads: int, places: int) -> None:
        super().__init__()
        self.norm, self.attention = _norm(width), Attention(width, heads, places)
        for layer in (self.attention.qkv, self.attention.output):
            _spread_kept(layer)

    def forward(self, maps: Maps) -> Maps:
        """Return the maps after the attention."""
        tokens = precise(self.norm, maps).flatten(2).transpose(1, 2)
        return maps + self.attention(tokens).transpose(1, 2).unflatten(2, maps.shape[2:])


class Head(nn.Module):
    """Output layers: largest maps -> images, by repeated doubling of the side.

    Args:
        size: size of the network.
        channels: channels of an image.
        output_std: initial standard deviation of the images.
    """

    def __init__(self, size: UNetSize, channels: int, output_std: float) -> None:
        super().__init__()
        doublings = int(math.log2(size.patch))
        widths = [size.widths[0]] + [size.head_width] * (doublings - 1)
        self.norm, self.factor = _norm(size.widths[0]), 2 if doublings else 1
        self.doublings = nn.ModuleList(
            _spread_kept(nn.Conv2d(before, 4 * after, 1), _SILU_POWER) for before, after in pairwise(widths)
        )
        self.output = _spread_kept(nn.Conv2d(widths[-1], channels * self.factor**2, 3, padding=1), _SILU_POWER)
        with torch.no_grad():
            self.output.weight.mul_(output_std)

    def forward(self, maps: Maps) -> Float[Tensor, "b c _ _"]:
        """Return the images in float32."""
        maps = silu(precise(self.norm, maps))
        for layer in self.doublings:
            maps = silu(pixel_shuffle(layer(maps), 2))
        return pixel_shuffle(precise(self.output, maps), self.factor)


def _check(size: UNetSize) -> None:
    if size.patch < 1 or size.patch & (size.patch - 1):
        raise InputError(f"patch is {size.patch}: pass a power of 2, such as 4")
    if not size.widths or any(width < 4 or width % 4 for width in size.widths):
        raise InputError(f"widths is {size.widths}: pass at least one, each divisible by 4")


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, width // 4), width)


def _spread_kept(layer: Layer, power: float = 1.0) -> Layer:
    """Draw weights that map inputs with a mean square of `power` to outputs with variance 1; biases start at 0."""
    nn.init.normal_(layer.weight, std=(power * layer.weight[0].numel()) ** -0.5)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer
