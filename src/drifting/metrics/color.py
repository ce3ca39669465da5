"""Colors: do samples have the brightness, contrast and palette of real images?

    histogram_distance = 1/2 sum over bins |share in generated - share in real|      (total variation, in [0, 1])

over 8 x 8 x 8 bins of red, green and blue. It ignores shapes, but it is a cheap check for washed-out, tinted or collapsed samples.
Values are clamped to [-1, 1], as in a saved picture.

Source: Swain and Ballard, "Color indexing" (1991): 1 - histogram intersection.

Shapes: n images, c channels (3, or 1 for gray, with 8 bins), h x w pixels, values in [-1, 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError

BINS = 8
_CHUNK = 2**22


@dataclass(frozen=True)
class ColorComparison:
    """Colors of two sets of images, in the units of [-1, 1].

    Attributes:
        mean, std: mean and standard deviation per channel over all generated pixels, so `std` includes contrast within and between
            images.
        real_mean, real_std: the same for the real images.
        histogram_distance: total variation of the two palettes: 0 if they are equal, 1 if they have no color in common.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    real_mean: tuple[float, ...]
    real_std: tuple[float, ...]
    histogram_distance: float


def compare_colors(generated: Float[Tensor, "n c h w"], real: Float[Tensor, "m c height width"]) -> ColorComparison:
    """Compare the colors of generated and real images, whose counts and sizes may differ.

    Raises:
        InputError: if the channels differ, or images are not floating, finite, [n, c, h, w] and of 1 or 3 channels.
    """
    _check(generated, "generated")
    _check(real, "real")
    if generated.shape[1] != real.shape[1]:
        raise InputError(f"generated has {generated.shape[1]} channels and real {real.shape[1]}: make both gray, or both color")
    (mean, std), (real_mean, real_std) = color_statistics(generated), color_statistics(real)
    difference = color_histogram(generated) - color_histogram(real)
    return ColorComparison(
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        real_mean=tuple(real_mean.tolist()),
        real_std=tuple(real_std.tolist()),
        histogram_distance=float(difference.abs().sum()) / 2,
    )


@torch.no_grad()
def color_statistics(images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return the mean and the standard deviation of every channel over all pixels of all images, in float64."""
    _check(images, "images")
    count = images.numel() // images.shape[1]
    mean = torch.stack([part.sum(1) for part in _pixels(images)]).sum(0) / count
    squares = torch.stack([(part - mean[:, None]).square().sum(1) for part in _pixels(images)]).sum(0)
    return mean, (squares / count).sqrt()


@torch.no_grad()
def color_histogram(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "*bins"]:
    """Return the share of pixels in each of 8 x 8 x 8 equal color bins of [-1, 1]^3, as [8, 8, 8] ([8] for gray) in float64."""
    _check(images, "images")
    channels = images.shape[1]
    places = BINS ** torch.arange(channels - 1, -1, -1, device=images.device)
    counts = torch.zeros(BINS**channels, dtype=torch.long, device=images.device)
    for part in _pixels(images):
        levels = ((part.clamp(-1, 1) + 1) * (BINS / 2)).long().clamp(max=BINS - 1)
        counts += torch.bincount((levels * places[:, None]).sum(0), minlength=BINS**channels)
    return (counts.double() / counts.sum()).unflatten(0, (BINS,) * channels)


def _pixels(images: Float[Tensor, "n c h w"]) -> Iterator[Float[Tensor, "c pixels"]]:
    for part in images.split(max(1, _CHUNK // images[0].numel())):
        yield part.transpose(0, 1).flatten(1).double()


def _check(images: Tensor, name: str) -> None:
    if images.ndim != 4 or images.numel() == 0 or images.shape[1] not in (1, 3):
        raise InputError(f"{name} has the shape {tuple(images.shape)}: pass images [n, c, h, w] of 1 or 3 channels")
    if not images.is_floating_point():
        raise InputError(f"{name} is {images.dtype}: pass floating point images in [-1, 1], which is bytes / 127.5 - 1")
    if not images.isfinite().all():
        raise InputError(f"{name} has a value that is not finite: the generator has diverged, use an earlier checkpoint")
