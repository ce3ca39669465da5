"""Drifts in which every generated sample has a distance scale of its own.

By default one scale, the mean distance of a call, divides all distances and coordinates. In small groups at different distances
from their positives it suits none of them. Here the row of each generated sample i has the scale

    s_i = mean distance to the other generated samples of its group and to its positives

without the distance to itself and those to unconditional negatives. The drift of row i is that of features that are divided by s_i,
and so is its regression: both do not change if the features of a group are multiplied by a number.

In terms of the scale s of the call, with r_i = s_i / s, the distances and the drift of row i are divided by r_i.

Shapes: t temperatures, g groups, n generated, k targets, d coordinates.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_row_scale, constant
from drifting.fields.backends import FieldDrifts
from drifting.fields.base import Field, Problem
from drifting.fields.pairwise import Memory


def open_row_scaled(
    field: Field, problem: Problem, detached: Tensor | None, *, smallest: float, memory: Memory | None = None
) -> "RowScaledDrifts":
    """Return the drifts of a problem whose rows have scales of their own.

    Args:
        field: the field.
        problem: the samples.
        detached: further generated samples, which follow the first negatives; None for none.
        smallest: lower bound of distances; 0 if features are not normalized.
        memory: memory for matrices, kept between calls.

    Raises:
        InputError: if the field needs one scale, or features are not normalized.
    """
    check_row_scale(field, normalize_features=smallest > 0)
    count = 0 if detached is None else detached.shape[1]
    return RowScaledDrifts(field, problem, num_detached=count, smallest=smallest, memory=memory)


class RowScaledDrifts(FieldDrifts):
    """The drifts of a field that supports a scale per row, by torch; see `Drifts`.

    Args:
        field: the field.
        problem: the samples.
        num_detached: number of generated samples that follow the first negatives.
        options: options of `FieldDrifts`.
    """

    def __init__(self, field: Field, problem: Problem, *, num_detached: int = 0, **options: Any) -> None:
        super().__init__(field, problem, **options)
        self._siblings = problem.negatives[0].shape[1] + num_detached
        self._relative = problem.generated.new_ones(())

    @constant
    def scale_rows(self, scale: Float[Tensor, ""], *, smallest: float) -> Float[Tensor, "g n 1"]:
        """Divide the distances of each row by its scale relative to that of the call, and return these.

        Args:
            scale: the scale of the call.
            smallest: lower bound of every scale.
        """
        problem, (groups, rows, columns) = self._problem, self._distances.shape
        weights = self._distances.new_ones(groups, columns) if problem.weights is None else problem.weights.clone()
        weights[:, self._siblings : columns - problem.positives.shape[1]] = 0
        first = 0 if problem.peers is None else problem.peers.rank * rows
        own = slice(first, first + (rows if problem.num_self else 0))
        total, weight = (self._distances @ weights[..., None]), weights.sum(1)[:, None, None].expand(-1, rows, 1)
        if problem.num_self:
            itself = self._distances[..., own].diagonal(dim1=1, dim2=2) * weights[:, own]
            total, weight = total - itself[..., None], weight - weights[:, own, None]
        scales = total / weight.clamp(min=torch.finfo(weights.dtype).tiny)
        self._relative = scales.clamp(min=smallest) / scale.clamp(min=smallest)
        self._distances /= self._relative
        return self._relative

    def statistics(self, temperatures: Float[Tensor, " t"]) -> None:
        """Return nothing: the statistics of a field are those of one scale."""

    @constant
    def root_mean_squares(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Call the field, see `Drifts`."""
        super().root_mean_squares(temperatures)
        self._drifts = self._drifts / self._relative
        return torch.linalg.vector_norm(self._drifts, dim=3).square().mean((1, 2)).div(self._drifts.shape[3]).sqrt()
