"""The Frechet distance over a training, from samples that were set aside on the way.

Shapes: s samples, c channels, h x w pixels.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from drifting.data.images import ImageSet
from drifting.evaluation.base import Metrics
from drifting.evaluation.images import Extractor
from drifting.evaluation.shares import by_chance, images_of_labels, unknown_to, weights_in_shares
from drifting.metrics.frechet import Gaussian, frechet_distance, gaussian_of

Bytes = UInt8[Tensor, "s c h w"]


def frechet_curve(
    snapshots: Mapping[int, Bytes], train: ImageSet, test: ImageSet, extractor: Extractor, real: Gaussian | None = None
) -> Metrics:
    """Return the Frechet distance to the test set at every snapshot.

    Args:
        snapshots: step -> samples, of each step as many, with the classes of the training set in turn where it has some. Samples
            of a class together weigh as much as it does in the test set; of more classes than samples, the others are left out
            of both.
            Distances fall with the number of samples, so compare them with the floor alone.
        train: real images, of which as many make the floor.
        test: real images.
        extractor: the feature space. Images that it was trained on make no floor.
        real: of the features of the whole test set, where it is known.

    Returns:
        `frechet_curve_steps`, `frechet_curve`, a distance for each of them, and `frechet_curve_floor`; nothing where there are too
        few images.
    """
    count = min(map(len, snapshots.values()))
    candidates = unknown_to(extractor.trained_on, train.images)
    if train.labels is None or test.labels is None or train.num_classes is None:
        labels, shown = None, test
        chosen = by_chance(len(candidates), count)
    else:
        labels = torch.arange(count) % train.num_classes
        seen = torch.isin(test.labels, labels)
        shown = test if bool(seen.all()) else ImageSet(test.images[seen], test.labels[seen], test.class_names)
        chosen = images_of_labels(train.labels[candidates], labels)
    if min(count, len(shown)) < 2:
        return {}
    reference = real if real is not None and shown is test else gaussian_of(extractor.embed(shown.images))

    def distance(images: Bytes, of: Int[Tensor, " s"] | None) -> float:
        weights = None if of is None or shown.labels is None else weights_in_shares(of, shown.labels)
        return frechet_distance(gaussian_of(extractor.embed(images), weights), reference)

    steps = sorted(snapshots)
    metrics: Metrics = {
        "frechet_curve_steps": steps,
        "frechet_curve": [distance(snapshots[step][:count], labels) for step in steps],
    }
    others = candidates[chosen]
    of = None if labels is None or train.labels is None else train.labels[others]
    complete = of is None or shown.labels is None or bool(torch.isin(shown.labels, of).all())
    return metrics | ({"frechet_curve_floor": distance(train.images[others], of)} if complete and len(others) >= 2 else {})
