"""A perceptron that makes a code and a decoder that draws it: sharp images on a CPU, with few operations.

    image = tanh( decoder( perceptron(noise, label, guidance scale) ) )

Source: ours; the decoder is that of the auto-encoder, see `drifting.nn.Decoder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting.generators.base import Generator, GeneratorConfig
from drifting.generators.mlp import MLP
from drifting.nn import Decoder


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
        return DecoderMLP(sample_shape=sample_shape, num_classes=num_classes, guided=guided, **vars(self))
