"""Comparisons of images: do samples have the colors of real images, and are they new or copies of training data?

**Colors**, that is brightness, contrast and palette:

    histogram_distance = 1/2 sum over bins |share in generated - share in real|      (total variation, in [0, 1])

over 8 x 8 x 8 bins of red, green and blue. It ignores shapes, but it is a cheap check for washed-out, tinted or collapsed samples.
Values are clamped to [-1, 1], as in a saved picture.

**Memorization.** Every sample is compared with its nearest training sample, and so is held-out real data, which cannot be a copy
and gives the floor:

    distance = median over samples of min over train |sample - train|      copy_share = share of samples at or below q,

with q the 1 % quantile of the same minimum of the test data. Well below the floor, or a share far above it, means copies.

The search for the nearest sample takes nearly all of the time. A few directions rule out most pairs. With P the projection on them,

    |Px - Py|^2 + (r_x - r_y)^2  <=  |x - y|^2,    r_x = |x - Px|,

so a pair whose bound exceeds a distance found before need not be measured. The result is exact for any directions. The principal
directions of the training data are best: for CIFAR-10, 256 of 3,072 directions leave 10 of 50,000 pairs.

Source: Swain and Ballard, "Color indexing" (1991): 1 - histogram intersection; the nearest-neighbor test of Meehan, Chaudhuri and
Dasgupta, "A non-parametric test to detect data-copying in generative models" (2020), reduced to one cell and one quantile.

Shapes: n generated images, c channels (3, or 1 for gray, with 8 bins), h x w pixels, values in [-1, 1]; s samples, m training
samples, t test samples, d features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting._checks import exact_products, full_precision
from drifting.errors import InputError
from drifting.metrics.distances import ROUNDING, Pairs, check_features, nearest_pairs

# Bins of a color, and values of a chunk of images.
BINS, _CHUNK = 8, 2**22


@dataclass(frozen=True)
class ColorComparison:
    """Colors of two sets of images, in the units of [-1, 1].

    Attributes:
        mean, std: mean and standard deviation per channel over all generated pixels, so `std` includes contrast within and between
            images.
        real_mean, real_std: the same for the real images.
        histogram_distance: total variation of the two palettes: 0 if they are equal, 1 if they have no color in common.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    real_mean: tuple[float, ...]
    real_std: tuple[float, ...]
    histogram_distance: float


def compare_colors(generated: Float[Tensor, "n c h w"], real: Float[Tensor, "m c height width"]) -> ColorComparison:
    """Compare the colors of generated and real images, whose counts and sizes may differ.

    Raises:
        InputError: if the channels differ, or images are not floating, finite, [n, c, h, w] and of 1 or 3 channels.
    """
    _check(generated, "generated")
    _check(real, "real")
    if generated.shape[1] != real.shape[1]:
        raise InputError(f"generated has {generated.shape[1]} channels and real {real.shape[1]}: make both gray, or both color")
    (mean, std), (real_mean, real_std) = color_statistics(generated), color_statistics(real)
    difference = color_histogram(generated) - color_histogram(real)
    return ColorComparison(
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        real_mean=tuple(real_mean.tolist()),
        real_std=tuple(real_std.tolist()),
        histogram_distance=float(difference.abs().sum()) / 2,
    )


@torch.no_grad()
def color_statistics(images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return the mean and the standard deviation of every channel over all pixels of all images, in float64."""
    _check(images, "images")
    count = images.numel() // images.shape[1]
    mean = torch.stack([part.sum(1) for part in _pixels(images)]).sum(0) / count
    squares = torch.stack([(part - mean[:, None]).square().sum(1) for part in _pixels(images)]).sum(0)
    return mean, (squares / count).sqrt()


@torch.no_grad()
def color_histogram(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "*bins"]:
    """Return the share of pixels in each of 8 x 8 x 8 equal color bins of [-1, 1]^3, as [8, 8, 8] ([8] for gray) in float64."""
    _check(images, "images")
    channels = images.shape[1]
    places = BINS ** torch.arange(channels - 1, -1, -1, device=images.device)
    counts = torch.zeros(BINS**channels, dtype=torch.long, device=images.device)
    for part in _pixels(images):
        levels = ((part.clamp(-1, 1) + 1) * (BINS / 2)).long().clamp(max=BINS - 1)
        counts += torch.bincount((levels * places[:, None]).sum(0), minlength=BINS**channels)
    return (counts.double() / counts.sum()).unflatten(0, (BINS,) * channels)


def _pixels(images: Float[Tensor, "n c h w"]) -> Iterator[Float[Tensor, "c pixels"]]:
    for part in images.split(max(1, _CHUNK // images[0].numel())):
        yield part.transpose(0, 1).flatten(1).double()


def _check(images: Tensor, name: str) -> None:
    if images.ndim != 4 or images.numel() == 0 or images.shape[1] not in (1, 3):
        raise InputError(f"{name} has the shape {tuple(images.shape)}: pass images [n, c, h, w] of 1 or 3 channels")
    if not images.is_floating_point():
        raise InputError(f"{name} is {images.dtype}: pass floating point images in [-1, 1], which is bytes / 127.5 - 1")
    if not images.isfinite().all():
        raise InputError(f"{name} has a value that is not finite: the generator has diverged, use an earlier checkpoint")


# Number of directions, and smallest numbers of samples and features for which they save time.
_DIRECTIONS, _MANY_SAMPLES, _MANY_FEATURES = 256, 2000, 512
# Number of training samples from which the directions are computed.
_CHOOSING = 5000
# Relative tolerance of squared lengths, far above the rounding error of a bound.
_SLACK = 1e-4
# Rows with more remaining pairs are searched without directions.
_MOST_PAIRS = 500


@dataclass(frozen=True, eq=False)
class Memorization:
    """How close samples are to the training data, compared with held-out data.

    Attributes:
        distance: median distance of a sample to its nearest training sample, in the units of the features.
        distance_floor: the same for the test data.
        copy_share: share of samples at most as far from a training sample as the nearest 1 % of the test data.
        copy_share_floor: the same for the test data: about 0.01, 1 / t for few test data, more if real data repeat.
        distances: distance of every sample to its nearest training sample.
        indices: index of that training sample.
    """

    distance: float
    distance_floor: float
    copy_share: float
    copy_share_floor: float
    distances: Float[Tensor, " s"]
    indices: Int[Tensor, " s"]


@torch.no_grad()
def memorization(
    samples: Float[Tensor, "s d"], train: Float[Tensor, "m d"], test: Float[Tensor, "t d"], *, quantile: float = 0.01
) -> Memorization:
    """Compare samples and test data with their nearest training samples.

    Args:
        samples: features of samples, or flattened images.
        train: features of all training data of the generator.
        test: features of real data that the generator was not trained on.
        quantile: share of the test data, in [0, 1], that counts as suspiciously close.

    Raises:
        InputError: if the feature sizes differ, a set is empty, a value is not finite or the quantile is not a share.
    """
    check_features(samples=samples, train=train, test=test)
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile is {quantile}: pass a share of the test data, between 0 and 1")
    # In one call, to prepare the training samples once.
    both, found = _nearest(torch.cat([samples, test]), train)
    distances, real, indices = both[: len(samples)], both[len(samples) :], found[: len(samples)]
    # One of the distances, so that equal distances count.
    threshold = real.sort().values[int(quantile * (len(real) - 1))] * (1 + ROUNDING)
    return Memorization(
        distance=float(distances.quantile(0.5)),
        distance_floor=float(real.quantile(0.5)),
        copy_share=float((distances <= threshold).double().mean()),
        copy_share_floor=float((real <= threshold).double().mean()),
        distances=distances,
        indices=indices,
    )


@torch.no_grad()
def nearest(samples: Float[Tensor, "s d"], train: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " s"], Int[Tensor, " s"]]:
    """Return the Euclidean distance of every sample to its nearest training sample, in float64, and its index.

    The distance to a copy is exactly 0. Among equal distances, the index is the first.

    Raises:
        InputError: if the feature sizes differ, a set is empty or a value is not finite.
    """
    check_features(samples=samples, train=train)
    return _nearest(samples, train)


def _nearest(samples: Float[Tensor, "s d"], train: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " s"], Int[Tensor, " s"]]:
    if min(len(samples), len(train)) < _MANY_SAMPLES or samples.shape[1] < _MANY_FEATURES:
        return nearest_pairs(samples, train)
    # Rounded to TF32, the bounds would rule out nearest samples.
    with exact_products():
        distances, indices, left = _by_directions(samples, train)
    if len(left) > 0:
        distances[left], indices[left] = nearest_pairs(samples[left], train)
    return distances, indices


def _by_directions(
    samples: Float[Tensor, "s d"], train: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, " s"], Int[Tensor, " s"], Int[Tensor, " _"]]:
    """Search among the pairs that directions leave; also return the samples with too many such pairs."""
    views, lengths = _projected(samples, train)
    slack = _SLACK * (lengths[0] + lengths[1].max())
    squares = samples.new_empty(len(samples), dtype=torch.float64)
    indices = torch.zeros(len(samples), dtype=torch.long, device=samples.device)
    pairs, left = Pairs(samples, train), []
    for rows, bounds, _ in Pairs(*views, dtype=views[0].dtype).chunks():
        known = pairs.measure(torch.arange(rows.start, rows.stop, device=samples.device), bounds.argmin(1))
        row, column = (bounds <= (known + slack[rows])[:, None]).nonzero().unbind(1)
        crowded = row.bincount(minlength=len(bounds)) > _MOST_PAIRS
        left.append(rows.start + crowded.nonzero()[:, 0])
        row, column = row[~crowded[row]], column[~crowded[row]]
        exact = pairs.measure(row + rows.start, column)
        squares[rows] = known.scatter_reduce(0, row, exact, "amin")
        # The first of equal distances, because pairs are in the order of the training samples.
        first = torch.where(exact <= squares[rows][row] * (1 + ROUNDING), column, len(train))
        indices[rows] = indices.new_full((len(bounds),), len(train)).scatter_reduce(0, row, first, "amin")
    return squares.sqrt(), indices, torch.cat(left)


def _projected(
    samples: Float[Tensor, "s d"], train: Float[Tensor, "m d"]
) -> tuple[list[Float[Tensor, "_ _"]], list[Float[Tensor, " _"]]]:
    """Return samples and training samples projected on a few directions, with the length of the rest, and squared lengths."""
    train = full_precision(train)
    center = train.mean(0)
    chosen = train[:: -(-len(train) // _CHOOSING)] - center
    directions = torch.randn(train.shape[1], _DIRECTIONS, generator=torch.Generator().manual_seed(0)).to(train)
    for _ in range(3):
        directions = torch.linalg.qr(chosen.T @ (chosen @ directions)).Q
    views, lengths = [], []
    for some in (full_precision(samples), train):
        centered = some - center
        inside = centered @ directions
        lengths.append(centered.square().sum(1))
        rest = (lengths[-1] - inside.square().sum(1)).clamp(min=0).sqrt()
        views.append(torch.cat([inside, rest[:, None]], 1))
    return views, lengths
