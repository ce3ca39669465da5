"""Statistics of images, mean and covariance of their features and some of the features, and choices of images by their classes.

Statistics of real images are also files: kept by their fingerprint, written by this library, or published by others. Ours are
safetensors with `mean`, `covariance` (or `root`) and `count`, and `features` and `digests` where some are kept; published ones are
.npz with `mu` and `sigma`, as those of ADM and pytorch-fid are, which are read as arrays alone: nothing in them is run.

A set of images with other shares of its classes is far from a reference however good each image is, so both sides of a comparison
have the shares of the reference. Copies of an image are found by its digest, a checksum of its pixels.

Shapes: r real images of the reference, s images to choose from, f chosen ones, n labels, c channels, h x w pixels, d features.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from torch import Tensor

from drifting._files import check_writable
from drifting._torch import stream_seed
from drifting.data.bank import ranks
from drifting.data.sources import shuffled_indices
from drifting.errors import InputError, reason
from drifting.evaluation.extractors import Bytes, Extractor
from drifting.metrics.distances import within_class_distance
from drifting.metrics.frechet import Gaussian, RunningGaussian, load_gaussian, save_gaussian
from drifting.metrics.inception import RunningInceptionScore

# Images, and their labels if they have any.
Batch = tuple[Bytes, Int[Tensor, " s"] | None]

# Number of images whose features are kept if the images do not fit into memory.
KEPT = 10_000
# Largest number of images whose distances from each other are computed.
PAIRED = 2000
# Number of features that are added to a covariance at a time; each time takes d x d more numbers.
_BLOCK = 2048

SUFFIXES = (".safetensors", ".npz")
_TENSORS = ("features", "digests")
_FIGURES = ("accuracy", "within_class_distance", "inception_score")
# Largest asymmetry of a covariance relative to its largest entry; rounding leaves less.
_ASYMMETRY = 1e-4

_SEED, _FLOOR_SEED = stream_seed(0, "shares"), stream_seed(0, "floor")
# Golden ratio: its multiples, modulo 1, fill the unit interval evenly.
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Statistics of images in the features of an extractor.

    Attributes:
        gaussian: mean and covariance of the features of all images.
        features: features of the first images; None if they are unknown.
        accuracy: share of images that the extractor classifies correctly; None without labels or classes.
        within_class_distance: mean distance between two of the first features of a class; None if their classes are unknown.
        inception_score: Inception Score of all images; None for an extractor without one.
        digests: digests of all images, see `digests`; None if they were not requested or are unknown.
    """

    gaussian: Gaussian
    features: Float[Tensor, "f d"] | None = None
    accuracy: float | None = None
    within_class_distance: float | None = None
    inception_score: float | None = None
    digests: Int[Tensor, " s"] | None = None


def collect_statistics(
    batches: Iterable[Batch], extractor: Extractor, *, keep: int = KEPT, remember: bool = False
) -> ImageStatistics:
    """Return the statistics of images in batches; no batch is kept in memory when the next one is requested.

    Args:
        batches: batches of any sizes, with at least two images in all.
        extractor: feature space.
        keep: number of images whose features are kept.
        remember: keep digests of the images, to find copies of them.

    Raises:
        InputError: for fewer than two images, or features that are not finite.
    """
    gaussian, score, kept = RunningGaussian(), RunningInceptionScore(), list[Tensor]()
    block, known, classes, hits, labeled = list[Tensor](), list[Tensor](), list[Tensor](), 0, 0
    for images, labels in batches:
        features = extractor.embed(images).cpu()
        block.append(features)
        if sum(map(len, block)) >= _BLOCK:
            gaussian.add(torch.cat(block))
            block.clear()
        if (wanted := keep - sum(map(len, kept))) > 0:
            kept.append(features[:wanted].clone())
            classes += [] if labels is None else [labels.cpu()[:wanted]]
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
    return ImageStatistics(
        gaussian.gaussian(),
        torch.cat(kept) if kept else None,
        accuracy=hits / labeled if labeled else None,
        within_class_distance=_within_classes(kept, classes),
        inception_score=None if extractor.probabilities is None else score.score(),
        digests=torch.cat(known) if known else None,
    )


def _within_classes(features: Sequence[Tensor], labels: Sequence[Tensor]) -> float | None:
    """Return the mean distance between two features of a class, of the first images; None if some have no label."""
    if not labels or len(labels) < len(features):
        return None
    return within_class_distance(torch.cat(list(features))[:PAIRED], torch.cat(list(labels))[:PAIRED])


def cached_statistics(path: Path, fingerprint: str, compute: Callable[[], ImageStatistics]) -> ImageStatistics:
    """Return what is kept in a file, or compute and write it if the file is missing, damaged or of another fingerprint.

    Args:
        path: a .safetensors file.
        fingerprint: everything that the statistics depend on: images, their order, how many are kept, and the extractor.
        compute: collects the statistics.

    Raises:
        InputError: before it is computed, if it could not be written.
    """
    with suppress(InputError):
        kept, found = load_statistics(path)
        if found == fingerprint:
            return kept
    check_writable(path.parent, "path")
    if path.is_dir():
        raise InputError(f"path is '{path}', a folder where a file belongs: delete it")
    kept = compute()
    save_statistics(path, kept, fingerprint=fingerprint)
    return kept


def save_statistics(path: Path, statistics: ImageStatistics, *, fingerprint: str = "") -> None:
    """Write statistics to one safetensors file, atomically; `metrics.frechet.load_gaussian` reads it as well."""
    figures = {name: value for name in _FIGURES if (value := getattr(statistics, name)) is not None}
    more = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
    more |= {name: kept.contiguous() for name in _TENSORS if (kept := getattr(statistics, name)) is not None}
    save_gaussian(path, statistics.gaussian, fingerprint=fingerprint, more=more)


def load_statistics(path: Path) -> tuple[ImageStatistics, str]:
    """Return statistics and their fingerprint; raises InputError if the file is missing, damaged or something else."""
    statistics, fingerprint = _load(path)
    _check(statistics, f"path is '{path}'")
    return statistics, fingerprint


def _load(path: Path) -> tuple[ImageStatistics, str]:
    gaussian, fingerprint = load_gaussian(path)
    with safe_open(path, "pt") as file:
        known = set(file.keys())
        kept = {name: file.get_tensor(name).clone() for name in _TENSORS if name in known}
        figures = {name: file.get_tensor(name) for name in _FIGURES if name in known}
    if any(value.numel() != 1 for value in figures.values()):
        raise InputError(f"path is '{path}', whose {' and '.join(figures)} are not single numbers: delete it and compute it again")
    known_figures = {name: float(value) for name, value in figures.items()}
    return ImageStatistics(gaussian, kept.get("features"), **known_figures, digests=kept.get("digests")), fingerprint


def read_statistics(path: Path) -> ImageStatistics:
    """Return the statistics of a .safetensors or .npz file; raises InputError if it is damaged or holds something else."""
    if not path.is_file():
        raise InputError(
            f"real is '{path}', which is not a file: name a folder of images, or statistics of them ({', '.join(SUFFIXES)})"
        )
    try:
        statistics = ImageStatistics(_published(path)) if path.suffix == ".npz" else _load(path)[0]
    except InputError as error:
        raise InputError(f"real is '{path}', which holds no statistics ({error}): name another file") from None
    _check(statistics, f"real is '{path}'")
    return statistics


def _check(statistics: ImageStatistics, called: str) -> None:
    """Raise InputError unless the statistics are valid."""
    gaussian = statistics.gaussian
    name, spread = gaussian.parts()
    size = len(gaussian.mean) if gaussian.mean.ndim == 1 else 0
    if not size or spread.ndim != 2 or len(spread) != size or (name == "covariance" and spread.shape[1] != size):
        shapes = f"{tuple(gaussian.mean.shape)} and {tuple(spread.shape)}"
        raise InputError(f"{called}, whose mean and {name} are {shapes}: pass [d] and [d, d]")
    if not (gaussian.mean.isfinite().all() and spread.isfinite().all()):
        raise InputError(f"{called}, whose statistics are not finite: fetch or compute them again")
    if name == "covariance" and (
        float((spread - spread.T).abs().max()) > _ASYMMETRY * float(spread.abs().max()) or float(spread.diagonal().min()) < 0
    ):
        raise InputError(f"{called}, whose covariance is none, not symmetric or with a negative variance: name another file")
    if statistics.features is not None and (
        statistics.features.shape[1:] != gaussian.mean.shape or not statistics.features.isfinite().all()
    ):
        raise InputError(f"{called}, whose features do not fit its mean or are not finite: compute them again")


def _published(path: Path) -> Gaussian:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in ("mu", "sigma")]
        if any(np.iscomplexobj(array) for array in arrays):
            raise InputError("mu or sigma is complex")
        mean, covariance = (torch.from_numpy(np.asarray(array, np.float64)) for array in arrays)
    except KeyError:
        raise InputError("no mu and sigma") from None
    # Every layer below (zip, its compression, the header of an array, memory) raises errors of its own classes.
    except Exception as error:
        raise InputError(reason(error)) from None
    return Gaussian(mean, covariance, 0)


def check_feature_size(extractor: Extractor, shape: tuple[int, int, int], real: ImageStatistics, origin: str) -> None:
    """Raise InputError unless the statistics have as many features as the extractor for images of a shape."""
    (size,) = extractor.embed(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1:]
    if size != len(real.gaussian.mean):
        numbers = f"are of {len(real.gaussian.mean)} features, but the extractor {extractor.name} has {size}"
        raise InputError(f"real is '{origin}', whose statistics {numbers}: name those of this extractor")


def labels_in_shares(reference: Int[Tensor, " r"], count: int) -> Int[Tensor, " n"]:
    """Return `count` labels in which the share of every class is that in the reference, within one image.

    The first labels of them are in about the same shares. Classes that are all equally frequent come in turn: 0, 1, 2, 0, 1, 2.
    """
    ordered = reference.long().sort().values
    classes, frequencies = ordered.unique(return_counts=True)
    if int(frequencies.min()) == int(frequencies.max()):
        return classes[torch.arange(count) % len(classes)]
    places = ((torch.arange(count, dtype=torch.float64) + 0.5) * (len(ordered) / count)).long()
    chosen = ordered[places.clamp_(max=len(ordered) - 1)]
    counts, offset = chosen.bincount(), torch.arange(int(chosen.max()) + 1, dtype=torch.float64) * _GOLDEN % 1
    return chosen[((ranks(chosen) + offset[chosen]) / counts[chosen]).argsort(stable=True)]


def images_in_shares(labels: Int[Tensor, " s"], reference: Int[Tensor, " r"], count: int) -> Int[Tensor, " n"]:
    """Return the indices of at most `count` different images with the class shares of a reference, in random order.

    They are none if a class of the reference has no image here. The first ones are in about the same shares.
    """
    shares = reference.bincount()
    there, needed = labels.bincount(minlength=len(shares))[: len(shares)], shares > 0
    reached = int((there * len(reference))[needed].div(shares[needed], rounding_mode="floor").min())
    if (count := min(count, reached)) < 1 or len(labels) == 0:
        return torch.empty(0, dtype=torch.long)
    return images_of_labels(labels, labels_in_shares(reference, count))


def images_of_labels(labels: Int[Tensor, " s"], wanted: Int[Tensor, " n"]) -> Int[Tensor, " f"]:
    """Return the index of a different random image for each wanted label; fewer if a class has too few images."""
    if len(labels) == 0:
        return torch.empty(0, dtype=torch.long)
    there = labels.bincount(minlength=int(wanted.max()) + 1)
    order = shuffled_indices(len(labels), 0, len(labels), _SEED)
    by_class = order[labels[order].argsort(stable=True)]
    rank = ranks(wanted)
    enough = rank < there[wanted]
    return by_class[((there.cumsum(0) - there)[wanted] + rank)[enough]]


def weights_in_shares(labels: Int[Tensor, " n"], reference: Int[Tensor, " r"]) -> Float[Tensor, " n"]:
    """Return weights of images with which every class has its share in the reference."""
    size = int(torch.cat([labels, reference]).max()) + 1
    return (reference.bincount(minlength=size) / len(reference) / labels.bincount(minlength=size).clamp(min=1))[labels]


def by_chance(total: int, count: int) -> Int[Tensor, " f"]:
    """Return the indices of at most `count` of `total` images, in random order."""
    return shuffled_indices(max(1, total), 0, min(count, total), _FLOOR_SEED)


def unknown_to(known: Int[Tensor, " t"] | None, images: UInt8[Tensor, "s c h w"]) -> Int[Tensor, " u"]:
    """Return the indices of the images whose digests are not among the known ones."""
    if known is None:
        return torch.arange(len(images))
    return (~torch.isin(digests(images), known)).nonzero()[:, 0]


def digests(images: UInt8[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    """Return a 64-bit hash of the pixels of every image."""
    found = [hashlib.blake2b(image.contiguous().numpy().data, digest_size=8).digest() for image in images.cpu()]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in found], dtype=torch.long)
