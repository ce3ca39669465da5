"""Labels of samples, and real images of a floor, with the same shares of classes as a reference.

A set of images with other shares of its classes is far from a reference however good each image is, so both sides of a comparison
have the shares of the reference. What stands for an image is a checksum of its pixels, by which copies are found.

Shapes: r real images of the reference, s images to choose from, f chosen ones, n labels, c channels, h x w pixels.
"""

import hashlib

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from drifting._seeds import stream_seed
from drifting.data.sources import shuffled_indices

_SEED, _FLOOR_SEED = stream_seed(0, "shares"), stream_seed(0, "floor")

# Golden ratio: its multiples, modulo 1, fill the unit interval evenly.
_GOLDEN = (5**0.5 - 1) / 2


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
    return chosen[((_rank(chosen) + offset[chosen]) / counts[chosen]).argsort(stable=True)]


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
    rank = _rank(wanted)
    enough = rank < there[wanted]
    return by_class[((there.cumsum(0) - there)[wanted] + rank)[enough]]


def weights_in_shares(labels: Int[Tensor, " n"], reference: Int[Tensor, " r"]) -> Float[Tensor, " n"]:
    """Return weights of images with which every class has its share in the reference."""
    size = int(torch.cat([labels, reference]).max()) + 1
    return (reference.bincount(minlength=size) / len(reference) / labels.bincount(minlength=size).clamp(min=1))[labels]


def _rank(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the number of equal labels before each label."""
    counts, order = labels.bincount(), labels.argsort(stable=True)
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return rank


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
