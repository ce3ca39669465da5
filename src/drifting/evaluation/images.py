"""Images, seen through an extractor that took no part in their training: distance, fidelity, diversity, labels, colors, copies.

Images are seen in batches: what is kept of them is small. Means and covariances, and with them the Frechet distance, are of every
image. Whatever compares pairs is of the features that are kept: of the first images of each side where those are too many for
memory, so give images in an order in which those stand for all.

Shapes: s samples, r real images, c channels, h x w pixels, d features, f features kept, k classes.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from drifting._progress import show_images
from drifting.data.facts import NEIGHBORS
from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.errors import InputError
from drifting.evaluation.base import Metrics
from drifting.evaluation.shares import digests, labels_in_shares
from drifting.metrics.color import compare_colors
from drifting.metrics.distances import mean_distance
from drifting.metrics.frechet import (
    Gaussian,
    RunningGaussian,
    check_covariance,
    frechet_distance,
    kernel_distance,
    unreliable,
)
from drifting.metrics.inception import RunningInceptionScore
from drifting.metrics.memorization import memorization
from drifting.metrics.precision_recall import precision_recall

Bytes = UInt8[Tensor, "s c h w"]

# Images, and the label of each where they have any.
Batch = tuple[Bytes, Int[Tensor, " s"] | None]
# (count, labels) -> that many images in batches, of these labels in turn, or of all classes in turn
ImageSampler = Callable[[int, Sequence[int] | None], Iterable[Batch]]

# Features of so many images are kept, where the images do not fit into memory.
KEPT = 10_000
# Features are added to a covariance by so many: each time costs d x d numbers more.
_BLOCK = 2048
# Labels of samples are listed for so many, and over again for more: memory does not grow with their number.
_PERIOD = 100_000
# Images whose distances from each other are looked at, at most.
_PAIRED = 2000


@dataclass(frozen=True)
class Extractor:
    """A feature space to measure in, and who names the classes.

    Attributes:
        name: shown beside the figures; with the weights it makes the name of cached statistics.
        embed: images -> features.
        classify: images -> the label of each; None for an extractor that knows no labels.
        cache: folder for statistics of real data; None to compute them anew.
        probabilities: images -> those of the classes on which the Inception Score is defined; None for any other extractor.
        trained_on: digests of the images that it was trained on, see `shares.digests`, which make no floor; None for none.
    """

    name: str
    embed: Callable[[Bytes], Float[Tensor, "s d"]]
    classify: Callable[[Bytes], Int[Tensor, " s"]] | None = None
    cache: Path | None = None
    probabilities: Callable[[Bytes], Float[Tensor, "s k"]] | None = None
    trained_on: Int[Tensor, " t"] | None = None


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What samples are compared with: a reference of real images, and other real ones, which make the floor.

    Attributes:
        name: of the reference, shown beside the figures.
        look: (batch size) -> the reference, looked at so many images at a time.
        floor: (batch size, reference) -> the floor, of images that are none of the reference; None, with a warning, where there are
            none.
        count: how many samples to make.
        shares: classes of the run, in whose shares samples are made; None where they are not known.
        keep: features of how many are kept.
        pixels: what is compared of the images themselves, where all of them are in memory.
    """

    name: str
    look: Callable[[int], "Seen"]
    floor: "Floor"
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
        self._train, self._test, self._others, self._seen = train, test, others, list[Bytes]()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass samples on and remember them; without labels where the test set has none, by which no figure could be compared."""
        for images, labels in batches:
            self._seen.append(images.cpu())
            yield images, labels if self._test.labels is not None else None

    def figures(self) -> Metrics:
        """Return the figures of the samples that were passed on."""
        generated = torch.cat(self._seen)
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
    real = sides.look(batch_size)
    others = sides.floor(batch_size, real)
    samples = show_images(sampler(sides.count, labels), sides.count, what="samples")
    watched = samples if sides.pixels is None else sides.pixels.watch(samples)
    metrics = compare(see(watched, extractor, keep=sides.keep), real, others)
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


@dataclass(frozen=True, eq=False)
class Seen:
    """What is kept of images.

    Attributes:
        gaussian: mean and covariance of the features of all.
        features: of the first ones; None where only statistics are known.
        accuracy: share that the extractor names as their label; None where there are no labels or it knows none.
        inception_score: of all, see `metrics.inception_score`; None for an extractor that has none.
        digests: of all, see `shares.digests`; None where they were not asked for or are not known.
    """

    gaussian: Gaussian
    features: Float[Tensor, "f d"] | None = None
    accuracy: float | None = None
    inception_score: float | None = None
    digests: Int[Tensor, " s"] | None = None


Floor = Callable[[int, Seen], Seen | None]


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
        Figures, each with its floor: `frechet_distance` and `kernel_distance` to the real images; `precision`, `recall`, `density`
        and `coverage` against them; `pairwise_distance`, the mean between two images; `accuracy`, the share of images that the
        extractor names as their label; `inception_score`. Where statistics alone are known, there are the Frechet distance and
        what looks at no real image. `num_real` and `num_features` count the images behind the Frechet distance and behind
        comparisons of pairs. Warns of what is unreliable.
    """
    counts = [seen.gaussian.count for seen in (generated, real) if seen.gaussian.count]
    if (doubt := unreliable(min(counts), len(generated.gaussian.mean))) is not None:
        warnings.warn(doubt, stacklevel=2)
    metrics: Metrics = {"num_samples": generated.gaussian.count}
    metrics |= {} if floor is None else compare_counts(floor.gaussian.count, generated.gaussian.count)
    metrics |= {"num_real": real.gaussian.count} if real.gaussian.count else {}
    metrics |= {"num_features": len(generated.features)} if generated.features is not None else {}
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
