"""The Sinkhorn drift (W-Flow): entropic transport to the data, minus entropic transport to other generated samples.

Equation, with T(q -> r) the barycentric projection of the entropic plan P from the generated samples to a set r:

    T(q -> r)(x_i) = sum_j P_ij y_j / sum_j P_ij
    V = T(q -> p) - T(q -> q') + s (T(q -> p) - T(q -> unconditional))

P minimizes sum_ij P_ij c_ij + epsilon KL(P | a x b) with the cost c = |x - y|^2 / 2 and the marginals a = 1/n and b, the weights of
the set divided by their sum. It is found by Sinkhorn's iterations in the log domain, with potentials u and v:

    u_i = -log sum_j b_j exp(v_j - c_ij / epsilon),    v_j = -log sum_i a_i exp(u_i - c_ij / epsilon)

first the rows, then the columns. T needs v alone, and the next u says how far the row sums of P are from a: the marginal residual
is sum_i |sum_j P_ij - a_i|, between 0 and 2. A group whose residual is at most `tolerance` keeps its potentials.

q' is an independent second generated batch of the same labels. Without one, the samples themselves take its place, and by default
no sample is transported to itself. That is another estimator: nothing calls a sample back that is far from all others. Without
`mask_self`, V is minus n times the gradient of the debiased Sinkhorn divergence of the batch; at a small epsilon its own plan tends
to the identity, which removes the debiasing.

The temperature is the entropy relative to the cost, R in the source: epsilon = temperature * (mean of |x - y|^2 / mean of |x - y|),
the weighted means over all pairs of a group. Temperatures relative to the mean distance, as those of the loss, give epsilon =
R * mean of |x - y|^2 in a group of average size. At a tenth of the usual 0.05, ten iterations are far too few.

Guidance is a velocity: unconditional samples push by s = (their total weight) / (total weight of the generated samples that the row
meets), which is guidance scale - 1.

Fixed points: zero in expectation over q' where p = q; the debiased divergence is zero only there. Swapping p and q' flips the sign.

Cost: per iteration and temperature two exponentials per pair, of both plans. The distances are the only matrix.

Shapes: t temperatures, g groups, n generated, p positives, m negatives, k targets of a set, q points, d coordinates.

Source: arXiv:2605.11755; Cuturi, Sinkhorn distances, 2013; Feydy et al., Interpolating between optimal transport and MMD, 2019.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_counts, check_shapes, check_temperature, check_weights, constant, full_precision
from drifting.errors import InputError
from drifting.fields import pairwise
from drifting.fields.base import DriftField, Peers, Problem

# Weights of 0 count as this much, so that every potential is finite.
_LIGHTEST = 1e-30
# Fields whose plans were reported as not good enough.
_reported: set["Sinkhorn"] = set()


class SinkhornStatistics(NamedTuple):
    """How well the plans are known, and how they spread, at each temperature.

    Attributes:
        marginal_residual: sum of the errors of the row sums, the larger one of both plans, averaged over groups.
        positive_neighbors: effective number of positives to which a sample is transported.
        negative_neighbors: the same for the generated samples.
    """

    marginal_residual: Float[Tensor, " t"]
    positive_neighbors: Float[Tensor, " t"]
    negative_neighbors: Float[Tensor, " t"]


class _Set(NamedTuple):
    """A set of targets.

    Attributes:
        samples: the targets.
        masses: their shares of the mass.
        cost: cost of every pair; infinite for a sample and itself.
    """

    samples: Float[Tensor, "g k d"]
    masses: Float[Tensor, "g 1 k"]
    cost: Float[Tensor, "g n k"]


class _Plan(NamedTuple):
    """Where the rows are transported to.

    Attributes:
        centroids: T, the targets of each row averaged by the plan.
        neighbors: effective number of targets of each row.
        potential: v - log-shares, of the columns.
        residual: marginal residual of each group.
    """

    centroids: Float[Tensor, "g n d"]
    neighbors: Float[Tensor, "g n 1"]
    potential: Float[Tensor, "g 1 k"]
    residual: Float[Tensor, "g 1 1"]


@dataclass(frozen=True)
class Sinkhorn(DriftField):
    """The Sinkhorn drift.

    Attributes:
        iterations: Largest number of iterations of rows and columns, 10 in the source.
        tolerance: Marginal residual, from 0 to 2, at which a plan is good enough; one that is not is reported once. With 0,
            all iterations are made and nothing is reported.
        mask_self: Leave out the transport of a sample to itself where the batch repels itself.
    """

    iterations: int = 10
    tolerance: float = 0.01
    mask_self: bool = True
    separates_unconditional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        check_counts({"iterations": self.iterations})
        if not 0 <= self.tolerance <= 2:
            raise InputError(f"tolerance is {self.tolerance}: pass a number from 0 to 2, such as 0.01")

    @constant
    def __call__(
        self,
        generated: Float[Tensor, "g n d"],
        positives: Float[Tensor, "g p d"],
        negatives: Float[Tensor, "g m d"],
        *,
        temperatures: Float[Tensor, " t"],
        distances: Float[Tensor, "g n m+p"] | None = None,
        **options: Any,
    ) -> Float[Tensor, "t g n d"]:
        """Return the drift of `generated` at every temperature. Arguments as in `Field` and `MeanShift`.

        `num_unconditional` is the number of last negatives that are unconditional; 0 by default.
        """
        problem = _Transport(Problem(generated, [negatives], positives, **options), distances, mask_self=self.mask_self)
        drifts = []
        for temperature in temperatures:
            plans = problem.plans(self, temperature)
            # The maximum of Python would read both from the device.
            self._report(torch.stack([plan.residual.amax() for plan in plans]).amax())
            real, own, *unconditional = (plan.centroids for plan in plans)
            drift = real - own
            for centroids in unconditional:
                drift = drift + problem.strength * (real - centroids)
            # The only sample of a group has nothing to be transported to.
            drifts.append(torch.zeros_like(drift) if problem.is_alone else drift)
        return torch.stack(drifts)

    @constant
    def statistics(
        self,
        generated: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        temperatures: Float[Tensor, " t"],
        **options: Any,
    ) -> SinkhornStatistics:
        """Return how well the plans are known and how they spread. Arguments as in a call, without `distances`."""
        problem = _Transport(Problem(generated, [negatives], positives, **options), mask_self=self.mask_self)
        found = []
        for temperature in temperatures:
            real, own, *_ = problem.plans(self, temperature)
            residual = torch.maximum(real.residual, own.residual).mean()
            found.append(torch.stack([residual, real.neighbors.mean(), own.neighbors.mean()]))
        return SinkhornStatistics(*torch.stack(found, 1).unbind(0))

    @constant
    def at(
        self,
        points: Float[Tensor, "q d"],
        generated: Float[Tensor, "n d"],
        positives: Float[Tensor, "p d"],
        *,
        temperature: float,
    ) -> Float[Tensor, "q d"]:
        """Return the drift at any points, by the potentials of the samples: the points do not change the plan."""
        check_temperature(temperature)
        check_shapes(points, generated, positives)
        points, generated, positives = (full_precision(samples)[None] for samples in (points, generated, positives))
        problem = _Transport(Problem(generated, [generated], positives, num_self=generated.shape[1]), mask_self=self.mask_self)
        if problem.is_alone:
            return torch.zeros_like(points[0])
        wide = generated.new_tensor(temperature)
        centroids = []
        for targets, plan in zip((positives, generated), problem.plans(self, wide), strict=True):
            cost = pairwise.pairwise_distances(points, targets).square_().div_(2)
            part = _Set(targets, torch.ones_like(plan.potential), cost)
            centroids.append(_project(part, plan.potential, problem.precision(wide))[0])
        return (centroids[0] - centroids[1])[0]

    def _report(self, residual: Tensor) -> None:
        """Say once if a plan is not good enough. Reading it from another device would wait for that."""
        if residual.device.type != "cpu" or self.tolerance == 0 or self in _reported or float(residual) <= self.tolerance:
            return
        _reported.add(self)
        missed = f"the row sums of a Sinkhorn plan are off by {float(residual):.2g} after {self.iterations} iterations"
        warnings.warn(f"{missed}: pass more iterations, a higher temperature, or a tolerance of that size", stacklevel=4)


class _Transport:
    """The sets of one call, with the cost of every pair, and how strongly unconditional samples push."""

    def __init__(self, problem: Problem, distances: Float[Tensor, "g n m+p"] | None = None, *, mask_self: bool) -> None:
        generated, (negatives,), positives, peers = problem.generated, problem.negatives, problem.positives, problem.peers
        check_weights(problem.weights)
        targets, own = torch.cat([negatives, positives], 1), negatives.shape[1] - problem.num_unconditional
        distances = pairwise.pairwise_distances(generated, targets) if distances is None else distances
        weights = generated.new_ones(targets.shape[:2]) if problem.weights is None else problem.weights
        self._peers, self._rows = peers, generated.shape[1] * (1 if peers is None else peers.size)
        self._length = _length(distances, weights, peers)
        if mask_self:
            pairwise.mask_self(distances, problem.num_self, peers)
        self.is_alone = problem.num_self > 0 and own == 1
        sizes = [own, problem.num_unconditional, positives.shape[1]]
        of_own, of_unconditional, of_positives = weights.split(sizes, 1)
        costs = distances.square_().div_(2).split(sizes, 2)
        parts = zip(targets.split(sizes, 1), (of_own, of_unconditional, of_positives), costs, strict=True)
        repelling, unconditional, attracting = (_Set(samples, _shares(some), part) for samples, some, part in parts)
        self.sets = [attracting, repelling, *([unconditional] if problem.num_unconditional else [])]
        met = of_own.sum(1)[:, None, None]
        if problem.num_self:
            first = 0 if peers is None else peers.rank * generated.shape[1]
            met = met - of_own[:, first : first + generated.shape[1], None]
        self.strength = of_unconditional.sum(1)[:, None, None] / met.clamp(min=torch.finfo(met.dtype).tiny)

    def precision(self, temperature: Tensor) -> Float[Tensor, "g 1 1"]:
        """Return 1 / epsilon of each group, finite."""
        return (-pairwise.kernel_scale(temperature) / self._length.clamp(min=torch.finfo(self._length.dtype).tiny)).clamp(max=1e30)

    def plans(self, field: Sinkhorn, temperature: Tensor) -> Sequence[_Plan]:
        """Return the plans to the positives, to the generated samples and, if there are any, to the unconditional ones."""
        return [self._plan(part, field, self.precision(temperature)) for part in self.sets]

    def _plan(self, part: _Set, field: Sinkhorn, precision: Float[Tensor, "g 1 1"]) -> _Plan:
        shares, share = part.masses.log(), 1 / self._rows
        column, row = shares, None
        done = torch.zeros_like(precision, dtype=torch.bool)
        for _ in range(field.iterations):
            row, before = _row_potential(part.cost, column, precision), row
            if before is not None:
                done = done | (self._residual(before, row, share) <= field.tolerance)
                # Reading from another device would wait for it.
                if done.device.type == "cpu" and bool(done.all()):
                    row = before
                    break
            column = torch.where(done, column, self._column_potential(part.cost, row, precision, share) + shares)
            row = row if before is None else torch.where(done, before, row)
        centroids, neighbors, following = _project(part, column, precision)
        assert row is not None
        return _Plan(centroids, neighbors, column, self._residual(row, following, share))

    def _residual(self, row: Float[Tensor, "g n 1"], following: Float[Tensor, "g n 1"], share: float) -> Float[Tensor, "g 1 1"]:
        """Return the error of the row sums of a plan, from its potential of the rows and the one that would correct them."""
        error = ((row - following).exp() - 1).abs().sum(1, keepdim=True) * share
        # Where epsilon is below the rounding of the cost, the potentials are noise.
        return (error if self._peers is None else self._peers.all_reduce_sum(error)).clamp(max=2)

    def _column_potential(self, cost: Tensor, row: Tensor, precision: Tensor, share: float) -> Float[Tensor, "g 1 k"]:
        """Return v, over the rows of all processes."""
        total = torch.full_like(cost[:, :1], -torch.inf)
        for groups, rows, scratch in pairwise.scratch_tiles(cost):
            logits = torch.mul(cost[groups, rows], -precision[groups], out=scratch).add_(row[groups, rows])
            total[groups] = torch.logaddexp(total[groups], logits.logsumexp(1, keepdim=True))
        if self._peers is not None:
            highest = (-self._peers.all_reduce_min(-total)).clamp(min=torch.finfo(total.dtype).min)
            total = self._peers.all_reduce_sum((total - highest).exp()).log() + highest
        # The only sample of a group reaches all targets but itself.
        return torch.where(total == -torch.inf, total, -total - math.log(share))


def _length(distances: Tensor, weights: Tensor, peers: Peers | None) -> Float[Tensor, "g 1 1"]:
    """Return mean(w d^2) / mean(w d) of each group, over the rows of all processes."""
    sums = torch.stack([torch.linalg.vector_norm(distances, dim=1).square(), distances.sum(1)])
    sums = (sums * weights).sum(2)
    above, below = sums if peers is None else peers.all_reduce_sum(sums)
    return (above / below.clamp(min=torch.finfo(below.dtype).tiny))[:, None, None]


def _shares(weights: Float[Tensor, "g k"]) -> Float[Tensor, "g 1 k"]:
    """Return weights divided by their sum."""
    total = weights.sum(1, keepdim=True)
    return (weights / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(min=_LIGHTEST)[:, None]


def _row_potential(cost: Tensor, column: Float[Tensor, "g 1 k"], precision: Tensor) -> Float[Tensor, "g n 1"]:
    """Return u, from v plus the logarithms of the shares."""
    found = torch.empty_like(cost[..., :1])
    for groups, rows, scratch in pairwise.scratch_tiles(cost):
        logits = torch.mul(cost[groups, rows], -precision[groups], out=scratch).add_(column[groups])
        found[groups, rows] = -logits.logsumexp(2, keepdim=True)
    return found


def _project(part: _Set, column: Float[Tensor, "g 1 k"], precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the centroids of the rows, their effective numbers of targets, and the potential that corrects their sums."""
    groups, rows, width = *part.cost.shape[:2], part.samples.shape[2]
    centroids, (neighbors, following) = part.cost.new_empty(groups, rows, width), part.cost.new_empty(2, groups, rows, 1)
    center = part.samples.mean(1, keepdim=True)
    offsets = part.samples - center
    for some, lines, scratch in pairwise.scratch_tiles(part.cost):
        logits = torch.mul(part.cost[some, lines], -precision[some], out=scratch).add_(column[some])
        following[some, lines] = -logits.logsumexp(2, keepdim=True)
        plan = logits.softmax(2)
        neighbors[some, lines] = plan.square().sum(2, keepdim=True).reciprocal()
        centroids[some, lines] = plan @ offsets[some] + center[some]
    return centroids, neighbors, following
