"""What a generator is: noise in, samples out, in one forward pass; and the noise and the style codes that it is given.

Training draws whole batches of noise from one random stream. Sampling gives every sample a counter-based stream of its own, so that
sample i of a seed is the same in any batch, order or number of processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drifting.errors import InputError


class Generator(nn.Module):
    """A module (noise, labels, guidance_scale) -> samples.

    One that takes style codes is called with `style_indices` as well. They are part of the randomness of a sample, as its noise is:
    whoever draws the noise draws them, and passes the same ones again to compute the same samples again.

    Attributes:
        noise_shape: shape of the noise of one sample.
        sample_shape: shape of one sample.
        num_classes: number of labels, or None for a generator that takes none.
        guided: whether it takes a guidance scale; one that does not ignores it.
        num_styles: style codes of one sample; 0 for a generator that takes none.
        style_classes: each code is below this number.
    """

    noise_shape: tuple[int, ...]
    sample_shape: tuple[int, ...]
    num_classes: int | None
    guided: bool = False
    num_styles: int = 0
    style_classes: int = 0

    def draw_style_indices(self, count: int, rng: torch.Generator) -> Int[Tensor, "b s"] | None:
        """Return uniform style codes of `count` samples on the device of rng, or None for a generator that takes none."""
        if self.num_styles == 0:
            return None
        return torch.randint(self.style_classes, (count, self.num_styles), generator=rng, device=rng.device)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(ABC):
    """The settings of a generator, which build it. What they do not say depends on the data and on the schedule."""

    @abstractmethod
    def build(self, *, sample_shape: tuple[int, ...], num_classes: int | None, guided: bool) -> Generator:
        """Return the generator with fresh weights on the CPU.

        Args:
            sample_shape: shape of one sample.
            num_classes: number of labels, or None for a generator that takes none.
            guided: whether it takes a guidance scale.

        Raises:
            InputError: if it cannot make samples of that shape.
        """

    def _check_images(self, sample_shape: tuple[int, ...]) -> None:
        if len(sample_shape) != 3:
            raise InputError(f"generator is a {type(self).__name__}, but the data are no images: name another generator")


_MASK = 2**64 - 1


def draw_noise(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Return standard normal noise of a shape, on the device of rng."""
    return torch.randn(tuple(shape), generator=rng, device=rng.device)


def seeded_noise(indices: Sequence[int], shape: Sequence[int], seed: int) -> Float[Tensor, "b *sample"]:
    """Return standard normal noise on the CPU, one row per index, each a function of (seed, index) alone.

    Args:
        indices: which samples of the seed.
        shape: shape of the noise of one sample.
        seed: any integer.
    """
    rows = [np.random.Generator(_stream(seed, index)).standard_normal(tuple(shape), dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def seeded_codes(indices: Sequence[int], num_styles: int, style_classes: int, seed: int) -> Int[Tensor, "b s"]:
    """Return style codes on the CPU, one row per index, each a function of (seed, index) alone.

    Args:
        indices: which samples of the seed, at least one.
        num_styles: codes of one sample.
        style_classes: each code is below this number.
        seed: any integer.
    """
    # Jumped, so that they share no numbers with the noise of the sample.
    streams = (np.random.Generator(_stream(seed, index).jumped()) for index in indices)
    return torch.from_numpy(np.stack([stream.integers(style_classes, size=num_styles) for stream in streams]))


def _stream(seed: int, index: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed & _MASK, index], np.uint64))
