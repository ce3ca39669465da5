"""A transformer over patches of noise, the generator of the paper.

    tokens = [ context tokens | patches + positions ]
    tokens = tokens + gate * attention( modulate( RMSNorm(tokens) ) )
    tokens = tokens + gate * SwiGLU( modulate( RMSNorm(tokens) ) )            depth times
    sample = linear( modulate( RMSNorm(patches) ) )

Shapes: b samples, c channels, h x v pixels, n tokens, w width, z width of the condition.

Source: paper; the details are those of the authors' release, whose outputs it reproduces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from drifting.errors import InputError
from drifting.generators.base import Generator, GeneratorConfig
from drifting.nn import (
    Attention,
    Condition,
    RMSNorm,
    SwiGLU,
    check_sides,
    grid_positions,
    modulate,
    patchify,
    precise,
    run,
    unpatchify,
)


@dataclass(frozen=True, kw_only=True)
class DiTSize:
    """The size of a `DiT`.

    Attributes:
        patch: side of a patch.
        width: number of channels of a token, divisible by 4.
        depth: number of blocks.
        heads: number of heads of the attention, with an even number of channels each.
        cond_dim: width of the condition.
        mlp_ratio: width of the perceptron in a block divided by the width of a token; see `drifting.nn.SwiGLU`.
        num_context_tokens: number of tokens before the patches that hold the condition.
        num_styles: number of style codes of a sample.
        style_classes: number of values of a style code.
        embedding_std: initial standard deviation of the parts of the condition: 0.02 in the release, more for short trainings.
        normalized: whether to normalize queries and keys of the attention.
        rotary: whether to rotate queries and keys of the attention by their position.
    """

    patch: int
    width: int
    depth: int
    heads: int
    cond_dim: int
    mlp_ratio: float = 4.0
    num_context_tokens: int = 16
    num_styles: int = 32
    style_classes: int = 64
    embedding_std: float = 0.02
    normalized: bool = True
    rotary: bool = True


_B2 = DiTSize(patch=2, width=768, depth=12, heads=12, cond_dim=768)
_L2 = DiTSize(patch=2, width=1024, depth=24, heads=16, cond_dim=1024)

# The four sizes of the paper (patch 2 for latents, 16 for pixels), and two for images of 32 x 32 pixels: for two CPU cores, for a
# GPU.
SIZES: Mapping[str, DiTSize] = MappingProxyType(
    {
        "B/2": _B2,
        "L/2": _L2,
        "B/16": replace(_B2, patch=16),
        "L/16": replace(_L2, patch=16),
        "cpu": DiTSize(
            patch=4,
            width=128,
            depth=4,
            heads=4,
            cond_dim=128,
            num_context_tokens=4,
            num_styles=8,
            style_classes=16,
            embedding_std=0.3,
        ),
        "gpu": DiTSize(patch=2, width=384, depth=12, heads=6, cond_dim=384, embedding_std=0.3),
    }
)


class DiT(Generator):
    """Generator of images: a transformer maps a noise image to an image.

    Args:
        sample_shape: channels, height and width of one image; the patch divides both sides.
        size: size of the network.
        num_classes: number of labels, or None for an unconditional generator.
        guided: whether the generator takes a guidance scale.
        bounded: whether to end with tanh, for images in [-1, 1].
        output_std: initial standard deviation of the output before tanh; 0.75 gives 0.5 after it. At 0 all first outputs are 0, as
            in the release. Above 0 the output layer does not start at zero and noise outweighs position, so the first samples
            differ.
        gradient_checkpointing: whether to recompute the activations of a block in the backward pass: less memory, a third more
            time.
        noise_channels: channels of the noise, which has the height and width of the image; None for as many as the image has.

    Raises:
        InputError: if the patch does not divide the image, or the width cannot be split into heads.
    """

    def __init__(
        self,
        *,
        sample_shape: Sequence[int],
        size: DiTSize,
        num_classes: int | None = None,
        guided: bool = True,
        bounded: bool = False,
        output_std: float = 0.0,
        gradient_checkpointing: bool = False,
        noise_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.sample_shape = channels, height, width = check_sides(sample_shape, size.patch)
        self.noise_shape = (channels if noise_channels is None else noise_channels, height, width)
        self.num_classes, self.num_styles, self.style_classes = num_classes, size.num_styles, size.style_classes
        self.size, self.guided, self.bounded, self.gradient_checkpointing = size, guided, bounded, gradient_checkpointing
        styles = {"num_styles": size.num_styles, "style_classes": size.style_classes, "std": size.embedding_std}
        self.condition = Condition(size.cond_dim, num_classes=num_classes, guided=guided, **styles)
        entries, noise_entries = channels * size.patch**2, self.noise_shape[0] * size.patch**2
        self.embed = nn.Linear(noise_entries, size.width)
        self.positions = nn.Parameter(grid_positions(height // size.patch, width // size.patch, size.width))
        context = size.num_context_tokens
        self.context = nn.Linear(size.cond_dim, size.width) if context else None
        self.context_tokens = nn.Parameter(0.02 * torch.randn(context, size.width)) if context else None
        length = context + len(self.positions)
        self.blocks = nn.ModuleList(Block(size, length) for _ in range(size.depth))
        self.norm = RMSNorm(size.width)
        self.modulation = _start_at_zero(nn.Linear(size.cond_dim, 2 * size.width))
        self.output = _start_at_zero(nn.Linear(size.width, entries))
        for layer in filter(None, (self.embed, self.context)):
            _start_xavier(layer)
        if output_std > 0:
            nn.init.normal_(self.embed.weight, std=noise_entries**-0.5)
            nn.init.normal_(self.output.weight, std=output_std * size.width**-0.5)

    def forward(
        self,
        noise: Float[Tensor, "b c h v"],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | float | None = None,
        style_indices: Int[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b c h v"]:
        """Return one image per noise image, in float32 even under autocast. For the other arguments see `drifting.nn.Condition`."""
        if tuple(noise.shape[1:]) != self.noise_shape:
            raise InputError(f"noise has shape {tuple(noise.shape)}: pass {self.noise_shape} for each sample")
        condition = self.condition(noise, labels, guidance_scale, style_indices)
        tokens, active = self.embed(patchify(noise, self.size.patch)) + self.positions, silu(condition)
        if self.context is not None and self.context_tokens is not None:
            tokens = torch.cat([self.context(condition)[:, None] + self.context_tokens, tokens], 1)
        for block in self.blocks:
            tokens = run(block, tokens, active, gradient_checkpointing=self.gradient_checkpointing)
        shift, scale = precise(self.modulation, active).chunk(2, -1)
        patches = modulate(self.norm(tokens[:, self.size.num_context_tokens :]), shift, scale)
        samples = unpatchify(precise(self.output, patches), self.size.patch, self.sample_shape)
        return samples.tanh() if self.bounded else samples


@dataclass(frozen=True, kw_only=True)
class DiTConfig(DiTSize, GeneratorConfig):
    """The settings of a `DiT`. With an `output_std` of 0 it starts like the release."""

    # What the release calls networks of this kind.
    released_as: ClassVar[str] = "gen"

    bounded: bool = True
    output_std: float = 0.75
    gradient_checkpointing: bool = False

    def build(self, *, sample_shape: tuple[int, ...], num_classes: int | None, guided: bool) -> DiT:
        """Return the generator; see `GeneratorConfig.build`."""
        self._check_images(sample_shape)
        return DiT(
            sample_shape=sample_shape,
            size=self,
            num_classes=num_classes,
            guided=guided,
            bounded=self.bounded,
            output_std=self.output_std,
            gradient_checkpointing=self.gradient_checkpointing,
        )


class Block(nn.Module):
    """Attention, then a perceptron on every token. The condition modulates and gates both; the gates start at 0.

    Args:
        size: size of the network.
        length: number of tokens.
    """

    def __init__(self, size: DiTSize, length: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = RMSNorm(size.width), RMSNorm(size.width)
        self.attention = Attention(size.width, size.heads, length, normalized=size.normalized, rotary=size.rotary)
        self.mlp = SwiGLU(size.width, size.mlp_ratio)
        self.apply(_start_xavier)
        self.modulation = _start_at_zero(nn.Linear(size.cond_dim, 6 * size.width))

    def forward(self, tokens: Float[Tensor, "b n w"], active: Float[Tensor, "b z"]) -> Float[Tensor, "b n w"]:
        """Return the tokens after the block; `active` is silu(condition)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = precise(self.modulation, active).chunk(6, -1)
        tokens = tokens + gate[:, None] * self.attention(modulate(self.norm_attention(tokens), shift, scale))
        return tokens + mlp_gate[:, None] * self.mlp(modulate(self.norm_mlp(tokens), mlp_shift, mlp_scale))


def _start_xavier(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


def _start_at_zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
