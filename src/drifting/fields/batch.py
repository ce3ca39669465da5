"""What one batch says about a training: how much of the drift is noise, and how far the samples spread.

The raw drift norm falls in a training, but not to zero: real samples drift among real samples too, because a batch is finite. Their
drift norm is the noise floor. It is measured on disjoint parts of the positives of a batch, which are smaller than the batch, at
two sizes r and r / 2 of it, and continued to the whole batch by the power law through both:

    floor(1) = floor(r) (floor(r) / floor(r / 2))^q,    q = -log2(r)

The other measure needs no real samples but those of the step. Both halves of a batch give a drift of the same samples. Their
cosine is near 1 where the drift is the same for any batch, and near 0 where it is noise. No random number is drawn.

Shapes: t temperatures, g groups, n generated, p positives, d coordinates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.fields.backends import open_drifts
from drifting.fields.balance import mean_distances
from drifting.fields.base import Drifts, Field, Problem

# The parts of a batch must be large enough to have neighbors.
_FEWEST = 4
# Groups whose positives are this much closer to each other than those of another group count as all alike.
_ALIKE = 0.05
# Steepest power law of the number of samples: a noisy slope is not continued beyond it.
_STEEPEST = 2.0


class BatchStatistics(NamedTuple):
    """What one batch of a feature says about the training.

    Attributes:
        noise_floor: raw drift norm of real samples among real samples, in groups as large as those of the batch.
        half_cosine: cosine between the drifts of the same samples by both halves of the batch, over all groups.
        diversity: mean distance between generated samples of a group, divided by that between positives; mean over groups whose
            positives are not all alike.
        least_diversity: the same of the one of these groups where it is lowest.
        remoteness: mean distance of a generated sample to a positive, divided by that between positives; mean over the same groups.
        generated_count: number of generated samples of a group.
        positive_count: number of positives of a group.
    """

    noise_floor: Float[Tensor, " t"]
    half_cosine: Float[Tensor, " t"]
    diversity: Float[Tensor, ""]
    least_diversity: Float[Tensor, ""]
    remoteness: Float[Tensor, ""]
    generated_count: Float[Tensor, ""]
    positive_count: Float[Tensor, ""]


class Scaling(NamedTuple):
    """How temperatures and drifts depend on the mean distance of a problem, as in `drifting_loss`.

    Attributes:
        temperatures: temperatures relative to the mean distance, or in the units of the features if `normalize` is False.
        normalize: whether features are divided by the mean distance.
        smallest_scale: lower bound of the mean distance.
        smallest_distance: lower bound of each distance.
        by_row: whether each sample has a scale of its own; the noise of such drifts is not measured.
    """

    temperatures: Sequence[float | Tensor]
    normalize: bool
    smallest_scale: float
    smallest_distance: float
    by_row: bool = False

    def open(self, field: Field, problem: Problem) -> tuple[Drifts, Float[Tensor, " t"], Float[Tensor, ""]]:
        """Return the drifts of a problem, its temperatures in the units of the features, and the unit of its drifts."""
        drifts = open_drifts(field, problem, smallest=self.smallest_distance if self.normalize else 0.0)
        scale, one = drifts.mean_distance(), problem.generated.new_ones(())
        scale = scale if problem.weights is None else scale / problem.weights.mean()
        scale = scale.to(one).clamp(min=self.smallest_scale) if self.normalize else one
        unit = (scale / problem.generated.shape[2] ** 0.5).clamp(min=self.smallest_scale) if self.normalize else one
        return drifts, torch.stack([scale * temperature for temperature in self.temperatures]), unit


@torch.no_grad()
def batch_statistics(field: Field, scaling: Scaling, problem: Problem) -> BatchStatistics:
    """Return what a batch says about the training; all but the counts are NaN for groups with fewer than 4 samples of either kind.

    Args:
        field: the drift field.
        scaling: temperatures, and how they depend on the features.
        problem: the samples of the batch, of all processes if a group is split over them.
    """
    generated, positives = problem.generated, problem.positives
    few = min(generated.shape[1], positives.shape[1]) < _FEWEST
    unknown = positives.new_full((len(scaling.temperatures),), torch.nan)
    noise = (
        [unknown, unknown] if few or scaling.by_row else [each(field, scaling, problem) for each in (_noise_floor, _half_cosine)]
    )
    spread = [positives.new_full((), torch.nan)] * 3 if few else _spread(generated, positives)
    return BatchStatistics(*noise, *spread, *(samples.new_full((), samples.shape[1]) for samples in (generated, positives)))


def _spread(generated: Float[Tensor, "g n d"], positives: Float[Tensor, "g p d"]) -> list[Float[Tensor, ""]]:
    """Return diversity, least diversity and remoteness, see `BatchStatistics`."""
    within, between, among = (
        mean_distances(*pair) for pair in ((generated, generated), (generated, positives), (positives, positives))
    )
    among = among.clamp(min=torch.finfo(among.dtype).tiny)
    # Positives that are all alike, such as corners of digits, black in nearly every image, have no distance to compare with.
    alike = among <= _ALIKE * among.max()
    spread, remoteness = ((distance / among).masked_fill(alike, torch.nan) for distance in (within, between))
    return [spread.nanmean(), spread.nan_to_num(torch.inf).min(), remoteness.nanmean()]


def _noise_floor(field: Field, scaling: Scaling, problem: Problem) -> Float[Tensor, " t"]:
    """Return the raw drift norm of positives among positives, continued from parts of the batch to its size."""
    positives, independent = problem.positives, problem.num_self == 0
    real, count = positives.shape[1], problem.negatives[0].shape[1] if independent else problem.generated.shape[1]
    # One set that moves, one that attracts, and one that repels if that is not the one that moves.
    share = real / (real + (1 + independent) * count)
    moved = max(2, int(share * count))
    attracting = real - (1 + independent) * moved
    if attracting < 2:
        return positives.new_full((len(scaling.temperatures),), torch.nan)
    sets = positives.split([moved] * (1 + independent) + [attracting], 1)
    floor = _norms(field, scaling, sets)
    if min(moved, attracting) < _FEWEST:
        # Too few to measure the slope: noise falls like the inverse number of samples.
        return floor * share
    # Both halves of every set, as groups of their own.
    halves = [torch.cat(part[:, : part.shape[1] // 2 * 2].chunk(2, 1)) for part in sets]
    tiny = torch.finfo(floor.dtype).tiny
    slope = (_norms(field, scaling, halves).clamp(min=tiny) / floor.clamp(min=tiny)).log2().clamp(-_STEEPEST, _STEEPEST)
    return floor * share**slope


def _norms(field: Field, scaling: Scaling, sets: Sequence[Float[Tensor, "g _ d"]]) -> Float[Tensor, " t"]:
    """Return the raw drift norms of sets of samples: those that move, those that repel unless they are the same, and the rest."""
    moved, *repelling, attracting = sets
    problem = Problem(moved, repelling or [moved], attracting, num_self=0 if repelling else moved.shape[1])
    drifts, bandwidths, unit = scaling.open(field, problem)
    return (drifts.root_mean_squares(bandwidths).to(unit) / unit).square()


def _half_cosine(field: Field, scaling: Scaling, problem: Problem) -> Float[Tensor, " t"]:
    """Return the cosine between the drifts of half the samples by both halves of all targets."""
    moved = problem.generated[:, : problem.generated.shape[1] // 2]
    *first, further = problem.negatives
    last = problem.num_unconditional
    # Detached and unconditional samples may be one set. Halves of both are needed.
    sets = [*first, *further.split([further.shape[1] - last, last] if 0 < last < further.shape[1] else further.shape[1], 1)]
    sets.append(problem.positives)
    weights = [None] * len(sets) if problem.weights is None else problem.weights.split([part.shape[1] for part in sets], 1)
    halves = []
    for second in (False, True):
        *negatives, positives = (_half(part, second) for part in sets)
        some = None if problem.weights is None else torch.cat([_half(part, second) for part in weights if part is not None], 1)
        # The first half repels itself, so a sample is masked; the second half are other samples.
        num_self = moved.shape[1] if problem.num_self and not second else 0
        part = Problem(moved, negatives, positives, some, num_self, num_unconditional=negatives[-1].shape[1] if last else 0)
        drifts, bandwidths, _ = scaling.open(field, part)
        sizes = drifts.root_mean_squares(bandwidths)
        ones = torch.eye(len(sizes), dtype=sizes.dtype, device=sizes.device)
        halves.append([drifts.total(one).clone() for one in ones])
    return torch.stack([_cosine(first, second) for first, second in zip(*halves, strict=True)])


def _half(samples: Tensor, second: bool) -> Tensor:
    """Return the first or the second half of the samples of each group; all of them if there is one."""
    count = samples.shape[1] // 2
    if count == 0:
        return samples
    return samples[:, count : 2 * count] if second else samples[:, :count]


def _cosine(first: Tensor, second: Tensor) -> Float[Tensor, ""]:
    """Return the cosine between two drifts; 0 if one is zero."""
    # Drifts may be so small that their squares underflow.
    scaled = [drift / drift.abs().max().clamp(min=torch.finfo(drift.dtype).tiny) for drift in (first, second)]
    directions = [drift / torch.linalg.vector_norm(drift).clamp(min=torch.finfo(drift.dtype).eps) for drift in scaled]
    return (directions[0] * directions[1]).sum()
