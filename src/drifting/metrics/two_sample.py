"""The squared energy distance: how far two samples are from one distribution, without any tuning.

Equation: D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|, as a V-statistic (all pairs, the zero diagonals included), never negative
and 0 only for equal distributions. Computed in float64 from directly subtracted coordinates.

Source: Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
"""

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK = 2**24


@torch.no_grad()
def mean_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the mean Euclidean distance over all pairs, in float64 and in the units of the coordinates."""
    rows = max(1, _CHUNK // len(y))
    parts = [torch.cdist(part, y.double(), compute_mode="donot_use_mm_for_euclid_dist").sum() for part in x.double().split(rows)]
    return float(torch.stack(parts).sum()) / (len(x) * len(y))


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, within_y: float | None = None) -> float:
    """Return the squared energy distance of two samples, in the units of the coordinates.

    Args:
        x: one sample.
        y: the other.
        within_y: `mean_distance(y, y)` where already known.

    For two independent samples of one distribution its expectation is (1/n + 1/m) E|x - x'|, not 0: compare with that floor.
    """
    within_y = mean_distance(y, y) if within_y is None else within_y
    return 2 * mean_distance(x, y) - mean_distance(x, x) - within_y
