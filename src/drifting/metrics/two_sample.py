"""The squared energy distance of two samples, a two-sample statistic without parameters.

Equation: D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|, as a V-statistic (over all pairs, including the zero diagonals). It is never
negative, and 0 only for equal distributions. It is computed in float64: by subtracting coordinates in few dimensions, and by a
matrix product in many, except for pairs so close that the product would lose all digits.

Source: Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.fields import pairwise
from drifting.metrics.distances import Pairs

_CHUNK = 2**24
# Squared distances below this multiple of their error bound are measured by subtraction.
_SURE = 2**20


@torch.no_grad()
def mean_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the mean Euclidean distance over all pairs, in float64 and in the units of the coordinates."""
    if x.shape[1] > pairwise.DIRECT_DIMENSIONS:
        parts = _sums_by_products(x, y)
    else:
        memory, rows = pairwise.Memory(), x.double().split(max(1, _CHUNK // len(y)))
        parts = [pairwise.pairwise_distances(part[None], y.double()[None], memory=memory).sum() for part in rows]
    return float(torch.stack(parts).sum()) / (len(x) * len(y))


def _sums_by_products(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> list[Float[Tensor, ""]]:
    """Return the sums of distances between chunks of rows of x and all of y."""
    pairs, sums = Pairs(x, y), []
    for rows, squared, error in pairs.chunks():
        pairs.measure_(squared, rows, squared <= _SURE * error)
        sums.append(squared.sqrt_().sum())
    return sums


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, within_y: float | None = None) -> float:
    """Return the squared energy distance of two samples, in the units of the coordinates.

    For two independent samples of one distribution its expectation is (1/n + 1/m) E|x - x'|, not 0: compare with that floor.

    Args:
        x: one sample.
        y: the other.
        within_y: `mean_distance(y, y)`, where it is known already.
    """
    within = mean_distance(y, y) if within_y is None else within_y
    return 2 * mean_distance(x, y) - mean_distance(x, x) - within


def energy_distances(xs: Sequence[Float[Tensor, "n d"]], ys: Sequence[Float[Tensor, "m d"]]) -> Float[Tensor, "_ _"]:
    """Return the squared energy distance of every x to every y: [len(xs), len(ys)]. What lies within each is computed once."""
    within_x, within_y = (
        torch.tensor([mean_distance(sample, sample) for sample in some], dtype=torch.float64) for some in (xs, ys)
    )
    between = torch.tensor([[mean_distance(x, y) for y in ys] for x in xs], dtype=torch.float64)
    return 2 * between - within_x[:, None] - within_y
