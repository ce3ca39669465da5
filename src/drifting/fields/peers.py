"""The processes over which a step is split, as the field and the loss see them: what has to be added up over all of them.

A step is split in one of two ways, and either gives the field of the whole:

- groups are split: every process has groups of its own, whole. Only the feature scale, the drift norms and the statistics, which
  are means over all groups, know of the others.
- the rows of each group are split: of a population of N generated samples every process moves n, and sees all N as targets. Then
  the column normalisers, sums over the moved samples, are those of all processes too.

Nothing here communicates: whoever has processes implements `Peers` over them.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Peers(Protocol):
    """The processes over which a step is split; all call the same methods in the same order, with equal shapes.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def total(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the sum of every element over the processes, the same on each; `value` is a constant and may be overwritten."""
        ...

    def smallest(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the minimum of every element over the processes, likewise; elements may be infinite."""
        ...


def mean_over(peers: Peers | None, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the mean of every element over the processes: `value` itself where there are no others."""
    return value if peers is None else peers.total(value) / peers.size
