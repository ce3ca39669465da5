"""Layers shared by generators and encoders: the condition, normalization, attention, patches, and a decoder of vectors to images.

    condition   = class embedding + sum of style embeddings + std RMSNorm( MLP( embedding of the guidance scale ) )
    modulate(h) = h (1 + scale) + shift,    shift and scale linear in silu(condition)

Normalization, modulation and the condition are float32 even under autocast.

The decoder computes matrix products on small maps. The first makes a map with a quarter of the side of the image. Then every place
of a map makes 2 x 2 places, twice. This is faster on a CPU than transposed convolutions, and draws whole strokes, which a
perceptron on pixels does not. For large images there can be three doublings, which start from an eighth of the side.

Images that vary more than digits need blocks, maps + convolution(silu(maps)) over 3 x 3 places, on the maps of a quarter and an
eighth of the side. With them every place depends on its neighbors, which avoids visible square tiles.

The optional smoothing is the filter [1 2 1] / 4 along both axes after the last doubling. It removes alternating pixels, to which an
encoder with strides is almost blind.

Shapes: b samples, n tokens, w width, d channels of a head, s style codes, z width of the condition, c channels, h x v pixels; for
the decoder f features and h x h pixels.

Source: the authors' release; the decoder is ours.
"""

from collections.abc import Sequence
from math import prod
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, rms_norm, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from drifting._checks import full_precision
from drifting.errors import InputError

_BASE = 10_000.0
_GUIDANCE_CHANNELS = 256
_MLP_STD = 0.02
_EPSILON = 1e-6


def precise(layer: nn.Module, x: Tensor) -> Tensor:
    """Return layer(x) in float32, or in float64 if x is float64, even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(full_precision(x))


def run(block: nn.Module, *inputs: Tensor, gradient_checkpointing: bool) -> Tensor:
    """Return block(*inputs). Gradient checkpointing recomputes its activations in the backward pass instead of storing them."""
    if gradient_checkpointing and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False))
    return block(*inputs)


def modulate(h: Float[Tensor, "b n w"], shift: Float[Tensor, "b w"], scale: Float[Tensor, "b w"]) -> Float[Tensor, "b n w"]:
    """Return h (1 + scale) + shift, the same for all tokens of a sample."""
    return h * (1 + scale[:, None]) + shift[:, None]


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + 1e-6) * weight over the last axis, computed and returned in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """Return the normalized vectors."""
        return rms_norm(full_precision(x), self.weight.shape, self.weight, _EPSILON)


class SwiGLU(nn.Module):
    """A gated perceptron on every token: output( silu(gate(x)) * value(x) ).

    Args:
        width: width of a token.
        ratio: hidden width, relative to a token, of a plain perceptron with as many weights; the actual width is rounded up to a
            multiple of 32.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = -(-int(ratio * width * 2 / 3) // 32) * 32
        self.gate, self.value, self.output = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Return the output of every token."""
        return self.output(silu(self.gate(x)) * self.value(x))


class Attention(nn.Module):
    """Self-attention over a fixed number of tokens, with normalized queries and keys and rotary positions.

    Args:
        width: width of a token.
        heads: number of heads; width / heads must be an even number.
        length: number of tokens.
        normalized: whether to normalize queries and keys.
        rotary: whether to rotate queries and keys by their position.

    Raises:
        InputError: if the width cannot be split into heads with an even number of channels.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, width: int, heads: int, length: int, *, normalized: bool = True, rotary: bool = True) -> None:
        super().__init__()
        if heads < 1 or width % (2 * heads):
            raise InputError(
                f"heads is {heads}: pass a number that splits width {width} into heads with an even number of channels"
            )
        self.heads, self.channels, self.length, self.rotary = heads, width // heads, length, rotary
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_queries, self.norm_keys = (RMSNorm(width // heads) if normalized else nn.Identity() for _ in range(2))
        self.set_angles()

    def set_angles(self) -> None:
        """Compute the rotation of each position. Weights do not store it, so call this again for a network built on meta."""
        angles = rotary_angles(self.length, self.channels)
        self.register_buffer("cosines", angles.cos().float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Return the output of the attention for every token of each sample."""
        queries, keys, values = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys = self.norm_queries(queries), self.norm_keys(keys)
        if self.rotary:
            queries, keys = (rotate(vectors, self.cosines, self.sines) for vectors in (queries, keys))
        queries, keys = queries.to(values.dtype), keys.to(values.dtype)
        gathered = scaled_dot_product_attention(queries, keys, values)
        return self.output(gathered.transpose(1, 2).flatten(2))


def rotary_angles(length: int, channels: int) -> Float[Tensor, "n d"]:
    """Return position * 10000^(-2i / channels) for i below channels / 2 in float64, repeated to all channels."""
    powers = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    return torch.outer(torch.arange(length, dtype=torch.float64), _BASE**-powers).repeat(1, 2)


def rotate(
    vectors: Float[Tensor, "b heads n d"], cosines: Float[Tensor, "n d"], sines: Float[Tensor, "n d"]
) -> Float[Tensor, "b heads n d"]:
    """Rotate the plane of channels i and i + d/2 of every vector by its angle."""
    first, second = vectors.chunk(2, -1)
    return vectors * cosines + torch.cat([-second, first], -1) * sines


def grid_positions(rows: int, columns: int, width: int) -> Float[Tensor, "n w"]:
    """Return the 2-D sine-cosine embedding of a row-major grid: channels of the column, then of the row, each [sines | cosines].

    Args:
        rows: number of rows of the grid.
        columns: number of columns of the grid.
        width: number of channels, divisible by 4; frequency i of width / 4 is 10000^(-4i / width).

    Raises:
        InputError: if the width is not divisible by 4.
    """
    if width % 4:
        raise InputError(f"width is {width}: pass a number divisible by 4, for sine and cosine of row and column")
    frequencies = _BASE ** -(torch.arange(0, width, 4, dtype=torch.float64) / width)

    def encode(count: int) -> Tensor:
        angles = torch.outer(torch.arange(count, dtype=torch.float64), frequencies)
        return torch.cat([angles.sin(), angles.cos()], 1)

    return torch.cat([encode(columns).repeat(rows, 1), encode(rows).repeat_interleave(columns, 0)], 1).float()


def patchify(images: Float[Tensor, "b c h v"], patch: int) -> Float[Tensor, "b n _"]:
    """Return the patches of images, row-major; the entries of a patch are ordered (row, column, channel)."""
    split = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Float[Tensor, "b n _"], patch: int, image_shape: Sequence[int]) -> Float[Tensor, "b c h v"]:
    """Return the images of patches, the inverse of `patchify`."""
    channels, height, width = image_shape
    split = patches.unflatten(2, (patch, patch, channels)).unflatten(1, (height // patch, width // patch))
    return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def check_sides(sample_shape: Sequence[int], divisor: int) -> tuple[int, int, int]:
    """Return the shape of images, or raise InputError unless the divisor, such as a patch, divides both sides."""
    shape = tuple(sample_shape)
    if divisor < 1:
        raise InputError(f"patch is {divisor}: pass at least 1")
    if len(shape) != 3 or min(shape) < 1 or shape[1] % divisor or shape[2] % divisor:
        raise InputError(f"sample_shape is {shape}: pass channels, height and width, both sides divisible by {divisor}")
    return cast(tuple[int, int, int], shape)


def guidance_embedding(guidance_scale: Float[Tensor, " b"]) -> Float[Tensor, "b 256"]:
    """Return the cosines, then the sines, of alpha * 10000^(-i/128) for i below 128."""
    half = _GUIDANCE_CHANNELS // 2
    frequencies = _BASE ** -(torch.arange(half, dtype=guidance_scale.dtype, device=guidance_scale.device) / half)
    angles = guidance_scale[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class Condition(nn.Module):
    """The condition of a sample (label, guidance scale, style codes) as one vector.

    Args:
        width: length of the vector.
        num_classes: number of labels, or None without labels.
        guided: whether there is a guidance scale.
        num_styles: number of style codes of a sample, each an index into a table of its own; 0 for none.
        style_classes: number of rows of such a table.
        std: initial standard deviation of the parts.
    """

    def __init__(
        self, width: int, *, num_classes: int | None, guided: bool, num_styles: int, style_classes: int, std: float = 0.02
    ) -> None:
        super().__init__()
        self.width, self.num_styles, self.style_classes, self.std = width, num_styles, style_classes, std
        self.classes = nn.Embedding(num_classes, width) if num_classes else None
        # The tables are concatenated. A bag sums their rows without storing each of them.
        self.styles = nn.EmbeddingBag(num_styles * style_classes, width, mode="sum") if num_styles else None
        layers = (nn.Linear(_GUIDANCE_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.guidance = nn.Sequential(*layers) if guided else None
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=_MLP_STD if name.startswith("guidance") else std)
        self.norm = RMSNorm(width) if guided else None

    def forward(
        self,
        noise: Float[Tensor, "b c h v"],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | float | None = None,
        style_indices: Int[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b z"]:
        """Return the condition of every sample.

        Args:
            noise: noise of the samples, of which only the number, the device and the precision are used.
            labels: one label per sample; required with classes, ignored without.
            guidance_scale: one scale for each sample or one for all; None for 1 (no guidance); ignored by an unguided generator.
            style_indices: `num_styles` codes per sample; None draws them from the global random stream; ignored without styles.

        Raises:
            InputError: if labels are missing or an argument has the wrong shape; on a CPU, where reading values costs nothing, also
                if labels or codes are out of range.
        """
        condition = full_precision(noise).new_zeros(noise.shape[0], self.width)
        if self.guidance is not None and self.norm is not None:
            scale = 1.0 if guidance_scale is None else guidance_scale
            # A number of the host is filled in on the device: a copy would make the host wait.
            scale = scale.to(condition) if isinstance(scale, Tensor) else condition.new_full((), scale)
            if scale.shape not in ((), (1,), noise.shape[:1]):
                raise InputError(f"guidance_scale has shape {tuple(scale.shape)}: pass one number, or one for each of {len(noise)}")
            scale = scale.expand(noise.shape[0])
            condition = self.std * self.norm(precise(self.guidance, guidance_embedding(scale)))
        if self.classes is not None:
            if labels is None:
                raise InputError(f"labels is None: pass one for each sample, from 0 to {self.classes.num_embeddings - 1}")
            condition = condition + self.classes(_checked("labels", labels, noise.shape[:1], self.classes.num_embeddings))
        if self.styles is not None:
            condition = condition + self.styles(self._rows(noise, style_indices))
        return condition

    def _rows(self, noise: Tensor, codes: Tensor | None) -> Int[Tensor, "b s"]:
        shape = (noise.shape[0], self.num_styles)
        if codes is None:
            codes = torch.randint(self.style_classes, shape, device=noise.device)
        else:
            # A code beyond its own table would silently read the next table.
            codes = _checked("style_indices", codes, shape, self.style_classes)
        return codes + self.style_classes * torch.arange(self.num_styles, device=codes.device)


def _checked(name: str, indices: Tensor, shape: tuple[int, ...], end: int) -> Int[Tensor, "*n"]:
    """Return the indices as int64, or raise InputError unless they have the shape and are integers from 0 to `end` - 1."""
    if tuple(indices.shape) != shape:
        raise InputError(f"{name} has shape {tuple(indices.shape)}: pass {tuple(shape)}, one row for each sample")
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise InputError(f"{name} are {indices.dtype}: pass whole numbers from 0 to {end - 1}")
    if indices.device.type == "cpu" and indices.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= end:
            raise InputError(f"{name} has {low if low < 0 else high}: choose from 0 to {end - 1}")
    return indices.long()


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
    # Made on the device: numbers from the host would make the host wait.
    weights = 0.5 - 0.25 * torch.arange(-1, 2, dtype=images.dtype, device=images.device).abs()
    channels = images.shape[1]
    kernel = (weights[:, None] * weights).expand(channels, 1, 3, 3)
    return conv2d(_with_edges(images), kernel, groups=channels)


def _with_edges(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h+2 w+2"]:
    """Return images with their edges repeated."""
    if torch.compiler.is_compiling():
        # torch's compiler (2.13) expects other strides of the gradient of the padding with channels last, and stops in training.
        images = torch.cat([images[:, :, :1], images, images[:, :, -1:]], 2)
        return torch.cat([images[..., :1], images, images[..., -1:]], 3)
    return pad(images, (1, 1, 1, 1), mode="replicate")
