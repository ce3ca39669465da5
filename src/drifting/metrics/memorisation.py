"""Memorisation: are the samples new, or copies of training data?

Every sample is compared with its nearest training sample, and so is held-out real data, which cannot be a copy and gives the floor:

    distance = median over samples of min over train |sample - train|      copy_share = share of samples at or below q,

with q the 1 % quantile of the same minimum of the test data. Well below the floor, or a share far above it, means copies.

Source: the nearest-neighbour test of Meehan, Chaudhuri and Dasgupta, "A non-parametric test to detect data-copying in generative
models" (2020), reduced to one cell and one quantile.

Shapes: s samples, m training samples, t test samples, d features.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting.errors import InputError
from drifting.metrics.precision_recall import check_features, distance_chunks

_CANDIDATES = 4


@dataclass(frozen=True, eq=False)
class Memorisation:
    """How near the samples are to the training data, beside held-out data.

    Attributes:
        distance: median distance of a sample to its nearest training sample, in the units of the features.
        distance_floor: the same for the test data.
        copy_share: share of samples no farther from a training sample than the nearest 1 % of the test data.
        copy_share_floor: the same for the test data: about 0.01; 1 / t of few, more where real data repeats.
        distances: of every sample to its nearest training sample.
        indices: which training sample that is.
    """

    distance: float
    distance_floor: float
    copy_share: float
    copy_share_floor: float
    distances: Float[Tensor, " s"]
    indices: Int[Tensor, " s"]


@torch.no_grad()
def memorisation(
    samples: Float[Tensor, "s d"], train: Float[Tensor, "m d"], test: Float[Tensor, "t d"], *, quantile: float = 0.01
) -> Memorisation:
    """Compare samples with their nearest training samples, and test data with theirs.

    Args:
        samples: features of samples; flattened images serve too.
        train: features of all that the generator was trained on.
        test: features of real data that it was not trained on.
        quantile: share of the test data, in [0, 1], that counts as suspiciously near.

    Raises:
        InputError: if the feature sizes differ, a set is empty, a value is not finite or the quantile is no share.
    """
    check_features(samples=samples, train=train, test=test)
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile is {quantile}: pass a share of the test data, between 0 and 1")
    distances, indices = nearest(samples, train)
    real, _ = nearest(test, train)
    threshold = real.sort().values[int(quantile * (len(real) - 1))]  # a value that occurs: equal distances stay equal
    return Memorisation(
        distance=float(distances.quantile(0.5)),
        distance_floor=float(real.quantile(0.5)),
        copy_share=float((distances <= threshold).double().mean()),
        copy_share_floor=float((real <= threshold).double().mean()),
        distances=distances,
        indices=indices,
    )


@torch.no_grad()
def nearest(samples: Float[Tensor, "s d"], train: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " s"], Int[Tensor, " s"]]:
    """Return the Euclidean distance of every sample to its nearest training sample, in float64, and the index of that one.

    Four candidates are found by a matrix product, whose rounding hides the smallest distances, and measured again by subtraction:
    the distance to a copy is exactly 0, and of up to four copies the first is named.

    Raises:
        InputError: if the feature sizes differ, a set is empty or a value is not finite.
    """
    check_features(samples=samples, train=train)
    distances, indices = [], []
    for rows, squared in distance_chunks(samples, train):
        candidates = squared.topk(min(_CANDIDATES, len(train)), largest=False).indices.sort().values
        exact = torch.stack([(samples[rows].double() - train[column].double()).norm(dim=1) for column in candidates.T], 1)
        best = exact.argmin(1, keepdim=True)
        distances.append(exact.gather(1, best).squeeze(1))
        indices.append(candidates.gather(1, best).squeeze(1))
    return torch.cat(distances), torch.cat(indices)
