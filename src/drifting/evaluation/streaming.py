"""Images too many for memory, seen by a judge in batches: what is kept of them is small, and its figures are those of all at once.

Means and covariances, and with them the Frechet distance, are of every image. Whatever compares pairs is of the features of the
first ones of each side, which are kept: give images in an order in which those stand for all.

Shapes: s samples, c channels, h x w pixels, d features, f features kept.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting.errors import InputError
from drifting.evaluation.base import Metrics
from drifting.evaluation.images import Bytes, Judge, compare_counts, compare_features
from drifting.evaluation.shares import digests
from drifting.metrics.frechet import Gaussian, RunningGaussian, frechet_distance, unreliable
from drifting.metrics.inception_score import RunningInceptionScore

# Images, and the label of each where they have any.
Batch = tuple[Bytes, Int[Tensor, " s"] | None]
KEPT = 10_000
# Features are added to a covariance by so many: each time costs d x d numbers more.
_BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Seen:
    """What is kept of images.

    Attributes:
        gaussian: mean and covariance of the features of all.
        features: of the first ones; None where only statistics are known.
        accuracy: share that the judge names as their label; None where there are no labels or it knows none.
        inception_score: of all, see `metrics.inception_score`; None for a judge that has none.
        digests: of all, see `shares.digests`; None where they were not asked for or are not known.
    """

    gaussian: Gaussian
    features: Float[Tensor, "f d"] | None = None
    accuracy: float | None = None
    inception_score: float | None = None
    digests: Int[Tensor, " s"] | None = None


def see(batches: Iterable[Batch], judge: Judge, *, keep: int = KEPT, remember: bool = False) -> Seen:
    """Look at images batch after batch, none of which is held when the next one is asked for.

    Args:
        batches: of any sizes, together at least two images.
        judge: the feature space.
        keep: how many features are kept.
        remember: keep digests of the images, by which copies of them are found.

    Raises:
        InputError: for fewer than two images, or features that are not finite.
    """
    gaussian, score, kept = RunningGaussian(), RunningInceptionScore(), list[Tensor]()
    block, known, hits, labelled = list[Tensor](), list[Tensor](), 0, 0
    for images, labels in batches:
        features = judge.embed(images).cpu()
        block.append(features)
        if sum(map(len, block)) >= _BLOCK:
            gaussian.add(torch.cat(block))
            block.clear()
        if (wanted := keep - sum(map(len, kept))) > 0:
            kept.append(features[:wanted].clone())
        if remember:
            known.append(digests(images))
        if judge.probabilities is not None:
            score.add(judge.probabilities(images))
        if judge.classify is not None and labels is not None:
            hits += int((judge.classify(images).cpu() == labels.cpu()).sum())
            labelled += len(labels)
        del images
    if block:
        gaussian.add(torch.cat(block))
    return Seen(
        gaussian.gaussian(),
        torch.cat(kept) if kept else None,
        accuracy=hits / labelled if labelled else None,
        inception_score=None if judge.probabilities is None else score.score(),
        digests=torch.cat(known) if known else None,
    )


def compare(generated: Seen, real: Seen, floor: Seen | None = None) -> Metrics:
    """Compare generated images with real ones, and other real ones with those: the floor.

    Args:
        generated: samples.
        real: what they are compared with.
        floor: other real images, as many as there are samples; None where there are none. `num_samples_floor` tells another number.

    Returns:
        Figures by the names and meanings of `evaluate_images`, each with its floor, but none of colours and copies. Where
        statistics alone are known, there are the Frechet distance and what looks at no real image. `num_real` and `num_features`
        count the images behind the Frechet distance and behind comparisons of pairs. Warns of what is unreliable.
    """
    metrics: Metrics = {"num_samples": generated.gaussian.count}
    metrics |= {} if floor is None else compare_counts(floor.gaussian.count, generated.gaussian.count)
    metrics |= {"num_real": real.gaussian.count} if real.gaussian.count else {}
    metrics |= {"num_features": len(generated.features)} if generated.features is not None else {}
    counts = [seen.gaussian.count for seen in (generated, real) if seen.gaussian.count]
    if (doubt := unreliable(min(counts), len(generated.gaussian.mean))) is not None:
        warnings.warn(doubt, stacklevel=2)
    for kind, seen in (("", generated), ("_floor", floor)):
        if seen is not None:
            found = {"frechet_distance": frechet_distance(seen.gaussian, real.gaussian)}
            if seen.features is not None and real.features is not None:
                found |= compare_features(seen.features, real.features)
            metrics |= {f"{name}{kind}": value for name, value in found.items()}
    for name in ("accuracy", "inception_score"):
        figures = {"": getattr(generated, name), "_floor": getattr(real, name)}
        metrics |= {f"{name}{kind}": value for kind, value in figures.items() if value is not None and figures[""] is not None}
    return metrics


def check_feature_size(judge: Judge, shape: tuple[int, int, int], real: Seen, origin: str) -> None:
    """Raise InputError if statistics are of another number of features than the judge has for images of a shape."""
    (size,) = judge.embed(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1:]
    if size != len(real.gaussian.mean):
        numbers = f"are of {len(real.gaussian.mean)} features, but the judge {judge.name} has {size}"
        raise InputError(f"real is '{origin}', whose statistics {numbers}: name those of this judge")
