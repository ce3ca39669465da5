"""The squared energy distance: how far two samples are from one distribution, without any tuning.

Equation: D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|, as a V-statistic (all pairs, the zero diagonals included), never negative
and 0 only for equal distributions. Computed in float64 from directly subtracted coordinates.

Source: Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.fields import pairwise

_CHUNK = 2**24


@torch.no_grad()
def mean_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the mean Euclidean distance over all pairs, in float64 and in the units of the coordinates."""
    memory = pairwise.Memory()

    def distances(part: Tensor) -> Tensor:
        if x.shape[1] <= pairwise.DIRECT_DIMENSIONS:  # twice as fast for points in the plane, and subtracted directly too
            return pairwise.pairwise_distances(part[None], y.double()[None], memory=memory)
        return torch.cdist(part, y.double(), compute_mode="donot_use_mm_for_euclid_dist")

    parts = [distances(part).sum() for part in x.double().split(max(1, _CHUNK // len(y)))]
    return float(torch.stack(parts).sum()) / (len(x) * len(y))


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
