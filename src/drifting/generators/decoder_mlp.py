"""A perceptron that imagines a code, and a decoder that draws it: images on a CPU, sharp and with few operations.

    image = tanh( decoder( perceptron(noise, label) ) )

Source: ours; the decoder is that of the auto-encoder (`upsampling`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting.generators.base import Generator
from drifting.generators.mlp import MLP
from drifting.upsampling import Decoder


class DecoderMLP(Generator):
    """Push noise through a perceptron, whose output is decoded into an image in (-1, 1).

    Args:
        noise_dim: length of the noise vector of one sample.
        sample_shape: channels, height and width of one image; square, with a side divisible by 4.
        width: units of a hidden layer of the perceptron.
        depth: number of its hidden layers.
        code_dim: length of the code.
        decoder_width: channels of the decoder at half the side.
        num_classes: number of labels, or None for a generator that takes none.
        gain: factor of the weights of the matrix products at the start. Above 1 the first images differ as much from each other as
            from real ones; where they are alike, they see each other alone at short temperatures, and large populations starve.
    """

    def __init__(
        self,
        *,
        noise_dim: int,
        sample_shape: Sequence[int],
        width: int,
        depth: int,
        code_dim: int,
        decoder_width: int,
        num_classes: int | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.noise_shape, self.sample_shape, self.num_classes = (noise_dim,), tuple(sample_shape), num_classes
        shape = {"noise_dim": noise_dim, "sample_shape": (code_dim,), "width": width, "depth": depth}
        self.imagine = MLP(**shape, num_classes=num_classes, gain=gain)
        self.decode = Decoder(code_dim, sample_shape, decoder_width)
        with torch.no_grad():
            for layer in (self.imagine.output, self.decode.spread):
                layer.weight.mul_(gain)

    def forward(
        self,
        noise: Float[Tensor, "b z"],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return one image per row of noise; `labels` are needed by a conditional generator, `guidance_scale` is not used."""
        return torch.tanh(self.decode(self.imagine(noise, labels)))
