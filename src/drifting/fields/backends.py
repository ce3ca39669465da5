"""What computes a mean shift: compiled loops on a CPU, Triton kernels on a GPU, or torch. `open_drifts` selects one for a problem.

The compiled loops and the kernels of a GPU have files of their own, `compiled_drifts` and `triton_drifts`.

Shapes: t temperatures, g groups, n generated, p positives, m negatives, k targets, d coordinates.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_shapes, check_temperature, constant, full_precision, join_weights
from drifting.fields import compiled_drifts, triton_drifts
from drifting.fields.base import Drifts, Field, Problem
from drifting.fields.compiled_drifts import CompiledDrifts, is_available
from drifting.fields.mean_shift import BY_COLUMNS, MeanShift
from drifting.fields.pairwise import Memory, pairwise_distances


def open_drifts(field: Field, problem: Problem, *, smallest: float, memory: Memory | None = None) -> Drifts:
    """Return the drifts of a problem by the fastest backend that computes this field.

    Args:
        field: the field. A subclass of `MeanShift` is another field, and so is one with other options than those of the paper. A
            field that is made of others, such as `Lookahead`, has a method `open_drifts` of its own.
        problem: the samples.
        smallest: lower bound of distances.
        memory: memory for matrices, kept between calls.
    """
    if (own := getattr(field, "open_drifts", None)) is not None:
        return own(problem, smallest=smallest, memory=memory)
    fast = _of_the_paper(field)
    if fast is not None:
        fits, plain = problem.peers is None and len(problem.negatives) <= 2, fast.repulsion == 1 and fast.balance == 0
        # With another repulsion, the loops find each sample among the negatives, where it is masked.
        if fits and (plain or problem.num_self > 0) and is_available(problem.generated):
            return CompiledDrifts(problem, fast, smallest=smallest, memory=memory)
        if plain and triton_drifts.is_available(problem):
            return triton_drifts.TritonDrifts(problem, floor=fast.affinity_floor, smallest=smallest)
    return FieldDrifts(field, problem, smallest=smallest, memory=memory)


@constant
def mean_shift(
    generated: Float[Tensor, "*g n d"],
    positives: Float[Tensor, "*g p d"],
    negatives: Float[Tensor, "*g m d"] | None = None,
    *,
    temperature: float,
    affinity_floor: float = 0.0,
    positive_weights: Float[Tensor, "*g p"] | None = None,
    negative_weights: Float[Tensor, "*g m"] | None = None,
) -> Float[Tensor, "*g n d"]:
    """Return the mean-shift drift of each generated sample, a constant for autograd.

    Args:
        generated: samples [n, d], or [g, n, d] for g independent problems.
        positives: real samples.
        negatives: samples that repel. With None the generated samples repel each other, and no sample repels itself. Pass an
            independent second generated batch to count every pair.
        temperature: bandwidth of the kernel exp(-distance / temperature), in the units of the coordinates; above 0.
        affinity_floor: lower bound of the squared affinity (the release: 1e-6).
        positive_weights: non-negative weight of each positive's affinity; ones by default.
        negative_weights: the same for the negatives, or for the generated rows if `negatives` is None.

    Returns:
        The drift, shaped like `generated`: float64 for float64 samples, float32 for all others, including half precision.

    Raises:
        InputError: if the shapes do not match or the temperature is not positive and finite.

    Source: paper, Algorithm 2.
    """
    check_temperature(temperature)
    repelling = generated if negatives is None else negatives
    check_shapes(generated, positives, repelling)
    num_self = generated.shape[-2] if negatives is None else 0
    weights = join_weights((repelling, negative_weights), (positives, positive_weights))
    grouped = generated.ndim == 3
    moved, real, repelling = (full_precision(part if grouped else part[None]) for part in (generated, positives, repelling))
    weights = weights if grouped or weights is None else weights[None]
    problem = Problem(moved, [repelling], real, weights, num_self)
    drift = drift_at_each(MeanShift(affinity_floor), problem, moved.new_tensor([temperature]))[0]
    return drift if grouped else drift[0]


def drift_at_each(
    field: Field, problem: Problem, temperatures: Float[Tensor, " t"], *, memory: Memory | None = None
) -> Float[Tensor, "t g n d"]:
    """Return the drift of a problem at each temperature, by the fastest backend that computes this field."""
    return each_drift(open_drifts(field, problem, smallest=0.0, memory=memory), temperatures)


def each_drift(drifts: Drifts, temperatures: Float[Tensor, " t"]) -> Float[Tensor, "t g n d"]:
    """Compute the drift at each temperature, and return them."""
    drifts.root_mean_squares(temperatures)
    return torch.stack([drifts.total(factors) for factors in torch.eye(len(temperatures), device=temperatures.device)])


def must_compile(field: Field, device: torch.device) -> bool:
    """Return whether the first step with a field will compile loops for the CPU, which takes about 20 seconds."""
    return _of_the_paper(getattr(field, "field", field)) is not None and device.type == "cpu" and compiled_drifts.must_compile()


def _of_the_paper(field: Field) -> MeanShift | None:
    """Return the field if it is the mean shift of the paper, which has backends of its own."""
    if type(field) is not MeanShift or (field.kernel, field.normalization, field.bias_correction) != ("laplace", BY_COLUMNS, False):
        return None
    return field


class FieldDrifts:
    """The drifts of any field, by torch."""

    @constant
    def __init__(self, field: Field, problem: Problem, *, smallest: float, memory: Memory | None = None) -> None:
        """Compute the distances. `open_drifts` has the arguments."""
        self._field, self._problem = field, problem
        targets = torch.cat([*problem.negatives, problem.positives], 1)
        self._negatives = targets[:, : -problem.positives.shape[1]]
        self._distances = pairwise_distances(problem.generated, targets, memory=memory)
        if smallest > 0:
            self._distances.clamp_(min=smallest)
        self._drifts = self._distances

    def mean_distance(self) -> Float[Tensor, ""]:
        """Return the weighted mean of the distances, see `Drifts`."""
        weights = self._problem.weights
        return self._distances.mean() if weights is None else (self._distances.mean(1) * weights).mean()

    @constant
    def root_mean_squares(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Compute the drifts, see `Drifts`."""
        self._drifts = self._compute(temperatures)
        # Reduce each row first: a tensor of squares would be as large as the drift.
        return torch.linalg.vector_norm(self._drifts, dim=3).square().mean((1, 2)).div(self._drifts.shape[3]).sqrt()

    def _compute(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, "t g n d"]:
        problem = self._problem
        samples = (problem.generated, problem.positives, self._negatives)
        return self._field(*samples, **problem.options(temperatures, self._field), distances=self._distances)

    def total(self, factors: Float[Tensor, " t"]) -> Float[Tensor, "g n d"]:
        """Add up what the field returned, see `Drifts`."""
        total = self._drifts[0] * factors[0]
        for value, factor in zip(self._drifts[1:], factors[1:], strict=True):
            total.addcmul_(value, factor)
        return total
