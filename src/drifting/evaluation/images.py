"""Images compared in the features of an extractor that took no part in their training, and in pixels.

Images come in batches, and what is kept of them is small. Means and covariances, and with them the Frechet distance, are of every
image. Whatever compares pairs is of the features that are kept: of the first images of each side where those are too many for
memory, so give images in an order in which those stand for all.

Shapes: s samples, r real images, c channels, h x w pixels, d features, f features kept, k classes.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from drifting._progress import show_images
from drifting.data.dataset import NEIGHBORS
from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.evaluation.extractors import Bytes, Extractor
from drifting.evaluation.points_and_digits import Metrics
from drifting.evaluation.shares import by_chance, images_of_labels, labels_in_shares, unknown_to, weights_in_shares
from drifting.evaluation.statistics import KEPT, Batch, ImageStatistics, collect_statistics
from drifting.metrics.color import compare_colors
from drifting.metrics.distances import mean_distance
from drifting.metrics.frechet import (
    Gaussian,
    check_covariance,
    frechet_distance,
    gaussian_of,
    kernel_distance,
    unreliable,
)
from drifting.metrics.memorization import memorization
from drifting.metrics.precision_recall import precision_recall

Floor = Callable[[int, ImageStatistics], ImageStatistics | None]
# (count, labels) -> that many images in batches, of these labels in turn, or of all classes in turn
ImageSampler = Callable[[int, Sequence[int] | None], Iterable[Batch]]

# Labels of samples are listed for so many, and over again for more: memory does not grow with their number.
_PERIOD = 100_000
# Images whose distances from each other are looked at, at most.
_PAIRED = 2000


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What samples are compared with: a reference of real images, and other real ones, which make the floor.

    Attributes:
        name: of the reference, shown beside the figures.
        reference: (batch size) -> the reference, looked at so many images at a time.
        floor: (batch size, reference) -> the floor, of images that are none of the reference; None, with a warning, where there are
            none.
        count: how many samples to make.
        shares: classes of the run, in whose shares samples are made; None where they are not known.
        keep: features of how many are kept.
        pixels: what is compared of the images themselves, where all of them are in memory.
    """

    name: str
    reference: Callable[[int], ImageStatistics]
    floor: Floor
    count: int
    shares: Int[Tensor, " r"] | None = None
    keep: int = KEPT
    pixels: "Pixels | None" = None


class Pixels:
    """What is compared of images that are all in memory: colors and copies.

    Args:
        train: what the generator was trained on.
        test: real images that it was not.
        others: real images that make a floor.
    """

    def __init__(self, train: ImageSet, test: ImageSet, others: Bytes) -> None:
        self._train, self._test, self._others, self._collected = train, test, others, list[Bytes]()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass samples on and remember them; without labels where the test set has none, by which no figure could be compared."""
        for images, labels in batches:
            self._collected.append(images.cpu())
            yield images, labels if self._test.labels is not None else None

    def figures(self) -> Metrics:
        """Return the figures of the samples that were passed on."""
        generated = torch.cat(self._collected)
        return _colors(generated, self._others, self._test) | _copies(generated, self._train, self._test)


def evaluate_images(sampler: ImageSampler, sides: Sides, extractor: Extractor, *, batch_size: int) -> Metrics:
    """Make images batch after batch, look at them and at real ones, and compare them.

    Args:
        sampler: draws from the generator; asked for labels in the shares of the reference, where those are known.
        sides: what they are compared with, see `references`.
        extractor: the feature space.
        batch_size: real images at a time.

    Returns:
        The figures of `compare` and, where all images are in memory, each with its floor: of gray and color images `color_mean`,
        `color_std` (of each channel, in [-1, 1]; the floor is the test set's) and `histogram_distance`, see `metrics.color`;
        `nearest_distance` and `copy_share` in the space of pixels, see `metrics.memorization`.

    Raises:
        InputError: before the real images are looked at, if their statistics would not fit into memory.
    """
    for image, _ in sampler(1, None):
        check_covariance(sides.count, extractor.embed(image).shape[1])
    labels = None if sides.shares is None else labels_in_shares(sides.shares, min(sides.count, _PERIOD)).tolist()
    real = sides.reference(batch_size)
    others = sides.floor(batch_size, real)
    samples = show_images(sampler(sides.count, labels), sides.count, what="samples")
    watched = samples if sides.pixels is None else sides.pixels.watch(samples)
    metrics = compare(collect_statistics(watched, extractor, keep=sides.keep), real, others)
    return metrics if sides.pixels is None else metrics | sides.pixels.figures()


def compare_counts(floor: int, count: int) -> Metrics:
    """Return the number of images of a floor where it is not that of the samples, and warn of what it is worth then."""
    if floor == count:
        return {}
    too = f"the floor is of {floor} real images and so too large for {count} samples"
    warnings.warn(f"{too}: compare with it at --num-samples {floor}", stacklevel=3)
    return {"num_samples_floor": floor}


def compare_features(features: Float[Tensor, "s d"], real: Float[Tensor, "r d"]) -> dict[str, float]:
    """Return every figure of features but the Frechet distance, see `compare`; those of neighbors need some images."""
    found = {"kernel_distance": kernel_distance(features, real)}
    if min(len(features), len(real)) >= NEIGHBORS:
        found |= precision_recall(features, real)._asdict()
    else:
        few = f"{len(features)} images against {len(real)} are too few for precision, recall, density and coverage"
        warnings.warn(f"{few}, which are left out: they need {NEIGHBORS}", stacklevel=3)
    return {**found, "pairwise_distance": _spread(features[:_PAIRED])}


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


def compare(generated: ImageStatistics, real: ImageStatistics, floor: ImageStatistics | None = None) -> Metrics:
    """Compare generated images with real ones, and other real ones with those: the floor.

    Args:
        generated: samples.
        real: what they are compared with.
        floor: other real images, as many as there are samples; None where there are none. `num_samples_floor` tells another number.

    Returns:
        Figures, each with its floor: `frechet_distance` and `kernel_distance` to the real images; `precision`, `recall`, `density`
        and `coverage` against them; `pairwise_distance`, the mean between two images; `accuracy`, the share of images that the
        extractor names as their label; `inception_score`. Where statistics alone are known, there are the Frechet distance and
        what looks at no real image. `num_real` and `num_features` count the images behind the Frechet distance and behind
        comparisons of pairs. Warns of what is unreliable.
    """
    counts = [side.gaussian.count for side in (generated, real) if side.gaussian.count]
    if (doubt := unreliable(min(counts), len(generated.gaussian.mean))) is not None:
        warnings.warn(doubt, stacklevel=2)
    metrics: Metrics = {"num_samples": generated.gaussian.count}
    metrics |= {} if floor is None else compare_counts(floor.gaussian.count, generated.gaussian.count)
    metrics |= {"num_real": real.gaussian.count} if real.gaussian.count else {}
    metrics |= {"num_features": len(generated.features)} if generated.features is not None else {}
    for kind, side in (("", generated), ("_floor", floor)):
        if side is not None:
            found = {"frechet_distance": frechet_distance(side.gaussian, real.gaussian)}
            if side.features is not None and real.features is not None:
                found |= compare_features(side.features, real.features)
            metrics |= {f"{name}{kind}": value for name, value in found.items()}
    for name in ("accuracy", "inception_score"):
        figures = {"": getattr(generated, name), "_floor": getattr(real, name)}
        metrics |= {f"{name}{kind}": value for kind, value in figures.items() if value is not None and figures[""] is not None}
    return metrics


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
        known = torch.isin(test.labels, labels)
        shown = test if bool(known.all()) else ImageSet(test.images[known], test.labels[known], test.class_names)
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
