"""Multi-layer perceptron generators, which are fast on a CPU: of any samples, or of a code that a decoder draws as an image.

    sample = perceptron(noise, label, guidance scale)            image = tanh( decoder( perceptron(noise, label, guidance scale) ) )

Source: the perceptron is that of the authors' notebook (32 -> 3 x 256, SiLU -> 2); labels and guidance scale are our additions. The
decoder is ours, that of the auto-encoder, see `drifting.nn.Decoder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drifting.generators.base import Generator, GeneratorConfig
from drifting.nn import Decoder


class MLP(Generator):
    """Generator with `depth` hidden layers of `width` units. A label shifts every hidden layer by a learned vector.

    Args:
        noise_dim: length of the noise vector of one sample.
        sample_shape: shape of one sample.
        width: units of a hidden layer.
        depth: number of hidden layers.
        num_classes: number of labels, or None for an unconditional generator.
        gain: factor of the initial hidden weights. Above 1, the network is more nonlinear from the first step on, which helps to
            split the noise into separate modes.
        guided: whether the generator takes a guidance scale, whose logarithm shifts every hidden layer along a learned vector.
    """

    def __init__(
        self,
        *,
        noise_dim: int,
        sample_shape: Sequence[int],
        width: int,
        depth: int,
        num_classes: int | None = None,
        gain: float = 1.0,
        guided: bool = False,
    ) -> None:
        super().__init__()
        self.noise_shape = (noise_dim,)
        self.sample_shape = tuple(sample_shape)
        self.num_classes, self.guided = num_classes, guided
        sizes = [noise_dim] + [width] * depth
        self.hidden = nn.ModuleList([nn.Linear(before, after) for before, after in pairwise(sizes)])
        with torch.no_grad():
            for layer in self.hidden:
                cast(nn.Linear, layer).weight.mul_(gain)
        self.shifts = nn.ModuleList([nn.Embedding(num_classes or 0, width) for _ in range(depth if num_classes else 0)])
        self.output = nn.Linear(width, prod(self.sample_shape))
        # Drawn last, so all other initial weights are the same with and without guidance.
        self.guidance = nn.ModuleList([nn.Linear(1, width, bias=False) for _ in range(depth if guided else 0)])

    def forward(
        self,
        noise: Float[Tensor, "b z"],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b *sample"]:
        """Return one sample per row of noise. A conditional generator needs `labels`; the guidance scale is 1 by default."""
        # Guidance scale 1 (none) has logarithm 0 and shifts nothing.
        logarithm = guidance_scale.log().to(noise)[:, None] if self.guided and guidance_scale is not None else None
        features = noise
        for index, layer in enumerate(self.hidden):
            features = layer(features)
            if self.num_classes:
                features = features + self.shifts[index](labels)
            if logarithm is not None:
                features = features + self.guidance[index](logarithm)
            features = nn.functional.silu(features)
        return self.output(features).unflatten(1, self.sample_shape)


@dataclass(frozen=True, kw_only=True)
class MLPConfig(GeneratorConfig):
    """The settings of an `MLP`."""

    noise_dim: int = 32
    width: int = 256
    depth: int = 3
    gain: float = 1.0

    def build(self, *, sample_shape: tuple[int, ...], num_classes: int | None, guided: bool) -> MLP:
        """Return the generator; see `GeneratorConfig.build`."""
        return MLP(sample_shape=sample_shape, num_classes=num_classes, guided=guided, **_arguments(self))


class DecoderMLP(Generator):
    """Generator of images in (-1, 1): a perceptron maps noise to a code, which is decoded into an image.

    Args:
        sample_shape: channels, height and width of one image; square, with a side divisible by 4.
        code_dim: length of the code.
        decoder_width: channels of the decoder at half the side.
        gain: factor of the initial weights of the matrix products. Above 1, the first images differ as much from each other as from
            real images. If they are too similar, at small temperatures their kernel covers only each other and large populations
            stop learning.
        decoder_blocks, smoothing, doublings: arguments of the decoder, see `drifting.nn.Decoder`.
        perceptron: noise_dim, width, depth, num_classes and guided, see `MLP`.
    """

    def __init__(
        self,
        *,
        sample_shape: Sequence[int],
        code_dim: int,
        decoder_width: int,
        gain: float = 1.0,
        decoder_blocks: int = 0,
        smoothing: bool = False,
        doublings: int = 2,
        **perceptron: Any,
    ) -> None:
        super().__init__()
        self.imagine = MLP(sample_shape=(code_dim,), gain=gain, **perceptron)
        self.noise_shape, self.sample_shape = self.imagine.noise_shape, tuple(sample_shape)
        self.num_classes, self.guided = self.imagine.num_classes, self.imagine.guided
        self.decode = Decoder(
            code_dim, sample_shape, decoder_width, blocks=decoder_blocks, smoothing=smoothing, doublings=doublings
        )
        with torch.no_grad():
            for layer in (self.imagine.output, self.decode.spread):
                layer.weight.mul_(gain)

    def forward(
        self,
        noise: Float[Tensor, "b z"],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return one image per row of noise. A conditional generator needs `labels`; the guidance scale is 1 by default."""
        return torch.tanh(self.decode(self.imagine(noise, labels, guidance_scale)))


@dataclass(frozen=True, kw_only=True)
class DecoderMLPConfig(GeneratorConfig):
    """The settings of a `DecoderMLP`.

    Attributes:
        noise_dim: length of the noise vector of one sample.
        width: units of a hidden layer of the perceptron.
        depth: number of hidden layers of the perceptron.
        decoder_blocks: number of residual convolutions at a quarter of the side of the image, and as many at an eighth.
        smoothing: whether to smooth the image that the decoder makes.
        doublings: how many times the decoder doubles the side of its first map, 2 or 3.
    """

    noise_dim: int = 8
    width: int = 512
    depth: int = 3
    code_dim: int = 128
    decoder_width: int = 32
    decoder_blocks: int = 0
    gain: float = 2.0
    smoothing: bool = False
    doublings: int = 2

    def build(self, *, sample_shape: tuple[int, ...], num_classes: int | None, guided: bool) -> DecoderMLP:
        """Return the generator; see `GeneratorConfig.build`."""
        return DecoderMLP(sample_shape=sample_shape, num_classes=num_classes, guided=guided, **_arguments(self))


def _arguments(config: GeneratorConfig) -> dict[str, Any]:
    """Return the settings that are arguments of the network."""
    return {name: value for name, value in vars(config).items() if name != "noise_scale"}
