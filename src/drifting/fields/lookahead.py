"""Any drift field with the drifts of the next steps added: V(x) + V(x + V(x)) + ...

Equation, for k further steps of weight w at temperature tau:

    x_0 = x,    x_{i+1} = x_i + V_tau(x_i),    drift = V_tau(x_0) + w (V_tau(x_1) + ... + V_tau(x_k))

With shared moves, the samples move by the drifts of all temperatures at once, as they do in training:

    x_{i+1} = x_i + sum over temperatures of V(x_i)

All generated samples move together: generated samples that repel are moved too, and each is still masked from itself. Samples of an
independent second batch, unconditional samples and positives stay where they are. The drift has the length that the field gives it,
before any normalization.

Fixed points: those of the field for large batches, since V = 0 moves nothing. In a batch of few, a move gathers the samples around
its positives, so the next drift points outward. Where both distributions are equal, the mean drift is therefore not zero, and
samples end farther apart than the data. This makes up for networks whose samples are too much alike; the weight controls it.
Antisymmetry: lost, because only one of both sets moves.

Cost: 1 + k evaluations of the field. Each move needs new distances, and without shared moves, those of every temperature.

Shapes: t temperatures, g groups, n generated, p positives, m negatives, q points, d coordinates.

Source: arXiv:2605.04060.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_counts, check_field, check_positive, constant, full_precision
from drifting.fields.backends import FieldDrifts, drift_at_each, each_drift, open_drifts
from drifting.fields.base import DriftField, Problem, rows_of_all
from drifting.fields.mean_shift import MeanShift
from drifting.fields.pairwise import Memory

_FIELD = MeanShift()


@dataclass(frozen=True)
class Lookahead(DriftField):
    """The drift of a field plus its drifts after moving on.

    Attributes:
        field: Drift field that is evaluated again, with its own parameters.
        lookahead_steps: Number of moves, k; at least 1.
        weight: Weight of the drifts of the moves, w; above 0. Below 1, samples spread less.
        shared_moves: Whether the samples move by the drifts of all temperatures at once, or for each temperature by its own.
    """

    field: DriftField = _FIELD
    lookahead_steps: int = 1
    weight: float = 1.0
    shared_moves: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        check_field(self.field, has_independent=True)
        check_counts({"lookahead_steps": self.lookahead_steps})
        check_positive("weight", self.weight, 0.5)

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
        self, problem: Problem, total: Float[Tensor, "t g n d"], temperatures: Float[Tensor, " t"], memory: Memory | None = None
    ) -> Float[Tensor, "t g n d"]:
        """Add the drifts of the next moves to those of the first, which are overwritten, and return the sums.

        The backend that is fastest for the field computes the moves. It may keep its matrices in `memory`.
        """
        count = len(temperatures)
        for chosen in [slice(count)] if self.shared_moves else [slice(index, index + 1) for index in range(count)]:
            samples, drifts = problem.generated, total[chosen]
            for _ in range(self.lookahead_steps):
                samples = samples + drifts.sum(0)
                moved = replace(problem, generated=samples, negatives=_moved(problem, samples))
                drifts = drift_at_each(self.field, moved, temperatures[chosen], memory=memory)
                total[chosen].add_(drifts, alpha=self.weight)
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
            total.add_(drift, alpha=self.weight)
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
        # All are computed before the moves use the memory.
        return self._ahead.ahead(self._problem, each_drift(self._first, temperatures), temperatures, self._memory)


def _moved(problem: Problem, samples: Float[Tensor, "g n d"]) -> Sequence[Float[Tensor, "g _ d"]]:
    """Return the negatives with the moved samples of all processes in place of the generated rows, if they are among them."""
    first, *others = problem.negatives
    if problem.num_self == 0:
        return problem.negatives
    moved = samples[:, : problem.num_self] if problem.peers is None else rows_of_all(samples, problem.peers)
    rest = first[:, moved.shape[1] :]
    return [moved, *([rest] if rest.shape[1] else []), *others]
