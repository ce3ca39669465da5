"""How much samples repel: by a fixed weight, or by one that follows how far apart they are, group by group.

With a repulsion above 1, samples end farther apart than the data, which makes up for networks whose samples are too much alike. Far
above 1 they escape: nothing calls a sample back whose nearest targets are too far away.

Equation of the weight that follows, with D the mean distance between the generated samples of a group, divided by that between its
positives:

    r = repulsion + balance (1 - D),    at most 0.1 from `repulsion`, and at least 0

Where samples are too much alike, D is below 1 and they repel more. At equal distributions D is 1 in the mean, so the fixed points
are those of `repulsion`, whatever the balance. Every group of every feature has its own, measured in every step: the shape of a
digit may need more while its contrast needs none.

Cost: distances between up to 128 generated samples of each group, and between as many positives.

Shapes: g groups, n generated, p positives, d coordinates.

Source: ours.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.fields.base import Peers, rows_of_all
from drifting.fields.pairwise import pairwise_distances

if TYPE_CHECKING:
    from drifting.fields.mean_shift import MeanShift

# Samples of a group whose distances are measured: their mean is known to a few percent.
_MOST_DISTANCES = 128
# Fewer samples say too little about how far apart they are.
_FEWEST = 4
# With a quarter more repulsion, samples escape the data.
_LARGEST_CHANGE = 0.1


def balanced(
    field: "MeanShift",
    positives: Float[Tensor, "g p d"],
    negatives: Float[Tensor, "g m d"],
    generated: Float[Tensor, "g n d"],
    num_self: int = 0,
    peers: Peers | None = None,
) -> Float[Tensor, " g"]:
    """Return the repulsion of each group.

    Args:
        field: the field with its repulsion and balance.
        positives: real samples.
        negatives: samples that repel; the generated samples of all processes lead them if `num_self` is not 0.
        generated: generated samples, of this process if there are several.
        num_self: number of generated samples of each process among the negatives.
        peers: processes over which the generated samples of each group are split; None for one.
    """
    fixed = positives.new_full((len(positives),), field.repulsion)
    if field.balance == 0:
        return fixed
    if peers is not None:
        generated = negatives[:, : num_self * peers.size] if num_self else rows_of_all(generated, peers)
    if min(generated.shape[1], positives.shape[1]) < _FEWEST:
        return fixed
    within, among = mean_distances(generated, generated), mean_distances(positives, positives)
    # Positives that are all alike have no diversity.
    diversity = torch.where(among > 0, within / among, torch.ones_like(among))
    change = (field.balance * (1 - diversity)).clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE)
    return (fixed + change).clamp(min=0)


def mean_distances(x: Float[Tensor, "g n d"], y: Float[Tensor, "g p d"]) -> Float[Tensor, " g"]:
    """Return the mean distance between some samples of each group; if both are the same, without those to themselves."""
    some, others = x[:, :_MOST_DISTANCES], y[:, :_MOST_DISTANCES]
    count = others.shape[1] - (x is y)
    return pairwise_distances(some, others).sum((1, 2)) / (some.shape[1] * count)
