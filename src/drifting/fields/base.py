"""The interface of a drift field, and of the processes over which a step can be split.

A step can be split in two ways. Both give the field of the whole step:

- by groups: every process holds complete groups of its own. Only the feature scale, the drift norms and the statistics need the
  other processes, because they are means over all groups.
- by the rows of each group: every process moves n of the N generated samples of a population and sees all N as targets. The column
  normalizers, which are sums over the moved samples, are then computed over all processes too.

This module does not communicate. `Peers` is implemented by whatever manages the processes, such as `drifting.distributed`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Statistics(Protocol):
    """Statistics of a field: a NamedTuple with one number per temperature in each entry."""

    def _asdict(self) -> dict[str, Float[Tensor, " t"]]: ...

    def __iter__(self) -> Iterator[Float[Tensor, " t"]]: ...


@runtime_checkable
class Field(Protocol):
    """A drift field: computes the drift at every temperature from one pass over the distances.

    A field that supports split rows also takes `peers`, see `MeanShift`. The loss passes it only when rows are split over
    processes. A field may have two optional methods:

    - `statistics`, called with the same arguments except `distances`: a NamedTuple with one number per temperature, for the log;
    - `at(points, generated, positives, temperature=)`: the drift at any points [q, d] among samples [n, d], for pictures.

    Logs and pictures leave out what a field does not provide.
    """

    def __call__(
        self,
        generated: Float[Tensor, "g n d"],
        positives: Float[Tensor, "g p d"],
        negatives: Float[Tensor, "g m d"],
        *,
        temperatures: Float[Tensor, " t"],
        weights: Float[Tensor, "g m+p"] | None,
        num_self: int,
        distances: Float[Tensor, "g n m+p"] | None,
    ) -> Float[Tensor, "t g n d"]:
        """Return the drift of `generated`.

        Args:
            generated: the samples to move.
            positives: real samples, which attract.
            negatives: samples that repel. The first `num_self` are the generated rows; a row does not repel itself.
            temperatures: kernel bandwidths, in the units of the distances.
            weights: one weight per target, negatives first, which multiplies its affinity; None for ones.
            num_self: number of leading negatives that are the generated rows.
            distances: distances from generated to [negatives | positives] if already known; the field may overwrite them.
        """
        ...


@dataclass(frozen=True)
class DriftField(ABC):
    """A field that is its own configuration: a frozen dataclass of its parameters.

    A saved configuration stores the name of the class, which must be exported by this package.

    Attributes:
        needs_independent_negatives: whether the field needs a second generated batch that repels in place of the first. A loss or
            a training without one is refused.
        supports_row_scale: whether the field takes all distances from its argument, so that the loss can divide those of each row
            by a scale of its own, see `row_scale`.
        separates_unconditional: whether the field takes `num_unconditional`, the number of last negatives that are unconditional.
    """

    needs_independent_negatives: ClassVar[bool] = False
    supports_row_scale: ClassVar[bool] = False
    separates_unconditional: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, generated: Tensor, positives: Tensor, negatives: Tensor, **options: Any) -> Tensor:
        """Return the drift; see `Field`."""


@runtime_checkable
class Peers(Protocol):
    """The processes over which a step is split. All of them call the same methods in the same order, with equal shapes.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int
    size: int

    def all_reduce_sum(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the sum of every element over all processes, on each of them; `value` has no gradient and may be overwritten."""
        ...

    def all_reduce_min(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the minimum of every element over all processes, on each of them; elements may be infinite."""
        ...


def rows_of_all(rows: Float[Tensor, "g n d"], peers: Peers) -> Float[Tensor, "g _ d"]:
    """Return the rows of all processes, in the order of their ranks."""
    count = rows.shape[1]
    every = rows.new_zeros(len(rows), count * peers.size, rows.shape[2])
    every[:, peers.rank * count : (peers.rank + 1) * count] = rows
    return peers.all_reduce_sum(every)


@dataclass(frozen=True)
class Problem:
    """The samples of one call.

    Attributes:
        generated: the samples to move.
        negatives: samples that repel, in parts. If `num_self` is not 0, the first are the generated ones.
        positives: samples that attract.
        weights: one weight per target, negatives first; None for ones.
        num_self: number of leading negatives that are the generated rows.
        peers: the processes over which the rows are split, see `MeanShift`; None for one.
        num_unconditional: number of last negatives that are unconditional samples.
    """

    generated: Float[Tensor, "g n d"]
    negatives: Sequence[Float[Tensor, "g _ d"]]
    positives: Float[Tensor, "g p d"]
    weights: Float[Tensor, "g k"] | None = None
    num_self: int = 0
    peers: Peers | None = None
    num_unconditional: int = 0

    def options(self, temperatures: Float[Tensor, " t"], field: Field) -> dict[str, Any]:
        """Return the named arguments of a field for this problem, without the distances."""
        options: dict[str, Any] = {"temperatures": temperatures, "weights": self.weights, "num_self": self.num_self}
        if getattr(field, "separates_unconditional", False):
            options["num_unconditional"] = self.num_unconditional
        return options if self.peers is None else {**options, "peers": self.peers}


@runtime_checkable
class Drifts(Protocol):
    """The drifts of one problem at every temperature, before they are added up. The methods are called in this order.

    The loss needs a scale from the distances, then the size of the drift at each temperature, then one weighted sum of the drifts.
    A backend answers these three questions and chooses what it keeps in memory in between, see `backends`. It may also have
    a method `statistics(temperatures)`, which returns those of the field.
    """

    def mean_distance(self) -> Float[Tensor, ""]:
        """Return the mean of distance * weight over all groups, rows and targets, including self-distances."""
        ...

    def root_mean_squares(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Compute the drifts; return the root mean square of each over groups, samples and coordinates."""
        ...

    def total(self, factors: Float[Tensor, " t"]) -> Float[Tensor, "g n d"]:
        """Return the sum of the drifts, each times a factor."""
        ...
