"""What a drift field is, and what it may know of the other processes over which a step is split.

A step is split in one of two ways, and either gives the field of the whole:

- groups are split: every process has groups of its own, whole. Only the feature scale, the drift norms and the statistics, which
  are means over all groups, know of the others.
- the rows of each group are split: of a population of N generated samples every process moves n, and sees all N as targets. Then
  the column normalizers, sums over the moved samples, are those of all processes too.

Nothing here communicates: whoever has processes implements `Peers` over them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Statistics(Protocol):
    """What a field tells of itself: a NamedTuple of numbers for each temperature."""

    def _asdict(self) -> dict[str, Float[Tensor, " t"]]: ...

    def __iter__(self) -> Iterator[Float[Tensor, " t"]]: ...


@runtime_checkable
class Field(Protocol):
    """What the loss asks of a drift field: the drift at every temperature from one pass over the distances.

    A field that can be split takes `peers` as well, see `MeanShift`; it is passed only where rows are split over processes.
    A field may also have

    - `statistics`, called with the same arguments but `distances`: a NamedTuple of numbers for each temperature, for the log;
    - `at(points, generated, positives, temperature=)`: the drift at any points [q, d] among samples [n, d], for pictures.

    What a field does not have is left out of logs and pictures.
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
            generated: the samples to be moved.
            positives: real samples, which attract.
            negatives: samples that repel; the first `num_self` are the generated rows themselves, which do not act on themselves.
            temperatures: kernel bandwidths, in the units of the distances.
            weights: one per target, negatives first, multiplying its affinity; None for ones.
            num_self: how many of the leading negatives are the generated rows.
            distances: from generated to [negatives | positives] where already known; the field may overwrite it.
        """
        ...


@dataclass(frozen=True)
class DriftField(ABC):
    """A field that is its own configuration: a frozen dataclass of its parameters, which a run can name and save.

    A configuration names it by its class, of those that this package offers.
    """

    @abstractmethod
    def __call__(self, generated: Tensor, positives: Tensor, negatives: Tensor, **options: Any) -> Tensor:
        """Return the drift; see `Field`."""


@runtime_checkable
class Peers(Protocol):
    """The processes over which a step is split; all call the same methods in the same order, with equal shapes.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def all_reduce_sum(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the sum of every element over the processes, the same on each; `value` is a constant and may be overwritten."""
        ...

    def all_reduce_min(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the minimum of every element over the processes, likewise; elements may be infinite."""
        ...


def mean_over(peers: Peers | None, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the mean of every element over the processes: `value` itself where there are no others."""
    return value if peers is None else peers.all_reduce_sum(value) / peers.size
