"""The interface of a generator, which maps noise to samples in one forward pass, and its random inputs in training.

Training draws whole batches of noise from one random stream; `sampling` gives every sample a stream of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drifting._checks import check_counts, is_integer
from drifting.errors import InputError
from drifting.generators.noise import sobol_noise


class Generator(nn.Module):
    """A module (noise, labels, guidance_scale) -> samples.

    A generator with style codes also takes `style_indices`. Like the noise, they are part of the randomness of a sample: the caller
    draws both, and passes the same values again to compute the same samples again.

    Attributes:
        noise_shape: shape of the noise of one sample.
        sample_shape: shape of one sample.
        num_classes: number of labels, or None for a generator that takes none.
        guided: whether the guidance scale has an effect; other generators ignore it.
        num_styles: number of style codes of one sample; 0 for a generator without style codes.
        style_classes: number of values of a style code.
        noise_scale: standard deviation of the noise of samples; that of training is 1. See `GeneratorConfig`.
    """

    noise_shape: tuple[int, ...]
    sample_shape: tuple[int, ...]
    num_classes: int | None
    guided: bool = False
    num_styles: int = 0
    style_classes: int = 0
    noise_scale: float = 1.0

    def draw_prior(
        self, labels: int, count: int, rng: torch.Generator, *, noise: str = "independent"
    ) -> tuple[Float[Tensor, "l n *noise"], Int[Tensor, "l n s"] | None]:
        """Return standard normal noise and style codes of `count` samples of each label, on the device of rng.

        The noise is "independent" or "sobol", see `generators.noise`; style codes are independent either way.
        """
        if noise == "sobol":
            drawn = sobol_noise(labels, count, self.noise_shape, rng)
        else:
            drawn = torch.randn((labels, count, *self.noise_shape), generator=rng, device=rng.device)
        codes = self.draw_style_indices(labels * count, rng)
        return drawn, None if codes is None else codes.unflatten(0, (labels, count))

    def draw_style_indices(self, count: int, rng: torch.Generator) -> Int[Tensor, "b s"] | None:
        """Return uniform style codes for `count` samples on the device of rng, or None for a generator without style codes."""
        if self.num_styles == 0:
            return None
        return torch.randint(self.style_classes, (count, self.num_styles), generator=rng, device=rng.device)


class WrappedGenerator(Generator):
    """A user's module or function from noise, or from noise and labels, to samples.

    Args:
        module: the module or function.
        noise_shape, sample_shape, num_classes: see `Generator`.
    """

    def __init__(
        self,
        module: Callable[..., Tensor],
        noise_shape: tuple[int, ...],
        sample_shape: tuple[int, ...],
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.module: Any = module
        self.noise_shape, self.sample_shape, self.num_classes = noise_shape, sample_shape, num_classes
        self.training = getattr(module, "training", True)

    def forward(self, noise: Tensor, labels: Tensor | None = None, guidance_scale: Tensor | None = None) -> Tensor:
        """Return what the module returns."""
        return self.module(noise) if labels is None or self.num_classes is None else self.module(noise, labels)


def noise_shape_of(module: object, noise_shape: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of the noise of one sample; that of the module for None.

    Raises:
        InputError: if the module has none, or a length is no integer from 1.
    """
    shape = getattr(module, "noise_shape", None) if noise_shape is None else noise_shape
    if shape is None:
        raise InputError("noise_shape is missing: pass the shape of the noise of one sample, such as noise_shape=32")
    lengths = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if not all(map(is_integer, lengths)):
        raise InputError(f"noise_shape is {shape!r}: pass integers, such as 32 or (4, 32, 32)")
    check_counts({"noise_shape": min(lengths, default=0)})
    return lengths


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(ABC):
    """The settings of a generator. Everything else that `build` needs follows from the data and the schedule.

    Attributes:
        noise_scale: standard deviation of the noise of samples after the training, in which it is 1. Above 1 samples vary more,
            below 1 they are more typical; style codes stay as they are. `RunConfig.build_generator` gives it to the generator.
    """

    noise_scale: float = 1.0

    @abstractmethod
    def build(self, *, sample_shape: tuple[int, ...], num_classes: int | None, guided: bool) -> Generator:
        """Return the generator on the CPU, with initial weights.

        Args:
            sample_shape: shape of one sample.
            num_classes: number of labels, or None for an unconditional generator.
            guided: whether the generator takes a guidance scale.

        Raises:
            InputError: if the generator cannot make samples of this shape.
        """

    def _check_images(self, sample_shape: tuple[int, ...]) -> None:
        if len(sample_shape) != 3:
            raise InputError(f"generator is a {type(self).__name__}, but the data are not images: name another generator")
