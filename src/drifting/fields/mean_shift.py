"""The paper's drift field: a mean shift toward data and away from the other generated samples.

Equation (paper, Algorithm 2), with the affinity A of `pairwise`, split into its positive and negative columns:

    S+_i = sum_j A+_ij,   S-_i = sum_j A-_ij
    V_i  = S-_i * sum_j A+_ij y+_j  -  S+_i * sum_j A-_ij y-_j

Both sums have the mass S+ S-, so swapping data and generated samples flips the sign of the field. The cross weights follow the
equation, computed out of place. The printed pseudo-code, executed in place, would give attraction 1.5 times the mass.

With `bias_correction`, the centroid c = sum_j a_j y_j of each side, a_j = A_ij / S_i, is replaced by that of ABC, whose bias over
draws of m targets is of order 1/m^2 and not 1/m:

    c' = (1 - sum_j a_j^2) c + sum_j a_j^2 y_j,    V_i = S+_i S-_i (c'+ - c'-)

A `repulsion` r other than 1 weighs the push away from generated samples; with `balance`, it follows how far apart they are:

    V_i = S+_i S-_i ((c+ - x_i) + r (x_i - c-))

The kernel of the affinity can be another one of `kernels`, and the affinity can be normalized over the targets of each row alone.
Then numbers of positives and negatives that differ shift the equilibrium.

Shapes: t temperatures, g groups (independent problems), n generated, p positives, m negatives, d coordinates.

Source: paper, Algorithm 2, section 3.3 and the ablation of the normalization; arXiv:2604.27239 for ABC; the repulsion is ours. The
release clamps the squared affinity from below at 1e-6 (`affinity_floor`), which the paper does not mention. The clamp acts as a
weak uniform pull and harms low-dimensional data with several modes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_choice, check_positive, check_shapes, check_temperature, check_weights, constant, full_precision
from drifting.fields import pairwise
from drifting.fields.balance import balanced
from drifting.fields.base import DriftField, Peers
from drifting.fields.diagnostics import KernelStatistics, spread_of
from drifting.fields.kernels import KERNELS

BY_COLUMNS = "rows_and_columns"
NORMALIZATIONS = (BY_COLUMNS, "rows")


@dataclass(frozen=True)
class MeanShift(DriftField):
    """The mean shift: a `Field` whose rows can be split over processes.

    Attributes:
        affinity_floor: Lower bound of the squared affinity; 0 for none, 1e-6 in the authors' release.
        kernel: Kernel of the affinity: laplace, gaussian, matern32 or matern52.
        normalization: Sums over which the affinity is normalized: rows_and_columns as in the paper, or rows.
        bias_correction: Correct the centroids for the finite number of targets (ABC), which matters where groups are small.
        repulsion: Weight of the push away from generated samples; above 0. With 1.03 instead of 1, samples spread farther.
        balance: How much the repulsion of a group grows with the diversity that its samples lack; 0 for a fixed repulsion.
    """

    supports_row_scale: ClassVar[bool] = True

    affinity_floor: float = 0.0
    kernel: str = "laplace"
    normalization: str = BY_COLUMNS
    bias_correction: bool = False
    repulsion: float = 1.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        for name, choices in (("kernel", KERNELS), ("normalization", NORMALIZATIONS)):
            if getattr(self, name) not in choices:
                check_choice(name, getattr(self, name), choices)
        check_positive("affinity_floor", self.affinity_floor, 1e-6, or_zero=True)
        check_positive("repulsion", self.repulsion, 1.03)
        check_positive("balance", self.balance, 1.0, or_zero=True)

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
        """Return the drift of `generated` at every temperature. Arguments as in `Field`, plus `peers`.

        `peers` are the processes over which the rows are split. The leading negatives are then the rows of all processes in the
        order of their ranks, so the `num_self` rows of this process begin at negative rank * n.
        """
        check_weights(weights)
        targets = Targets(positives, negatives, weights, self, generated, num_self, peers)
        if distances is None:
            distances = pairwise.pairwise_distances(generated, targets.coordinates)
        pairwise.mask_self(distances, num_self, peers)
        if peers is None and pairwise.fits_at_once(distances, temperatures):
            affinity = pairwise.affinities_at_once(distances, temperatures, self.affinity_floor, **self._affinity_options)
            return targets.drift(affinity, generated, slice(None)).unflatten(1, (len(temperatures), -1)).transpose(0, 1)
        drift = generated.new_empty(len(temperatures), *generated.shape)
        tiles = pairwise.affinity_tiles(distances, temperatures, self.affinity_floor, peers, **self._affinity_options)
        for index, groups, rows, affinity in tiles:
            targets.drift(affinity, generated[groups, rows], groups, out=drift[index, groups, rows])
        return drift

    @constant
    def statistics(
        self,
        generated: Float[Tensor, "g n d"],
        positives: Float[Tensor, "g p d"],
        negatives: Float[Tensor, "g m d"],
        *,
        temperatures: Float[Tensor, " t"],
        weights: Float[Tensor, "g m+p"] | None = None,
        num_self: int = 0,
        peers: Peers | None = None,
    ) -> KernelStatistics:
        """Return how the kernel spreads over its targets. Arguments as in a call.

        With peers, the kernel covers the rows of all processes and the averages those of this process. Their mean over the
        processes is what one call with all rows returns.
        """
        check_weights(weights)
        distances = pairwise.pairwise_distances(generated, torch.cat([negatives, positives], 1))
        pairwise.mask_self(distances, num_self, peers)
        tiles = pairwise.affinity_tiles(distances, temperatures, self.affinity_floor, peers, **self._affinity_options)
        return spread_of(tiles, distances.shape, weights=weights, num_negatives=negatives.shape[1], like=temperatures)

    @constant
    def at(
        self, points: Float[Tensor, "q d"], generated: Float[Tensor, "n d"], positives: Float[Tensor, "p d"], *, temperature: float
    ) -> Float[Tensor, "q d"]:
        """Return the drift that a test particle would feel at `points`, to draw the field.

        The points do not change the field: the column normalizers are those of the generated samples, so the drift at one point
        does not depend on the other points. Affinities are clamped to at most 1, as they are between samples.

        Args:
            points: where to evaluate the field.
            generated: the samples that repel.
            positives: real samples, which attract.
            temperature: bandwidth of the kernel, in the units of the coordinates; above 0.

        Raises:
            InputError: if the shapes do not match or the temperature is not positive and finite.
        """
        check_temperature(temperature)
        check_shapes(points, generated, positives)
        points, generated, positives = (full_precision(samples) for samples in (points, generated, positives))
        targets = Targets(positives[None], generated[None], None, self, generated[None])
        scale = pairwise.kernel_scale(generated.new_tensor(temperature))
        distances = pairwise.pairwise_distances(points[None], targets.coordinates)
        row = pairwise.row_potential(distances, distances.amin(2, keepdim=True), scale, self.kernel)
        if self.normalization == BY_COLUMNS:
            of_samples = pairwise.pairwise_distances(generated[None], targets.coordinates)
            pairwise.mask_self(of_samples, len(generated))
            column = pairwise.column_potential(of_samples, of_samples.amin(1, keepdim=True), scale, kernel=self.kernel)
        else:
            row, column = 2 * row, torch.zeros_like(distances[:, :1])
        # A target without samples nearby has a column normalizer that is far too large for a point close to it.
        affinity = pairwise.affinity(distances, row, column, scale, self.affinity_floor, kernel=self.kernel).clamp_(max=1)
        return targets.drift(affinity, points[None], slice(0, 1))[0]

    @property
    def _affinity_options(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "by_columns": self.normalization == BY_COLUMNS}


class Targets:
    """Negatives and positives side by side, prepared for the weighted sums that the field needs."""

    def __init__(self, positives: Tensor, negatives: Tensor, weights: Tensor | None, field: MeanShift, *generated: Any) -> None:
        self._weights, self._field, self._sides = weights, field, (negatives, positives)
        plain = field.repulsion == 1 and field.balance == 0
        self._repulsion = None if plain else balanced(field, positives, negatives, *generated)
        self.num_negatives = split = negatives.shape[1]
        # Rows are [w * (y - center) | w], so one product with the affinity gives both the weighted sum and the mass.
        width = positives.shape[2]
        self._center = center = (negatives.sum(1, keepdim=True) + positives.sum(1, keepdim=True)) / (split + positives.shape[1])
        summed = positives.new_empty(len(positives), split + positives.shape[1], width + 1)
        torch.sub(negatives, center, out=summed[:, :split, :width])
        torch.sub(positives, center, out=summed[:, split:, :width])
        summed[..., width] = 1
        self._unweighted = summed.clone() if field.bias_correction and weights is not None else summed
        if weights is not None:
            summed *= weights[..., None]
        # For few coordinates, a product with the targets as the innermost axis is five times faster on a CPU.
        self._summed = summed.mT.contiguous().mT if width <= pairwise.DIRECT_DIMENSIONS else summed

    @property
    def coordinates(self) -> Float[Tensor, "g k d"]:
        """The targets, negatives first."""
        return torch.cat(self._sides, 1)

    def drift(
        self, affinity: Float[Tensor, "g all_r k"], samples: Float[Tensor, "g r d"], groups: slice, out: Tensor | None = None
    ) -> Float[Tensor, "g all_r d"]:
        """Return the cross-weighted attraction minus repulsion for the rows of one tile, at one temperature after the other."""
        split, repulsion = self.num_negatives, None if self._repulsion is None else self._repulsion[groups, None, None]
        negative = self._sums(affinity[..., :split], groups, slice(0, split))
        positive = self._sums(affinity[..., split:], groups, slice(split, None))
        toward = torch.mul(negative[..., -1:], positive[..., :-1], out=out)
        push = positive[..., -1:] if repulsion is None else repulsion * positive[..., -1:]
        toward.addcmul_(push, negative[..., :-1], value=-1)
        if repulsion is not None:
            mass, each = (repulsion - 1) * negative[..., -1:] * positive[..., -1:], (-1, samples.shape[1])
            toward.unflatten(1, each).addcmul_(mass.unflatten(1, each), (samples - self._center[groups])[:, None])
        return toward

    def _sums(self, affinity: Float[Tensor, "g r _"], groups: slice, side: slice) -> Float[Tensor, "g r _"]:
        """Return the sums of A (y - center) and of A over one side, the former corrected if that is chosen."""
        summed = self._summed[groups, side]
        sums = affinity @ summed
        if not self._field.bias_correction:
            return sums
        mass = sums[..., -1:]
        # Weighted first, because an affinity may exceed the mass of its side where the weight is 0.
        share = affinity if self._weights is None else affinity * self._weights[groups, None, side]
        share = (share / mass.clamp(min=torch.finfo(mass.dtype).tiny)).square_()
        squares = share @ self._unweighted[groups, side]
        sums[..., :-1] += mass * squares[..., :-1] - squares[..., -1:] * sums[..., :-1]
        return sums
