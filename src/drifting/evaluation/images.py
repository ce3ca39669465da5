"""Images, seen through a judge that took no part in their training: distance, fidelity, diversity, labels, colours, copies.

Shapes: s samples, r real images, c channels, h x w pixels, d features, k classes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.data.shuffle import shuffled_indices
from drifting.errors import InputError
from drifting.evaluation.base import Metrics
from drifting.metrics.colour import compare_colours
from drifting.metrics.frechet import Gaussian, cached_gaussian, frechet_distance, gaussian_of, kernel_distance, unreliable
from drifting.metrics.memorisation import memorisation
from drifting.metrics.precision_recall import precision_recall
from drifting.metrics.two_sample import mean_distance

Bytes = UInt8[Tensor, "s c h w"]
# (count, labels) -> that many images, one for each label where there are any
ImageSampler = Callable[[int, Sequence[int] | None], Bytes]
_FLOOR_SEED = 0
# Images whose distances from each other are looked at, at most.
_PAIRED = 2000


@dataclass(frozen=True)
class Judge:
    """A feature space to measure in, and who names the classes.

    Attributes:
        name: shown beside the figures; with the weights it makes the name of cached statistics.
        embed: images -> features.
        classify: images -> the label of each; None for a judge that knows no labels.
        cache: folder for statistics of real data; None to compute them anew.
        probabilities: images -> those of the classes on which the Inception Score is defined; None for any other judge.
    """

    name: str
    embed: Callable[[Bytes], Float[Tensor, "s d"]]
    classify: Callable[[Bytes], Int[Tensor, " s"]] | None = None
    cache: Path | None = None
    probabilities: Callable[[Bytes], Float[Tensor, "s k"]] | None = None


def evaluate_images(sampler: ImageSampler, train: ImageSet, test: ImageSet, judge: Judge, *, count: int = 10_000) -> Metrics:
    """Compare generated images with the test set, and as many training images with it: the floor.

    Args:
        sampler: draws from the generator; asked for the labels of the training images that make the floor.
        train: what the generator was trained on.
        test: real images that it was not.
        judge: the feature space.
        count: images on each side, as far as the training set reaches.

    Returns:
        Figures, each with its floor: `frechet_distance` and `kernel_distance` to the test set; `precision`, `recall`, `density` and
        `coverage` against it; `pairwise_distance`, the mean between two images; `accuracy`, the share of images that the judge
        names as their label; of grey and colour images `colour_mean`, `colour_std` (of each channel, in [-1, 1]; the floor is the
        test set's) and `histogram_distance`, see `metrics.colour`; `nearest_distance` and `copy_share` in the space of pixels, see
        `metrics.memorisation`. Warns of those that are unreliable.
    """
    if count < 1:
        raise InputError(f"num_samples is {count}: ask for at least 1")
    count = min(count, len(train.images))
    chosen = shuffled_indices(len(train.images), 0, count, _FLOOR_SEED)
    labels = None if train.labels is None else train.labels[chosen]
    generated = sampler(count, None if labels is None else labels.tolist())
    sets = {"": judge.embed(generated), "_floor": judge.embed(train.images[chosen])}
    real = judge.embed(test.images)
    reference = _reference(judge, test, lambda: real)
    if (doubt := unreliable(min(count, len(real)), real.shape[1])) is not None:
        warnings.warn(doubt, stacklevel=2)
    metrics: Metrics = {"num_samples": count}
    for kind, features in sets.items():
        found = {"frechet_distance": frechet_distance(gaussian_of(features), reference), **compare_features(features, real)}
        metrics |= {f"{name}{kind}": value for name, value in found.items()}
    if judge.classify is not None and labels is not None and test.labels is not None:
        metrics["accuracy"] = _share(judge.classify(generated) == labels)
        metrics["accuracy_floor"] = _share(judge.classify(test.images) == test.labels)
    return metrics | _colours(generated, train.images[chosen], test) | _copies(generated, train, test)


def compare_features(features: Float[Tensor, "s d"], real: Float[Tensor, "r d"]) -> dict[str, float]:
    """Return every figure of features but the Frechet distance, see `evaluate_images`."""
    return {
        "kernel_distance": kernel_distance(features, real),
        **precision_recall(features, real)._asdict(),
        "pairwise_distance": _spread(features[:_PAIRED]),
    }


def frechet_curve(frames: Mapping[int, Bytes], train: ImageSet, test: ImageSet, judge: Judge) -> Metrics:
    """Return the Frechet distance to the test set over the training, from samples that were set aside on the way.

    Args:
        frames: step -> samples, of each step as many. Distances fall with their number, so compare them with the floor alone.
        train: real images, of which as many make the floor.
        test: real images.
        judge: the feature space.

    Returns:
        `frechet_curve_steps`, `frechet_curve`, a distance for each of them, and `frechet_curve_floor`.
    """
    reference = _reference(judge, test, lambda: judge.embed(test.images))
    count = min(map(len, frames.values()))
    chosen = shuffled_indices(len(train.images), 0, min(count, len(train.images)), _FLOOR_SEED)
    distances = [frechet_distance(gaussian_of(judge.embed(frames[step])), reference) for step in sorted(frames)]
    floor = frechet_distance(gaussian_of(judge.embed(train.images[chosen])), reference)
    return {"frechet_curve_steps": sorted(frames), "frechet_curve": distances, "frechet_curve_floor": floor}


def _reference(judge: Judge, test: ImageSet, features: Callable[[], Float[Tensor, "r d"]]) -> Gaussian:
    """Return the statistics of the test set, kept beside the judge; its features are asked for where they are not known yet."""
    if judge.cache is None:
        return gaussian_of(features())
    fingerprint = test.fingerprint()
    return cached_gaussian(judge.cache / f"{judge.name}-{fingerprint}.safetensors", fingerprint, lambda: gaussian_of(features()))


def _colours(generated: Bytes, real: Bytes, test: ImageSet) -> Metrics:
    if generated.shape[1] not in (1, 3):
        return {}
    found, floor = (compare_colours(to_signed(images), to_signed(test.images)) for images in (generated, real))
    return {
        "colour_mean": list(found.mean),
        "colour_mean_floor": list(found.real_mean),
        "colour_std": list(found.std),
        "colour_std_floor": list(found.real_std),
        "histogram_distance": found.histogram_distance,
        "histogram_distance_floor": floor.histogram_distance,
    }


def _copies(generated: Bytes, train: ImageSet, test: ImageSet) -> Metrics:
    pixels = (to_signed(images).flatten(1) for images in (generated, train.images, test.images))
    found = memorisation(*pixels)
    return {
        "nearest_distance": found.distance,
        "nearest_distance_floor": found.distance_floor,
        "copy_share": found.copy_share,
        "copy_share_floor": found.copy_share_floor,
    }


def _spread(features: Float[Tensor, "s d"]) -> float:
    """Return the mean distance between two images, none of them paired with itself."""
    return mean_distance(features, features) * len(features) / max(1, len(features) - 1)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def accuracy_of(network: nn.Module, images: Bytes, labels: Int[Tensor, " s"]) -> float:
    """Return the share of images that a classifier in evaluation mode, images in [-1, 1] -> logits, names as their label."""
    device = next(network.parameters()).device
    return _share(in_batches(lambda part: network(part.to(device)).argmax(1), images) == labels)


def in_batches(function: Callable[[Tensor], Tensor], images: Bytes, size: int = 500) -> Tensor:
    """Return what a function of images in [-1, 1] makes of bytes, on the CPU."""
    with torch.no_grad():
        return torch.cat([function(to_signed(part)).cpu() for part in images.split(size)])
