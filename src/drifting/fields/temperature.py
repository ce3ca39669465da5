"""The slope of the objective of a learned temperature.

A factor f multiplies all temperatures. With the logits z_ij = -d_ij / (f t) + log w_j of the distances between a sample i and its
targets j, positives and negatives side by side and without itself, it minimizes

    J = -mean over groups and temperatures of  max_i log sum_(j positive) softmax_j(z_i)

so of each group the sample that finds its positives best decides. If others are nearer to it than the positives, J falls with a
wider kernel; if the positives are nearest, with a narrower one. Since d z_ij / d log f = d_ij / (f t), the slope of a row is

    d J / d log f = E[d / (f t)] over all targets - E[d / (f t)] over the positives,  each weighted by its softmax

Shapes: t temperatures, g groups, n generated, k targets.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_positive, constant
from drifting.errors import InputError
from drifting.fields import pairwise
from drifting.fields.base import Problem


def multiplied(temperatures: Sequence[float], factor: Tensor | float, *, like: Tensor) -> list[float | Tensor]:
    """Return the temperatures times a factor, in the precision of the samples that they are for.

    Raises:
        InputError: if a tensor is no single number, or a number is not above 0.
    """
    if isinstance(factor, Tensor):
        if factor.numel() != 1:
            raise InputError(f"temperature_factor has shape {tuple(factor.shape)}: pass one number for all temperatures")
        # Its value is not read, which could wait for a device. One below 0 makes the loss NaN.
        factor = factor.detach().reshape(()).to(like)
    else:
        check_positive("temperature_factor", factor, 2.0)
    return [temperature * factor for temperature in temperatures]


@constant
def temperature_slope(
    problem: Problem, temperatures: Float[Tensor, " t"], *, smallest: float = 0.0, row_scale: Float[Tensor, "g n 1"] | None = None
) -> Float[Tensor, ""]:
    """Return the derivative of the objective with respect to the logarithm of the factor of all temperatures.

    Args:
        problem: the samples of a call, all rows of every group.
        temperatures: the temperatures times the factor, in the units of the distances.
        smallest: lower bound of distances.
        row_scale: what the distances of each row are divided by; None for 1.

    Raises:
        InputError: if the rows of a group are split over processes.
    """
    if problem.peers is not None:
        raise InputError("learn_temperature is True, but population splits the samples of a group over processes: leave one out")
    targets = torch.cat([*problem.negatives, problem.positives], 1)
    distances = pairwise.pairwise_distances(problem.generated, targets).clamp_(min=smallest)
    distances = distances if row_scale is None else distances / row_scale
    pairwise.mask_self(distances, problem.num_self)
    positive = targets.shape[1] - problem.positives.shape[1]
    logs = 0.0 if problem.weights is None else problem.weights.log()[:, None]
    slopes = []
    for temperature in temperatures:
        relative = distances / temperature
        logits = logs - relative
        found = logits[..., positive:].logsumexp(2) - logits.logsumexp(2)
        best = found.argmax(1)[:, None, None].expand(-1, 1, targets.shape[1])
        # A masked pair has weight 0.
        relative = relative.gather(1, best)[:, 0].masked_fill(distances.gather(1, best)[:, 0] == torch.inf, 0)
        row = logits.gather(1, best)[:, 0]
        attracting = (row[:, positive:].softmax(1) * relative[:, positive:]).sum(1)
        slope = (row.softmax(1) * relative).sum(1) - attracting
        # Without positives, a group says nothing about the temperature.
        slopes.append(slope.masked_fill(found.amax(1) == -torch.inf, 0).mean())
    return torch.stack(slopes).mean()
