"""Images, seen through an extractor that took no part in their training: distance, fidelity, diversity, labels, colors, copies.

Images too many for memory are seen in batches: what is kept of them is small. Means and covariances, and with them the Frechet
distance, are of every image. Whatever compares pairs is of the features of the first ones of each side, which are kept: give images
in an order in which those stand for all.

Shapes: s samples, r real images, c channels, h x w pixels, d features, f features kept, k classes.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from drifting._seeds import stream_seed
from drifting.data.facts import NEIGHBORS
from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.data.shuffle import shuffled_indices
from drifting.errors import InputError
from drifting.evaluation.base import Metrics
from drifting.evaluation.references import digests, images_in_shares, images_of_labels, labels_in_shares, weights_in_shares
from drifting.metrics.color import compare_colors
from drifting.metrics.frechet import (
    Gaussian,
    RunningGaussian,
    cached_gaussian,
    check_covariance,
    frechet_distance,
    gaussian_of,
    kernel_distance,
    unreliable,
)
from drifting.metrics.inception_score import RunningInceptionScore
from drifting.metrics.memorization import memorization
from drifting.metrics.precision_recall import precision_recall
from drifting.metrics.two_sample import mean_distance

Bytes = UInt8[Tensor, "s c h w"]

# (count, labels) -> that many images, one for each label where there are any
ImageSampler = Callable[[int, Sequence[int] | None], Bytes]
_FLOOR_SEED = stream_seed(0, "floor")

# Images whose distances from each other are looked at, at most.
_PAIRED = 2000

NO_FLOOR = "the floor, the same figures of other real images, is left out"


@dataclass(frozen=True)
class Extractor:
    """A feature space to measure in, and who names the classes.

    Attributes:
        name: shown beside the figures; with the weights it makes the name of cached statistics.
        embed: images -> features.
        classify: images -> the label of each; None for an extractor that knows no labels.
        cache: folder for statistics of real data; None to compute them anew.
        probabilities: images -> those of the classes on which the Inception Score is defined; None for any other extractor.
        trained_on: digests of the images that it was trained on, see `references.digests`, which make no floor; None for none.
    """

    name: str
    embed: Callable[[Bytes], Float[Tensor, "s d"]]
    classify: Callable[[Bytes], Int[Tensor, " s"]] | None = None
    cache: Path | None = None
    probabilities: Callable[[Bytes], Float[Tensor, "s k"]] | None = None
    trained_on: Int[Tensor, " t"] | None = None


def evaluate_images(
    sampler: ImageSampler, train: ImageSet, test: ImageSet, extractor: Extractor, *, count: int = 10_000
) -> Metrics:
    """Compare generated images with the test set, and as many training images with it: the floor.

    Args:
        sampler: draws from the generator; asked for labels in the shares of the test set.
        train: what the generator was trained on.
        test: real images that it was not.
        extractor: the feature space. Images that it was trained on make no floor.
        count: images on each side, at least 2, as far as the training set reaches.

    Returns:
        Figures, each with its floor: `frechet_distance` and `kernel_distance` to the test set; `precision`, `recall`, `density` and
        `coverage` against it; `pairwise_distance`, the mean between two images; `accuracy`, the share of images that the extractor
        names as their label; of gray and color images `color_mean`, `color_std` (of each channel, in [-1, 1]; the floor is the
        test set's) and `histogram_distance`, see `metrics.color`; `nearest_distance` and `copy_share` in the space of pixels, see
        `metrics.memorization`. `num_samples_floor` where the floor is of another number of images. Warns of those that are
        unreliable, and of those that are left out.
    """
    if count < 2:
        raise InputError(f"num_samples is {count}: ask for at least 2")
    for split, images in (("training", train), ("test", test)):
        if len(images.images) < 2:
            raise InputError(f"data has {len(images.images)} {split} image, too few to compare with: add some, at least 2")
    count = min(count, len(train.images))
    dimensions = extractor.embed(test.images[:1]).shape[1]
    check_covariance(max(count, len(test.images)), dimensions)
    labels = None if train.labels is None or test.labels is None else labels_in_shares(test.labels, count)
    generated = sampler(count, None if labels is None else labels.tolist())
    others = train.images[_floor_of(train, test, extractor, count)]
    real = extractor.embed(test.images)
    reference = _reference(extractor, test, lambda: real)
    if (doubt := unreliable(min(count, len(real)), dimensions)) is not None:
        warnings.warn(doubt, stacklevel=2)
    metrics: Metrics = {"num_samples": count, **compare_counts(len(others), count)}
    for kind, images in {"": generated, "_floor": others}.items():
        if len(images) >= 2:
            features = extractor.embed(images)
            found = {"frechet_distance": frechet_distance(gaussian_of(features), reference), **compare_features(features, real)}
            metrics |= {f"{name}{kind}": value for name, value in found.items()}
    if extractor.classify is not None and labels is not None and test.labels is not None:
        metrics["accuracy"] = _share(extractor.classify(generated) == labels)
        metrics["accuracy_floor"] = _share(extractor.classify(test.images) == test.labels)
    return metrics | _colors(generated, others, test) | _copies(generated, train, test)


def _floor_of(train: ImageSet, test: ImageSet, extractor: Extractor, count: int) -> Int[Tensor, " f"]:
    """Return which training images make the floor: none that the extractor was trained on, in the shares of the test set."""
    candidates = _unknown_to(extractor, train)
    if train.labels is None or test.labels is None:
        return candidates[_by_chance(len(candidates), count)]
    return candidates[images_in_shares(train.labels[candidates], test.labels, count)]


def _by_chance(total: int, count: int) -> Int[Tensor, " f"]:
    return shuffled_indices(max(1, total), 0, min(count, total), _FLOOR_SEED)


def _unknown_to(extractor: Extractor, images: ImageSet) -> Int[Tensor, " s"]:
    if extractor.trained_on is None:
        return torch.arange(len(images.images))
    return (~torch.isin(digests(images.images), extractor.trained_on)).nonzero()[:, 0]


def compare_counts(floor: int, count: int) -> Metrics:
    """Return the number of images of a floor where it is not that of the samples, and warn of what it is worth then."""
    if floor == count:
        return {}
    if floor < 2:
        warnings.warn(f"{NO_FLOOR}: no further real images have the classes of the reference", stacklevel=3)
        return {}
    too = f"the floor is of {floor} real images and so too large for {count} samples"
    warnings.warn(f"{too}: compare with it at --num-samples {floor}", stacklevel=3)
    return {"num_samples_floor": floor}


def compare_features(features: Float[Tensor, "s d"], real: Float[Tensor, "r d"]) -> dict[str, float]:
    """Return every figure of features but the Frechet distance, see `evaluate_images`; those of neighbors need some images."""
    found = {"kernel_distance": kernel_distance(features, real)}
    if min(len(features), len(real)) >= NEIGHBORS:
        found |= precision_recall(features, real)._asdict()
    else:
        few = f"{len(features)} images against {len(real)} are too few for precision, recall, density and coverage"
        warnings.warn(f"{few}, which are left out: they need {NEIGHBORS}", stacklevel=3)
    return {**found, "pairwise_distance": _spread(features[:_PAIRED])}


def frechet_curve(snapshots: Mapping[int, Bytes], train: ImageSet, test: ImageSet, extractor: Extractor) -> Metrics:
    """Return the Frechet distance to the test set over the training, from samples that were set aside on the way.

    Args:
        snapshots: step -> samples, of each step as many, with the classes of the training set in turn where it has some. Samples
            of a class together weigh as much as it does in the test set; of more classes than samples, the others are left out
            of both.
            Distances fall with the number of samples, so compare them with the floor alone.
        train: real images, of which as many make the floor.
        test: real images.
        extractor: the feature space. Images that it was trained on make no floor.

    Returns:
        `frechet_curve_steps`, `frechet_curve`, a distance for each of them, and `frechet_curve_floor`; nothing where there are too
        few images.
    """
    count = min(map(len, snapshots.values()))
    candidates = _unknown_to(extractor, train)
    if train.labels is None or test.labels is None or train.num_classes is None:
        labels, shown = None, test
        chosen = _by_chance(len(candidates), count)
    else:
        labels = torch.arange(count) % train.num_classes
        seen = torch.isin(test.labels, labels)
        shown = test if bool(seen.all()) else ImageSet(test.images[seen], test.labels[seen], test.class_names)
        chosen = images_of_labels(train.labels[candidates], labels)
    if min(count, len(shown.images)) < 2:
        return {}
    reference = _reference(extractor, shown, lambda: extractor.embed(shown.images))

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


def _reference(extractor: Extractor, test: ImageSet, features: Callable[[], Float[Tensor, "r d"]]) -> Gaussian:
    """Return the statistics of the test set, kept beside the extractor; its features are asked for where they are not known yet."""
    if extractor.cache is None:
        return gaussian_of(features())
    fingerprint = test.fingerprint()
    return cached_gaussian(
        extractor.cache / f"{extractor.name}-{fingerprint}.safetensors", fingerprint, lambda: gaussian_of(features())
    )


def _colors(generated: Bytes, real: UInt8[Tensor, "f c h w"], test: ImageSet) -> Metrics:
    if generated.shape[1] not in (1, 3):
        return {}
    found = compare_colors(to_signed(generated), to_signed(test.images))
    metrics: Metrics = {
        "color_mean": list(found.mean),
        "color_mean_floor": list(found.real_mean),
        "color_std": list(found.std),
        "color_std_floor": list(found.real_std),
        "histogram_distance": found.histogram_distance,
    }
    if len(real):
        metrics["histogram_distance_floor"] = compare_colors(to_signed(real), to_signed(test.images)).histogram_distance
    return metrics


def _copies(generated: Bytes, train: ImageSet, test: ImageSet) -> Metrics:
    pixels = (to_signed(images).flatten(1) for images in (generated, train.images, test.images))
    found = memorization(*pixels)
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
        accuracy: share that the extractor names as their label; None where there are no labels or it knows none.
        inception_score: of all, see `metrics.inception_score`; None for an extractor that has none.
        digests: of all, see `references.digests`; None where they were not asked for or are not known.
    """

    gaussian: Gaussian
    features: Float[Tensor, "f d"] | None = None
    accuracy: float | None = None
    inception_score: float | None = None
    digests: Int[Tensor, " s"] | None = None


def see(batches: Iterable[Batch], extractor: Extractor, *, keep: int = KEPT, remember: bool = False) -> Seen:
    """Look at images batch after batch, none of which is held when the next one is asked for.

    Args:
        batches: of any sizes, together at least two images.
        extractor: the feature space.
        keep: how many features are kept.
        remember: keep digests of the images, by which copies of them are found.

    Raises:
        InputError: for fewer than two images, or features that are not finite.
    """
    gaussian, score, kept = RunningGaussian(), RunningInceptionScore(), list[Tensor]()
    block, known, hits, labeled = list[Tensor](), list[Tensor](), 0, 0
    for images, labels in batches:
        features = extractor.embed(images).cpu()
        block.append(features)
        if sum(map(len, block)) >= _BLOCK:
            gaussian.add(torch.cat(block))
            block.clear()
        if (wanted := keep - sum(map(len, kept))) > 0:
            kept.append(features[:wanted].clone())
        if remember:
            known.append(digests(images))
        if extractor.probabilities is not None:
            score.add(extractor.probabilities(images))
        if extractor.classify is not None and labels is not None:
            hits += int((extractor.classify(images).cpu() == labels.cpu()).sum())
            labeled += len(labels)
        del images
    if block:
        gaussian.add(torch.cat(block))
    return Seen(
        gaussian.gaussian(),
        torch.cat(kept) if kept else None,
        accuracy=hits / labeled if labeled else None,
        inception_score=None if extractor.probabilities is None else score.score(),
        digests=torch.cat(known) if known else None,
    )


def compare(generated: Seen, real: Seen, floor: Seen | None = None) -> Metrics:
    """Compare generated images with real ones, and other real ones with those: the floor.

    Args:
        generated: samples.
        real: what they are compared with.
        floor: other real images, as many as there are samples; None where there are none. `num_samples_floor` tells another number.

    Returns:
        Figures by the names and meanings of `evaluate_images`, each with its floor, but none of colors and copies. Where
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


def check_feature_size(extractor: Extractor, shape: tuple[int, int, int], real: Seen, origin: str) -> None:
    """Raise InputError if statistics are of another number of features than the extractor has for images of a shape."""
    (size,) = extractor.embed(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1:]
    if size != len(real.gaussian.mean):
        numbers = f"are of {len(real.gaussian.mean)} features, but the extractor {extractor.name} has {size}"
        raise InputError(f"real is '{origin}', whose statistics {numbers}: name those of this extractor")
