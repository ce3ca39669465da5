"""The figures of an evaluation: of points in the plane, of digits of 8 x 8 pixels, and of images.

Points and digits are few and small enough to compare all of them at once. Points are measured by their distance from the data, the
remaining drift and the share of every mode; digits by classifiers, their distance from the data and their nearest training digits.

Images are compared in the features of an extractor that took no part in their training, and in pixels. They come in batches, and
what is kept of them is small. Means and covariances, and with them the Frechet distance, are of every image. Whatever compares
pairs is of the features that are kept: of the first images of each side where those are too many for memory, so give images in an
order in which those stand for all.

Shapes: s samples, r real samples, c channels, h x w pixels, d features or pixels, f features kept, k classes or modes.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from drifting._progress import show_images
from drifting.data.dataset import NEIGHBORS
from drifting.data.images import ImageSet, LabeledSplit
from drifting.data.pixels import to_signed
from drifting.evaluation.extractors import Bytes, Extractor
from drifting.evaluation.statistics import (
    KEPT,
    PAIRED,
    Batch,
    ImageStatistics,
    by_chance,
    collect_statistics,
    images_of_labels,
    labels_in_shares,
    unknown_to,
    weights_in_shares,
)
from drifting.evaluation.tables import Metrics
from drifting.metrics.distances import (
    energy_distance,
    energy_distances,
    mean_distance,
    precision_recall,
    within_class_distance,
)
from drifting.metrics.frechet import (
    Gaussian,
    check_covariance,
    frechet_distance,
    gaussian_of,
    kernel_distance,
    unreliable,
)
from drifting.metrics.images import compare_colors, memorization, nearest

# (count, seed) -> samples
Sampler = Callable[[int, int], Tensor]

SEEDS = 5
# Number of points whose neighbors are compared.
_POINTS = 5000
DRIFT_BATCHES = 25


def evaluate_points(
    sampler: Sampler,
    real: Sampler,
    *,
    count: int,
    drift: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    endless: bool = True,
    modes: Float[Tensor, "k 2"] | None = None,
) -> Metrics:
    """Compare generated points with real ones: squared energy distance, remaining drift, and the share of every mode.

    Args:
        sampler: draws from the generator.
        real: draws real points; one half of a draw of twice the count is the reference, the other half makes the floor.
        count: number of points on each side.
        drift: (generated, positives) -> the raw drift of training.
        batch: number of points on each side of the drift, as in a training step, because its noise depends on it.
        endless: whether two draws of real points never share a point; in a finite set, only the halves of one draw never do.
        modes: centers of equally likely parts of the distribution.

    Returns:
        `energy_distance` and its floor (medians over all pairs of 5 draws on each side: one pair alone is off by a factor of two
        either way); `drift_norm`, the mean square of the drift, and `drift_length`, its mean Euclidean length, with their floors
        (means over 25 batches); `precision`, `recall`, `density` and `coverage` of the first 5,000 points with their floors;
        `mode_shares`, each relative to its true share.
    """
    references, others = zip(*(real(2 * count, seed).split(count) for seed in range(SEEDS)), strict=True)
    samples = [sampler(count, seed) for seed in range(SEEDS)]
    distances, floors = energy_distances([*samples, *others], references).split(SEEDS)
    metrics: Metrics = {
        "num_samples": count,
        "energy_distance": distances.quantile(0.5).item(),
        "energy_distance_floor": (floors if endless else floors.diagonal()).quantile(0.5).item(),
    }
    metrics |= _remaining_drift(sampler, real, drift, batch)
    found = (compare_neighbors(points[:_POINTS], references[0][:_POINTS], "points") for points in (samples[0], others[0]))
    metrics |= _with_floors(*found)
    if modes is not None:
        metrics["mode_shares"] = mode_shares(samples[0], modes).tolist()
    return metrics


def _remaining_drift(sampler: Sampler, real: Sampler, drift: Callable[[Tensor, Tensor], Tensor], batch: int) -> Metrics:
    figures = []
    for seed in range(DRIFT_BATCHES):
        positives, fresh = real(2 * batch, seed).split(batch)
        for generated in (sampler(batch, seed), fresh):
            vectors = drift(generated, positives)
            figures.append(torch.stack([vectors.square().mean(), vectors.norm(dim=1).mean()]))
    (norm, length), (norm_floor, length_floor) = torch.stack(figures).unflatten(0, (-1, 2)).mean(0).tolist()
    return {"drift_norm": norm, "drift_norm_floor": norm_floor, "drift_length": length, "drift_length_floor": length_floor}


def mode_shares(samples: Float[Tensor, "s 2"], modes: Float[Tensor, "k 2"]) -> Float[Tensor, " k"]:
    """Return the share of samples nearest to each mode, relative to an equal share: 1 is right, 0 a missing mode."""
    modes_of = torch.cdist(samples, modes, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return torch.bincount(modes_of, minlength=len(modes)) * len(modes) / len(samples)


def evaluate_digits(sampler: Sampler, split: LabeledSplit) -> Metrics:
    """Compare generated digits, with classes in turn, with real ones: their labels, their distribution, and whether they are new.

    Returns:
        `nearest_neighbor_accuracy` and `logistic_accuracy`: share of samples that classifiers fit on the training digits name as
        their label (the floors: the same for held-out digits). `within_class_distance`: mean distance between two digits of a label
        (floor: of held-out digits); digits that are all alike can be recognized, but have a distance of 0. `energy_distance` to the
        held-out digits (floor: of the training digits). `precision`, `recall`, `density` and `coverage` of the held-out digits
        (floors: of the training digits). `nearest_distance`: median distance to the nearest training digit (floor: of held-out
        digits).
    """
    train, held_out = split.train.flatten(1), split.held_out.flatten(1)
    samples = sampler(len(train), 0).flatten(1)
    labels = torch.arange(len(samples)) % 10
    metrics: Metrics = {"num_samples": len(samples)}
    for name, classifier in _classifiers().items():
        classifier.fit(train, split.train_labels)
        metrics[f"{name}_accuracy"] = float(classifier.score(samples, labels))
        metrics[f"{name}_accuracy_floor"] = float(classifier.score(held_out, split.held_out_labels))
    metrics["within_class_distance"] = within_class_distance(samples, labels) or 0.0
    metrics["within_class_distance_floor"] = within_class_distance(held_out, split.held_out_labels) or 0.0
    metrics["energy_distance"] = energy_distance(samples, held_out)
    metrics["energy_distance_floor"] = energy_distance(train, held_out)
    metrics |= _with_floors(*(compare_neighbors(digits, held_out, "digits") for digits in (samples, train)))
    metrics["nearest_distance"] = _nearest(samples, train)
    metrics["nearest_distance_floor"] = _nearest(held_out, train)
    return metrics


def _classifiers() -> dict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    return {"nearest_neighbor": KNeighborsClassifier(1), "logistic": LogisticRegression(max_iter=2000)}


def _nearest(samples: Float[Tensor, "s d"], real: Float[Tensor, "r d"]) -> float:
    return float(nearest(samples, real)[0].median())


Floor = Callable[[int, ImageStatistics], ImageStatistics | None]
# (count, labels) -> that many images in batches, of these labels in turn, or of all classes in turn
ImageSampler = Callable[[int, Sequence[int] | None], Iterable[Batch]]

# The list of labels repeats after this many samples, so that memory does not grow with their number.
_PERIOD = 100_000


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The two sets of real images of an evaluation: the reference, and others that make the floor.

    Attributes:
        name: name of the reference, shown beside the figures.
        reference: batch size -> statistics of the reference.
        floor: batch size and statistics of the reference -> statistics of images outside the reference; None, with a warning, if
            there are none.
        count: number of samples to draw.
        shares: labels of the reference, whose shares the samples have; None if they are unknown.
        keep: number of images whose features are kept.
        pixels: comparisons of the pixels, if all images are in memory.
    """

    name: str
    reference: Callable[[int], ImageStatistics]
    floor: Floor
    count: int
    shares: Int[Tensor, " r"] | None = None
    keep: int = KEPT
    pixels: "Pixels | None" = None


class Pixels:
    """Comparisons of the pixels of images that are all in memory: colors and copies.

    Args:
        train: training images of the generator.
        test: other real images.
        others: real images for a floor.
    """

    def __init__(self, train: ImageSet, test: ImageSet, others: Bytes) -> None:
        self._train, self._test, self._others, self._collected = train, test, others, list[Bytes]()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield samples and remember them, without labels if the test set has none."""
        for images, labels in batches:
            self._collected.append(images.cpu())
            yield images, labels if self._test.labels is not None else None

    def figures(self) -> Metrics:
        """Return the figures of the samples that `watch` yielded."""
        generated = torch.cat(self._collected)
        return _colors(generated, self._others, self._test) | _copies(generated, self._train, self._test)


def evaluate_images(sampler: ImageSampler, sides: Sides, extractor: Extractor, *, batch_size: int) -> Metrics:
    """Generate images in batches and compare them with real ones.

    Args:
        sampler: draws from the generator, with labels in the shares of the reference if those are known.
        sides: real images to compare with, see `references`.
        extractor: feature space.
        batch_size: number of real images at a time.

    Returns:
        The figures of `compare` and, where all images are in memory, each with its floor: of gray and color images `color_mean`,
        `color_std` (of each channel, in [-1, 1]; the floor is the test set's), `histogram_distance`, see `metrics.compare_colors`;
        `nearest_distance` and `copy_share` in the space of pixels, see `metrics.Memorization`.

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
    """Return the number of images of a floor and warn if it is not the number of samples; return nothing if it is."""
    if floor == count:
        return {}
    too = f"the floor is of {floor} real images and so too large for {count} samples"
    warnings.warn(f"{too}: compare with it at --num-samples {floor}", stacklevel=3)
    return {"num_samples_floor": floor}


def compare_features(features: Float[Tensor, "s d"], real: Float[Tensor, "r d"]) -> dict[str, float]:
    """Return every figure of features except the Frechet distance, see `compare`; those of neighbors need enough images."""
    found = {"kernel_distance": kernel_distance(features, real), **compare_neighbors(features, real, "images")}
    return {**found, "pairwise_distance": _spread(features[:PAIRED])}


def compare_neighbors(samples: Float[Tensor, "s d"], real: Float[Tensor, "r d"], what: str) -> dict[str, float]:
    """Return precision, recall, density and coverage; nothing, with a warning, of too few samples. `what` names them in it."""
    if min(len(samples), len(real)) >= NEIGHBORS:
        return precision_recall(samples, real)._asdict()
    few = f"{len(samples)} {what} against {len(real)} are too few for precision, recall, density and coverage"
    warnings.warn(f"{few}, which are left out: they need {NEIGHBORS}", stacklevel=4)
    return {}


def _with_floors(figures: Mapping[str, float], floors: Mapping[str, float]) -> Metrics:
    """Return figures, each followed by its floor."""
    return {key: value for name in figures for key, value in ((name, figures[name]), (f"{name}_floor", floors[name]))}


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
    """Compare generated images with real ones, and other real images with the same ones for the floor.

    Args:
        generated: statistics of samples.
        real: statistics of the reference.
        floor: statistics of as many other real images; `num_samples_floor` is their number if it differs. None for no floor.

    Returns:
        Figures, each with its floor: `frechet_distance` and `kernel_distance` to the real images; `precision`, `recall`, `density`
        and `coverage` against them; `pairwise_distance`, the mean between two images; `accuracy`, the share of images that the
        extractor names as their label; `within_class_distance`, the mean between two images of a label; `inception_score`. Where
        statistics alone are known, there are the Frechet distance and what looks at no real image. `num_real` and `num_features`
        count the images behind the Frechet distance and behind comparisons of pairs. Warns of what is unreliable.
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
    for name in ("accuracy", "within_class_distance", "inception_score"):
        # Real images without others to compare them with have no floor of any distance.
        has_floor = name != "within_class_distance" or floor is not None
        figures = {"": getattr(generated, name), "_floor": getattr(real, name) if has_floor else None}
        metrics |= {f"{name}{kind}": value for kind, value in figures.items() if value is not None and figures[""] is not None}
    return metrics


def frechet_curve(
    snapshots: Mapping[int, Bytes], train: ImageSet, test: ImageSet, extractor: Extractor, real: Gaussian | None = None
) -> Metrics:
    """Return the Frechet distance to the test set at every snapshot.

    Args:
        snapshots: step -> samples, the same number for every step, with the classes of the training set in turn if there are any.
            The samples of a class are weighted by its share of the test set. If there are more classes than samples, both sides
            leave out the other classes. Distances fall with the number of samples, so compare them only with the floor.
        train: training images; as many of them as samples make the floor.
        test: test images.
        extractor: feature space. Images that it was trained on make no floor.
        real: Gaussian of the features of the whole test set, if it is known.

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
