"""Diagnostics of a mean-shift field: how its kernel spreads over the targets, and where the field points between the samples.

Shapes: t temperatures, g groups, n generated, p positives, m negatives, q points, d coordinates.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_shapes, check_temperature, check_weights, constant, full_precision
from drifting.fields import pairwise
from drifting.fields.base import Drifts, Field, Peers, Problem, Statistics
from drifting.fields.mean_shift import BY_COLUMNS, MeanShift, Targets

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


def mean_shift_at(
    points: Float[Tensor, "q d"],
    generated: Float[Tensor, "n d"],
    positives: Float[Tensor, "p d"],
    *,
    temperature: float,
    affinity_floor: float = 0.0,
) -> Float[Tensor, "q d"]:
    """Return the drift that a test particle would feel at `points`, to draw the field.

    The points do not change the field: the column normalizers are those of the generated samples, so the drift at one point does
    not depend on the other points. Affinities are clamped to at most 1, as they are between samples.

    Args:
        points: where to evaluate the field.
        generated: the samples that repel.
        positives: real samples, which attract.
        temperature: bandwidth of the kernel, in the units of the coordinates; above 0.
        affinity_floor: lower bound of the squared affinity.

    Raises:
        InputError: if the shapes do not match or the temperature is not positive and finite.
    """
    return drift_at(MeanShift(affinity_floor), points, generated, positives, temperature=temperature)


@constant
def drift_at(
    field: MeanShift,
    points: Float[Tensor, "q d"],
    generated: Float[Tensor, "n d"],
    positives: Float[Tensor, "p d"],
    *,
    temperature: float,
) -> Float[Tensor, "q d"]:
    """Return the drift of a mean shift at any points, as `mean_shift_at` does."""
    check_temperature(temperature)
    check_shapes(points, generated, positives)
    points, generated, positives = (full_precision(samples) for samples in (points, generated, positives))
    targets = Targets(positives[None], generated[None], None, field.bias_correction)
    scale = pairwise.kernel_scale(generated.new_tensor(temperature))
    distances = pairwise.pairwise_distances(points[None], targets.coordinates)
    row = pairwise.row_potential(distances, distances.amin(2, keepdim=True), scale, field.kernel)
    if field.normalization == BY_COLUMNS:
        of_samples = pairwise.pairwise_distances(generated[None], targets.coordinates)
        pairwise.mask_self(of_samples, len(generated))
        column = pairwise.column_potential(of_samples, of_samples.amin(1, keepdim=True), scale, kernel=field.kernel)
    else:
        row, column = 2 * row, torch.zeros_like(distances[:, :1])
    # A target without samples nearby has a column normalizer that is far too large for a point close to it.
    affinity = pairwise.affinity(distances, row, column, scale, field.affinity_floor, kernel=field.kernel).clamp_(max=1)
    return targets.drift(affinity, slice(0, 1))[0]


def field_statistics(drifts: Drifts, field: Field, problem: Problem, temperatures: Float[Tensor, " t"]) -> Statistics | None:
    """Return the statistics of a field that has any, by the backend of its drifts if that computes them."""
    if (measure := getattr(drifts, "statistics", None)) is not None:
        return measure(temperatures)
    measure = getattr(field, "statistics", None)
    samples = (problem.generated, problem.positives, torch.cat(list(problem.negatives), 1))
    return measure and measure(*samples, **problem.options(temperatures, field))


def kernel_statistics(
    generated: Float[Tensor, "g n d"],
    positives: Float[Tensor, "g p d"],
    negatives: Float[Tensor, "g m d"],
    *,
    temperatures: Float[Tensor, " t"],
    weights: Float[Tensor, "g m+p"] | None = None,
    num_self: int = 0,
    affinity_floor: float = 0.0,
    peers: Peers | None = None,
) -> KernelStatistics:
    """Return how the mean-shift kernel spreads over its targets. Arguments as in `mean_shift_field` and `MeanShift`.

    With peers, the kernel covers the rows of all processes and the averages those of this process. Their mean over the processes
    is what one call with all rows returns.
    """
    options = {"temperatures": temperatures, "weights": weights, "num_self": num_self, "peers": peers}
    return spread_of(MeanShift(affinity_floor), generated, positives, negatives, **options)


@constant
def spread_of(
    field: MeanShift,
    generated: Float[Tensor, "g n d"],
    positives: Float[Tensor, "g p d"],
    negatives: Float[Tensor, "g m d"],
    *,
    temperatures: Float[Tensor, " t"],
    weights: Float[Tensor, "g m+p"] | None = None,
    num_self: int = 0,
    peers: Peers | None = None,
) -> KernelStatistics:
    """Return how the kernel of a mean shift spreads over its targets, as `kernel_statistics` does."""
    check_weights(weights)
    distances = pairwise.pairwise_distances(generated, torch.cat([negatives, positives], 1))
    pairwise.mask_self(distances, num_self, peers)
    totals = generated.new_zeros(len(temperatures), 5)
    options = {"kernel": field.kernel, "by_columns": field.normalization == BY_COLUMNS}
    tiles = pairwise.affinity_tiles(distances, temperatures, field.affinity_floor, peers, **options)
    for index, groups, _, tile in tiles:
        affinity = tile if weights is None else tile * weights[groups, None, :]
        negative, positive = affinity.split([negatives.shape[1], positives.shape[1]], dim=2)
        share = positive.sum(2) / affinity.sum(2).clamp_(min=torch.finfo(affinity.dtype).tiny)
        rows = spread_of_rows(_effective_number(positive), _effective_number(negative), share, count=positives.shape[1])
        totals[index] += torch.stack(rows).sum((1, 2))
    return KernelStatistics(*(totals / generated[..., 0].numel()).unbind(1))


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
