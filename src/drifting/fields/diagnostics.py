"""Diagnostics of a field: how its kernel spreads over the targets.

Shapes: t temperatures, g groups, r rows, k targets.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.fields.base import Drifts, Field, Problem, Statistics

# A sample with at most so many effective positives follows a single one. One with at least this share of them follows their mean.
_ONE_HOT, _FLAT = 1.5, 0.9


class KernelStatistics(NamedTuple):
    """How the kernel spreads at each temperature, averaged over all generated samples.

    An effective number of neighbors near 1 means a one-hot kernel: the temperature is too small for the batch. A number near that
    of the candidates means a flat kernel: the temperature is too large. In both cases training stalls silently.

    Attributes:
        positive_neighbors: effective number of positives that attract a sample.
        negative_neighbors: effective number of negatives that repel a sample.
        positive_share: share of the positives in the affinity of a sample.
        one_hot_share: share of the samples with at most 1.5 effective positives.
        flat_share: share of the samples whose effective number of positives is at least 0.9 of all.
    """

    positive_neighbors: Float[Tensor, " t"]
    negative_neighbors: Float[Tensor, " t"]
    positive_share: Float[Tensor, " t"]
    one_hot_share: Float[Tensor, " t"]
    flat_share: Float[Tensor, " t"]


def field_statistics(drifts: Drifts, field: Field, problem: Problem, temperatures: Float[Tensor, " t"]) -> Statistics | None:
    """Return the statistics of a field that has any, by the backend of its drifts if that computes them."""
    if (measure := getattr(drifts, "statistics", None)) is not None:
        return measure(temperatures)
    measure = getattr(field, "statistics", None)
    samples = (problem.generated, problem.positives, torch.cat(list(problem.negatives), 1))
    return measure and measure(*samples, **problem.options(temperatures, field))


def spread_of(
    tiles: Iterator[tuple[int, slice, slice, Tensor]],
    shape: Sequence[int],
    *,
    weights: Float[Tensor, "g k"] | None,
    num_negatives: int,
    like: Float[Tensor, " t"],
) -> KernelStatistics:
    """Return how a kernel spreads over its targets.

    Args:
        tiles: parts of the affinity: number of the temperature, groups, rows, values; see `pairwise.affinity_tiles`.
        shape: groups, rows and targets of the whole affinity.
        weights: one weight per target, negatives first; None for ones.
        num_negatives: number of targets that are negatives.
        like: a tensor with one entry per temperature.
    """
    groups, rows, targets = shape
    totals = like.new_zeros(len(like), len(KernelStatistics._fields))
    for index, some_groups, _, tile in tiles:
        affinity = tile if weights is None else tile * weights[some_groups, None, :]
        negative, positive = affinity.split([num_negatives, targets - num_negatives], dim=2)
        share = positive.sum(2) / affinity.sum(2).clamp_(min=torch.finfo(affinity.dtype).tiny)
        numbers = _effective_number(positive), _effective_number(negative)
        totals[index] += torch.stack(spread_of_rows(*numbers, share, count=targets - num_negatives)).sum((1, 2))
    return KernelStatistics(*(totals / (groups * rows)).unbind(1))


def spread_of_rows(
    positive: Float[Tensor, "*row"], negative: Float[Tensor, "*row"], share: Float[Tensor, "*row"], *, count: int
) -> KernelStatistics:
    """Return the statistics of every row, to be averaged, from its effective numbers and the share of its `count` positives."""
    one_hot, flat = (positive <= _ONE_HOT).to(share), (positive >= _FLAT * count).to(share)
    return KernelStatistics(positive, negative, share, one_hot, flat)


def _effective_number(affinity: Float[Tensor, "g r k"]) -> Float[Tensor, "g r"]:
    """Return (sum A)^2 / sum A^2 of each row: k for equal affinities, 1 for a single nonzero one, 0 for none."""
    peak = affinity.amax(2, keepdim=True)
    relative = affinity / peak.clamp(min=torch.finfo(affinity.dtype).tiny)
    return relative.sum(2).square_() / relative.square().sum(2).clamp_(min=1)
