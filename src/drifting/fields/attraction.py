"""Fields that are the difference of two averages of pulls: of the positives, and of the negatives.

Equation, with the kernel k and its pull of `kernels` at u = |x - y| / temperature, and weights w:

    pull of a set at x = sum_j w_j k(u_j) pull(u_j) (y_j - x) / Z
    V(x)               = pull of the positives - pull of the negatives

Z is the sum of the weights (the gradient of a mean of kernels) or the sum of w_j k(u_j) (the gradient of its logarithm), without
the masked pair of a sample with itself. A sample for which one of the sets is empty does not move.

A pull of the length of one vector, as that of the Laplace kernel near u = 0, has no digits where samples agree in nearly all of
theirs. Distances below a thousand roundings of the farthest target count as that much.

Shapes: t temperatures, g groups, n generated, p positives, m negatives, k targets of a set, q points, d coordinates.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_choice, check_shapes, check_temperature, check_weights, constant, full_precision
from drifting.fields import pairwise
from drifting.fields.base import DriftField, Peers, Statistics
from drifting.fields.diagnostics import KernelStatistics, spread_of_rows
from drifting.fields.kernels import FARTHEST, KERNELS, Kernel

_ROUNDINGS = 1e3
# Kernels below e^-69 count as that much: a CPU is slow on smaller numbers.
_UNDERFLOW = -69.0


class Side(NamedTuple):
    """What a set of targets does to each row.

    Attributes:
        pull: the average pull.
        log_mean: logarithm of the mean of the kernel; minus infinity if the set is empty.
        neighbors: effective number of targets.
    """

    pull: Float[Tensor, "g n d"]
    log_mean: Float[Tensor, "g n 1"]
    neighbors: Float[Tensor, "g n 1"]


class AttractionField(DriftField):
    """A field of this kind: a subclass chooses the kernel, and whether its sum normalizes the pulls."""

    by_kernel: ClassVar[bool]
    supports_row_scale: ClassVar[bool] = True

    @property
    @abstractmethod
    def profile(self) -> Kernel:
        """The kernel."""

    @constant
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - the arguments of `Field`, in full
        self,
        generated: Float[Tensor, "g n d"],
        positives: Float[Tensor, "g p d"],
        negatives: Float[Tensor, "g m d"],
        *,
        temperatures: Float[Tensor, " t"],
        weights: Float[Tensor, "g m+p"] | None = None,
        num_self: int = 0,
        distances: Float[Tensor, "g n m+p"] | None = None,
        peers: Peers | None = None,
    ) -> Float[Tensor, "t g n d"]:
        """Return the drift of `generated` at every temperature. Arguments as in `Field` and `MeanShift`."""
        check_weights(weights)
        if distances is None:
            distances = pairwise.pairwise_distances(generated, torch.cat([negatives, positives], 1))
        pairwise.mask_self(distances, num_self, peers)
        drift = generated.new_empty(len(temperatures), *generated.shape)
        for index, temperature in enumerate(temperatures):
            repelling, attracting = self.sides(generated, positives, negatives, distances, weights, temperature)
            drift[index] = attracting.pull - repelling.pull
            drift[index].masked_fill_((repelling.log_mean + attracting.log_mean).isinf(), 0)
        return drift

    def sides(
        self,
        generated: Tensor,
        positives: Tensor,
        negatives: Tensor,
        distances: Float[Tensor, "g n m+p"],
        weights: Tensor | None,
        temperature: Tensor,
    ) -> tuple[Side, Side]:
        """Return what the negatives and the positives do, from masked distances."""
        split, scale = negatives.shape[1], pairwise.kernel_scale(temperature)
        found = []
        for targets, part in ((negatives, slice(0, split)), (positives, slice(split, None))):
            some = generated.new_ones(targets.shape[:2]) if weights is None else weights[:, part]
            found.append(_side(self.profile, self.by_kernel, generated, targets, some, distances[..., part], scale))
        return found[0], found[1]

    @constant
    def at(
        self,
        points: Float[Tensor, "q d"],
        generated: Float[Tensor, "n d"],
        positives: Float[Tensor, "p d"],
        *,
        temperature: float,
    ) -> Float[Tensor, "q d"]:
        """Return the drift at any points, which meet all generated samples."""
        check_temperature(temperature)
        check_shapes(points, generated, positives)
        points, generated, positives = (full_precision(samples)[None] for samples in (points, generated, positives))
        return self(points, positives, generated, temperatures=points.new_tensor([temperature]))[0, 0]

    @constant
    def kernel_statistics(
        self,
        generated: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        temperatures: Float[Tensor, " t"],
        weights: Tensor | None = None,
        num_self: int = 0,
        peers: Peers | None = None,
    ) -> KernelStatistics:
        """Return how the kernel spreads over both sets; the share of the positives is that of the means of the kernel."""
        distances = pairwise.pairwise_distances(generated, torch.cat([negatives, positives], 1))
        pairwise.mask_self(distances, num_self, peers)
        found = []
        for temperature in temperatures:
            repelling, attracting = self.sides(generated, positives, negatives, distances, weights, temperature)
            share = (attracting.log_mean - repelling.log_mean).nan_to_num(nan=0).sigmoid()
            rows = spread_of_rows(attracting.neighbors, repelling.neighbors, share, count=positives.shape[1])
            found.append(torch.stack([value.mean() for value in rows]))
        return KernelStatistics(*torch.stack(found, 1).unbind(0))


@dataclass(frozen=True)
class KernelField(AttractionField):
    """A field of this kind with one of the kernels of `kernels`.

    Attributes:
        kernel: Kernel: laplace, gaussian, matern32 or matern52.
    """

    kernel: str = "gaussian"

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        check_choice("kernel", self.kernel, KERNELS)

    @property
    def profile(self) -> Kernel:
        """The kernel."""
        return KERNELS[self.kernel]

    def statistics(self, generated: Tensor, positives: Tensor, negatives: Tensor, **options: Any) -> Statistics:
        """Return how the kernel spreads, see `AttractionField.kernel_statistics`."""
        return self.kernel_statistics(generated, positives, negatives, **options)


def _side(
    kernel: Kernel, by_kernel: bool, samples: Tensor, targets: Tensor, weights: Tensor, distances: Tensor, scale: Tensor
) -> Side:
    """Return what one set of targets does to the samples."""
    present = weights[:, None] > 0
    nearest = distances.masked_fill(~present, torch.inf).amin(2, keepdim=True)
    center = targets.mean(1, keepdim=True)
    offsets = targets - center
    resolution = offsets.norm(dim=2).amax(1)[:, None, None] * (_ROUNDINGS * torch.finfo(samples.dtype).eps)
    summed = torch.cat([weights[..., None] * offsets, weights[..., None]], 2)
    pull, mass, total, squares = torch.empty_like(samples), *(torch.empty_like(nearest) for _ in range(3))
    shift = kernel.log(_relative(torch.maximum(nearest, resolution), scale))
    for groups, rows, scratch in pairwise.scratch_tiles(distances):
        seen = distances[groups, rows] != torch.inf
        u = _relative(torch.maximum(distances[groups, rows], resolution[groups], out=scratch), scale)
        values = kernel.log(u.clone()).sub_(shift[groups, rows]).clamp_(min=_UNDERFLOW, max=0).exp_().mul_(seen)
        own = summed[groups, :, -1:]
        mass[groups, rows], total[groups, rows] = values @ own, seen.to(own) @ own
        squares[groups, rows] = values.square() @ own.square()
        sums = values.mul_(kernel.pull(u)) @ summed[groups]
        pull[groups, rows] = sums[..., :-1] - sums[..., -1:] * (samples[groups, rows] - center[groups])
    tiny = torch.finfo(mass.dtype).tiny
    pull = pull / mass.clamp(min=tiny) if by_kernel else pull / total.clamp(min=tiny) * shift.clamp(min=_UNDERFLOW).exp()
    return Side(pull, (mass / total.clamp(min=tiny)).log() + shift, mass.square() / squares.clamp(min=tiny))


def _relative(distances: Tensor, scale: Tensor) -> Tensor:
    """Return u = distance / temperature in place, bounded so that its square is finite."""
    return distances.mul_(-scale).clamp_(max=FARTHEST)
