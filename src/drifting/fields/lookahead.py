"""Any drift field with the drifts of the next steps added: V(x) + V(x + V(x)) + ...

Equation, for k further steps, at every temperature on its own:

    x_0 = x,    x_{i+1} = x_i + V(x_i),    drift = V(x_0) + ... + V(x_k)

All generated samples move together: generated samples that repel are moved too, and each is still masked from itself. Samples of an
independent second batch, unconditional samples and positives stay where they are. The drift has the length that the field gives it,
before any normalization.

Fixed points: those of the field, since V = 0 moves nothing. Antisymmetry: lost, because only one of both sets moves.

Cost: 1 + k evaluations of the field, each with new distances.

Shapes: t temperatures, g groups, n generated, p positives, m negatives, q points, d coordinates.

Source: arXiv:2605.04060.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_counts, constant, full_precision
from drifting.fields.backends import FieldDrifts, drift_at_one, open_drifts
from drifting.fields.base import DriftField, Problem
from drifting.fields.mean_shift import MeanShift
from drifting.fields.pairwise import Memory

_FIELD = MeanShift()


@dataclass(frozen=True)
class Lookahead(DriftField):
    """The drift of a field plus its drifts after moving on.

    Attributes:
        field: Drift field that is evaluated again, with its own parameters.
        lookahead_steps: Number of moves, k; at least 1.
    """

    field: DriftField = _FIELD
    lookahead_steps: int = 1

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        check_counts({"lookahead_steps": self.lookahead_steps})

    @property
    def needs_independent_negatives(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the field needs a second generated batch."""
        return self.field.needs_independent_negatives

    @property
    def separates_unconditional(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the field takes the number of unconditional samples."""
        return self.field.separates_unconditional

    @property
    def statistics(self) -> Callable[..., Any]:
        """Those of the field where the samples are; AttributeError if it has none."""
        return self.field.statistics  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def at(self) -> Callable[..., Tensor]:
        """The drift at any points, see `Field`; AttributeError if the field does not compute it."""
        return partial(self._at, self.field.at)  # pyright: ignore[reportAttributeAccessIssue]

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
        """Return the drift of `generated` at every temperature. Arguments as in `Field`, plus those of the field."""
        problem = Problem(generated, [negatives], positives, **options)
        first = self.field(generated, positives, negatives, **problem.options(temperatures, self.field), distances=distances)
        return self.ahead(problem, first, temperatures)

    def ahead(
        self, problem: Problem, first: Iterable[Tensor], temperatures: Float[Tensor, " t"], memory: Memory | None = None
    ) -> Float[Tensor, "t g n d"]:
        """Return the sums of the first drifts, those of one temperature after the other, and those of the next moves.

        The backend that is fastest for the field computes the moves. It may keep its matrices in `memory`.
        """
        total = problem.generated.new_empty(len(temperatures), *problem.generated.shape)
        for index, of_temperature in enumerate(first):
            samples, drift = problem.generated, of_temperature
            total[index].copy_(drift)
            for _ in range(self.lookahead_steps):
                samples = samples + drift
                moved = replace(problem, generated=samples, negatives=_moved(problem, samples))
                drift = drift_at_one(self.field, moved, temperatures[index : index + 1], memory=memory)
                total[index] += drift
        return total

    def open_drifts(self, problem: Problem, *, smallest: float, memory: Memory | None = None) -> "AheadDrifts":
        """Return the drifts of a problem, see `backends.open_drifts`."""
        return AheadDrifts(self, problem, smallest=smallest, memory=memory)

    @constant
    def _at(
        self, at: Callable[..., Tensor], points: Tensor, generated: Tensor, positives: Tensor, *, temperature: float
    ) -> Float[Tensor, "q d"]:
        points, samples, positives = (full_precision(value) for value in (points, generated, positives))
        options = {"temperatures": samples.new_tensor([temperature]), "weights": None, "num_self": len(samples)}
        drift = at(points, samples, positives, temperature=temperature)
        total = drift.clone()
        for _ in range(self.lookahead_steps):
            one = samples[None]
            points, samples = points + drift, (one + self.field(one, positives[None], one, distances=None, **options)[0])[0]
            drift = at(points, samples, positives, temperature=temperature)
            total += drift
        return total


class AheadDrifts(FieldDrifts):
    """The drifts of a lookahead, whose field is computed by the fastest backend at every move."""

    @constant
    def __init__(self, ahead: Lookahead, problem: Problem, *, smallest: float, memory: Memory | None = None) -> None:
        """Compute the distances. `backends.open_drifts` has the arguments."""
        self._ahead, self._problem, self._memory = ahead, problem, memory
        self._first = open_drifts(ahead.field, problem, smallest=smallest, memory=memory)
        self._drifts = problem.generated[None]

    def mean_distance(self) -> Float[Tensor, ""]:
        """Return the weighted mean of the distances, see `Drifts`."""
        return self._first.mean_distance()

    def _compute(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, "t g n d"]:
        self._first.root_mean_squares(temperatures)
        # All are taken before the moves use the memory.
        first = [self._first.total(row) for row in torch.eye(len(temperatures), device=temperatures.device)]
        return self._ahead.ahead(self._problem, first, temperatures, self._memory)


def _moved(problem: Problem, samples: Float[Tensor, "g n d"]) -> Sequence[Float[Tensor, "g _ d"]]:
    """Return the negatives with the moved samples of all processes in place of the generated rows, if they are among them."""
    first, *others = problem.negatives
    if problem.num_self == 0:
        return problem.negatives
    if problem.peers is None:
        moved = samples[:, : problem.num_self]
    else:
        count, rank = samples.shape[1], problem.peers.rank
        everyone = torch.zeros_like(first[:, : problem.peers.size * count])
        everyone[:, rank * count : (rank + 1) * count] = samples
        moved = problem.peers.all_reduce_sum(everyone)
    rest = first[:, moved.shape[1] :]
    return [moved, *([rest] if rest.shape[1] else []), *others]
