"""Classifier-free guidance at training time: the weight of unconditional negatives, and the law of the guidance scale.

Equation: for guidance scale alpha the target is q = alpha p(.|c) - (alpha - 1) p(.|all). It is reached by adding m real
unconditional samples to the negatives of n generated ones, each with the weight

    w = (alpha - 1) (n - 1) / m

(n - 1, since a sample does not repel itself). The generator takes alpha as an input, so sampling stays one pass.

Source: paper, section 3.5 and appendix A.7.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError


def unconditional_weight(
    guidance_scale: Float[Tensor, "*shape"], num_generated: int, num_unconditional: int
) -> Float[Tensor, "*shape"]:
    """Return the weight of each real unconditional negative; it is 0 at guidance scale 1, which means no guidance.

    Args:
        guidance_scale: alpha, at least 1.
        num_generated: n, the generated samples of one label.
        num_unconditional: m, the unconditional negatives of one label.

    Raises:
        InputError: if there is no unconditional sample, or a scale on the CPU is below 1.

    Source: paper, appendix A.7.
    """
    # Values are checked only on a CPU: reading them from another device would wait for it.
    if guidance_scale.device.type == "cpu" and guidance_scale.numel():
        check_guidance_scale(float(guidance_scale.min()))
    if num_unconditional < 1:
        raise InputError(f"num_unconditional is {num_unconditional}: guidance needs at least 1 unconditional sample")
    return (guidance_scale - 1) * (num_generated - 1) / num_unconditional


def draw_guidance_scale(
    count: int,
    *,
    exponent: float,
    highest: float = 4.0,
    unguided_prob: float = 0.0,
    rng: torch.Generator | None = None,
) -> Float[Tensor, " count"]:
    """Draw one guidance scale per label from the density proportional to alpha^-exponent on [1, highest].

    Args:
        count: number of labels.
        exponent: k, from 0 to 100; 1 is log-uniform, larger values favor weak guidance.
        highest: end of the interval, above 1.
        unguided_prob: probability of drawing exactly 1 instead.
        rng: source of randomness; the result is on its device.

    Raises:
        InputError: if one of the numbers is out of its range.

    Source: paper, appendix A.7, sampled by the inverse of the cumulative distribution.
    """
    check_guidance_law(exponent=exponent, highest=highest, unguided_prob=unguided_prob)
    device = rng.device if rng is not None else None
    uniform = torch.rand(count, generator=rng, device=device).double()
    # The inverse is (1 + u (h^p - 1))^(1/p). This form keeps its digits as p goes to 0, where the inverse is h^u.
    power, log_highest = 1 - exponent, math.log(highest)
    log_scale = uniform * log_highest if power == 0 else torch.log1p(uniform * math.expm1(power * log_highest)) / power
    scale = log_scale.exp().float()
    unguided = torch.rand(count, generator=rng, device=device) < unguided_prob
    return torch.where(unguided, torch.ones_like(scale), scale)


def check_guidance_scale(guidance_scale: float) -> None:
    """Raise InputError unless the guidance scale is finite and at least 1."""
    if not hasattr(guidance_scale, "__float__") or not 1 <= guidance_scale <= torch.finfo(torch.float32).max:
        raise InputError(f"guidance_scale is {guidance_scale!r}: pass a number from 1 (no guidance) up, such as 1.5")


def check_guidance_law(*, exponent: float, highest: float, unguided_prob: float) -> None:
    """Raise InputError unless `draw_guidance_scale` can draw from a law with these numbers."""
    if not 0 <= exponent <= 100:
        raise InputError(f"exponent is {exponent}: the guidance scale is drawn from alpha^-exponent, pass a number from 0 to 100")
    if not 1 < highest <= torch.finfo(torch.float32).max:
        raise InputError(f"highest is {highest}: the guidance scale is drawn from [1, highest], pass a number above 1")
    if not 0 <= unguided_prob <= 1:
        raise InputError(f"unguided_prob is {unguided_prob}, a probability: pass a number from 0 to 1")
