"""Distances between all samples of two sets: the energy distance, the nearest pairs of large sets, and precision and recall.

The squared energy distance is a two-sample statistic without parameters,

    D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|,

as a V-statistic (over all pairs, including the zero diagonals). It is never negative, and 0 only for equal distributions. It is
computed in float64: by subtracting coordinates in few dimensions, and by a matrix product in many.

A matrix product gives |x|^2 + |y|^2 - 2 xy quickly, but its error does not shrink with the distance. It suffices to compare most
pairs. The others are measured again by subtraction, which depends only on the two samples, not on their positions in the sets. So
copies have distance 0, and equal distances are equal up to the tolerance `ROUNDING`.

Precision, recall, density and coverage tell how many samples look real, and how much of the real data they cover. B_k(x) is the
closed ball around x up to its k-th nearest neighbor in its own set, not counting x:

    precision = share of generated samples inside any B_3(real)      density  = mean number of B_5(real) around a generated one / 5
    recall    = share of real samples inside any B_3(generated)      coverage = share of B_5(real) with a generated sample inside

Equal distributions have an expected density of 1 and coverage of 1 - 2^-5 = 0.97. Precision and recall have no such constant, so
compare all four with those of held-out real data. All depend on the counts, so compare only figures of the same counts. Rounding
does not decide ties: a sample on the border of a ball is inside, and a copy is on the border if its original is.

Source: Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013); Kynkaanniemi et al., "Improved
precision and recall metric for assessing generative models" (2019), k = 3; Naeem et al., "Reliable fidelity and diversity metrics
for generative models" (2020), section 3, k = 5. The release of the last excludes points on the border of a ball. Here they are
included, as in the release of the one before; this only matters for repeated points.

Shapes: x and y, or n and m, samples of two sets, d features, r rows of a chunk, q pairs.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from drifting._checks import is_integer
from drifting.errors import InputError
from drifting.fields import pairwise

# Squared distances that differ by less, relative to the larger one, count as equal: features such as 0.1 and 0.3 are rounded too.
ROUNDING = 1e-12
# Entries of a chunk, numbers of the second set that are converted at a time, and numbers that fit the cache of a core.
_CHUNK, _BLOCK, _CPU_CACHE, _DEVICE_CACHE = 2**23, 2**27, 2**17, 2**24
# Entries of a chunk of distances that are computed by subtracting coordinates.
_DIRECT_CHUNK = 2**24
# Squared distances below this multiple of their error bound are measured by subtraction.
_SURE = 2**20
# From this many pairs on, pairs of equal samples are measured only once.
_MANY_PAIRS = 2**12


class Pairs:
    """All pairs of two sets of finite features.

    Args:
        first, second: the sets, on the same device.
        dtype: dtype of the products; a less precise one leaves more pairs to measure.
    """

    def __init__(self, first: Float[Tensor, "x d"], second: Float[Tensor, "y d"], dtype: torch.dtype = torch.float64) -> None:
        self.first, self.second, self._dtype = first, second, dtype

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "r y"], Float[Tensor, "r 1"]]]:
        """Yield the squared distances of some rows of `first` to all of `second`, with bounds of their errors.

        A caller may overwrite a chunk.
        """
        first, second, dtype = self.first, self.second, self._dtype
        # A common offset would cost digits of the differences.
        center = (first.mean(0, dtype=dtype) + second.mean(0, dtype=dtype)) / 2
        height, width = max(1, _CHUNK // len(second)), max(1, _BLOCK // second.shape[1])

        @lru_cache(maxsize=1)
        def converted(start: int) -> tuple[Tensor, Tensor]:
            part = second[start : start + width].to(dtype) - center
            return part.T, part.square().sum(1)

        longest = torch.stack([converted(start)[1].max() for start in range(0, len(second), width)]).max()
        rounding = 4 * (second.shape[1] + 8) * torch.finfo(dtype).eps
        for start in range(0, len(first), height):
            rows = slice(start, min(start + height, len(first)))
            part = first[rows].to(dtype) - center
            lengths = part.square().sum(1, keepdim=True)
            squared = part.new_empty(len(part), len(second))
            for column in range(0, len(second), width):
                other, other_lengths = converted(column)
                torch.addmm(other_lengths, part, other, alpha=-2, out=squared[:, column : column + width])
            yield rows, squared.add_(lengths).clamp_(min=0), rounding * (lengths + longest)

    def measure(self, rows: Int[Tensor, " q"], columns: Int[Tensor, " q"]) -> Float[Tensor, " q"]:
        """Return the squared distances of some pairs by subtraction, in float64."""
        if len(rows) < _MANY_PAIRS:
            return self._measured(rows, columns)
        # With a collapsed generator, or features with few values, the same pair of samples occurs many times.
        (same_rows, row_of), (same_columns, column_of) = self._copies
        keys, place = torch.unique(row_of[rows] * len(same_columns) + column_of[columns], return_inverse=True)
        return self._measured(same_rows[keys // len(same_columns)], same_columns[keys % len(same_columns)])[place]

    def measure_(self, squared: Float[Tensor, "r y"], rows: slice, unsure: Bool[Tensor, "r y"]) -> None:
        """Measure some entries of a chunk again, in place."""
        row, column = unsure.nonzero().unbind(1)
        squared[row, column] = self.measure(row + rows.start, column).to(squared.dtype)

    @cached_property
    def _copies(self) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
        """Return for each set the index of one sample of each group of equal samples, and the group of every sample."""
        found = []
        for samples in (self.first, self.second):
            group = torch.unique(samples, dim=0, return_inverse=True)[1]
            representative = group.new_empty(int(group.max()) + 1)
            representative[group] = torch.arange(len(group), device=group.device)
            found.append((representative, group))
        return found

    def _measured(self, rows: Int[Tensor, " q"], columns: Int[Tensor, " q"]) -> Float[Tensor, " q"]:
        cache = _CPU_CACHE if self.first.device.type == "cpu" else _DEVICE_CACHE
        pairs = zip(*(part.split(max(1, cache // self.first.shape[1])) for part in (rows, columns)), strict=True)
        return torch.cat([self.first[a].double().sub_(self.second[b]).square_().sum(1) for a, b in pairs])


def nearest_pairs(first: Float[Tensor, "x d"], second: Float[Tensor, "y d"]) -> tuple[Float[Tensor, " x"], Int[Tensor, " x"]]:
    """Return the distance of every sample of the first set to the nearest one of the second, in float64, and its index.

    Among equal distances, the index is the first.
    """
    pairs, distances, indices = Pairs(first, second), [], []
    for rows, squared, error in pairs.chunks():
        known = pairs.measure(torch.arange(rows.start, rows.stop, device=squared.device), squared.argmin(1))[:, None]
        unsure = squared <= known * (1 + ROUNDING) + error
        pairs.measure_(squared, rows, unsure)
        squared.masked_fill_(~unsure, torch.inf)
        smallest = squared.amin(1, keepdim=True)
        distances.append(smallest[:, 0].sqrt())
        indices.append((squared <= smallest * (1 + ROUNDING)).byte().argmax(1))
    return torch.cat(distances), torch.cat(indices)


def squared_radii(features: Float[Tensor, "x d"], counts: tuple[int, ...]) -> list[Float[Tensor, " x"]]:
    """Return the squared distance of every sample to its k-th nearest neighbor in its own set, for every k, in float64."""
    pairs, smallest, most = Pairs(features, features), [], max(counts)
    for rows, squared, error in pairs.chunks():
        itself = squared.diagonal(rows.start)
        itself.fill_(torch.inf)
        unsure = squared <= squared.topk(most, largest=False).values[:, -1:] + 2 * error
        pairs.measure_(squared, rows, unsure)
        smallest.append(squared.masked_fill_(~unsure, torch.inf).topk(most, largest=False).values)
    nearest = torch.cat(smallest)
    return [nearest[:, count - 1].contiguous() for count in counts]


def mean_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the mean Euclidean distance over all pairs, in float64 and in the units of the coordinates.

    Raises:
        InputError: if a set is empty, the feature sizes differ or a value is not finite.
    """
    check_features(x=x, y=y)
    return _mean_distance(x, y)


def _mean_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    with torch.no_grad():
        if x.shape[1] > pairwise.DIRECT_DIMENSIONS:
            parts = _sums_by_products(x, y)
        else:
            rows = x.double().split(max(1, _DIRECT_CHUNK // len(y)))
            memory = pairwise.Memory() if len(rows) > 1 else None
            parts = [pairwise.pairwise_distances(part[None], y.double()[None], memory=memory).sum() for part in rows]
    return float(torch.stack(parts).sum()) / (len(x) * len(y))


def within_class_distance(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> float | None:
    """Return the mean distance between two samples of a class, averaged over the classes; None if no class has two samples.

    It is 0 for samples that are all alike within their class, which a classifier can still name correctly.

    Raises:
        InputError: if there is no sample, a value is not finite, or the labels are not one for each sample.
    """
    check_features(features=features)
    if labels.shape != features.shape[:1]:
        raise InputError(f"labels have shape {tuple(labels.shape)}: pass {tuple(features.shape[:1])}, one for each sample")
    groups = [features[labels == label] for label in labels.unique()]
    spreads = [_mean_distance(group, group) * len(group) / (len(group) - 1) for group in groups if len(group) > 1]
    return sum(spreads) / len(spreads) if spreads else None


def _sums_by_products(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> list[Float[Tensor, ""]]:
    """Return the sums of distances between chunks of rows of x and all of y."""
    pairs, sums = Pairs(x, y), []
    for rows, squared, error in pairs.chunks():
        pairs.measure_(squared, rows, squared <= _SURE * error)
        sums.append(squared.sqrt_().sum())
    return sums


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, within_y: float | None = None) -> float:
    """Return the squared energy distance of two samples, in the units of the coordinates.

    For two independent samples of one distribution its expectation is (1/n + 1/m) E|x - x'|, not 0: compare with that floor.

    Args:
        x: one sample.
        y: the other.
        within_y: `mean_distance(y, y)`, if it is known already.

    Raises:
        InputError: if a sample is empty, the feature sizes differ or a value is not finite.
    """
    check_features(x=x, y=y)
    within = _mean_distance(y, y) if within_y is None else within_y
    return 2 * _mean_distance(x, y) - _mean_distance(x, x) - within


def energy_distances(xs: Sequence[Float[Tensor, "n d"]], ys: Sequence[Float[Tensor, "m d"]]) -> Float[Tensor, "_ _"]:
    """Return the squared energy distance of every x to every y: [len(xs), len(ys)]. Distances within each are computed once.

    Raises:
        InputError: as of `energy_distance`.
    """
    for x, y in itertools.product(xs, ys):
        check_features(x=x, y=y)
    within_x, within_y = (
        torch.tensor([_mean_distance(sample, sample) for sample in some], dtype=torch.float64) for some in (xs, ys)
    )
    between = torch.tensor([[_mean_distance(x, y) for y in ys] for x in xs], dtype=torch.float64)
    return 2 * between - within_x[:, None] - within_y


class PrecisionRecall(NamedTuple):
    """Four figures in [0, 1], except that density can exceed 1; higher is better."""

    precision: float
    recall: float
    density: float
    coverage: float


@torch.no_grad()
def precision_recall(
    generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"], *, neighbors: int = 3, density_neighbors: int = 5
) -> PrecisionRecall:
    """Return precision, recall, density and coverage of generated features compared with real ones.

    Args:
        generated: features of samples.
        real: features of real data from the same encoder, preferably as many.
        neighbors: k of precision and recall.
        density_neighbors: k of density and coverage.

    Raises:
        InputError: if a set has no k-th neighbor, k is no integer, the feature sizes differ or a value is not finite.
    """
    check_features(generated=generated, real=real)
    if not all(is_integer(count) and count >= 1 for count in (neighbors, density_neighbors)):
        raise InputError(f"neighbors is {neighbors} and density_neighbors {density_neighbors}: pass whole numbers, at least 1")
    most = max(neighbors, density_neighbors)
    for name, count, least in (("real", len(real), most), ("generated", len(generated), neighbors)):
        if count <= least:
            raise InputError(f"{name} has {count} samples, which have no neighbor number {least}: pass at least {least + 1}")
    narrow, wide = (radii[:, None] * (1 + ROUNDING) for radii in squared_radii(real, (neighbors, density_neighbors)))
    own = squared_radii(generated, (neighbors,))[0] * (1 + ROUNDING)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    inside, recalled, covered = 0, 0, 0
    pairs = Pairs(real, generated)
    for rows, squared, error in pairs.chunks():
        borders = (narrow[rows], wide[rows], own)
        unsure = torch.zeros_like(squared, dtype=torch.bool)
        for border in borders:
            unsure |= (squared - border).abs_() <= error
        pairs.measure_(squared, rows, unsure)
        near, within, recalling = (squared <= border for border in borders)
        precise |= near.any(0)
        recalled += int(recalling.any(1).sum())
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return PrecisionRecall(
        precision=float(precise.double().mean()),
        recall=recalled / len(real),
        density=inside / (density_neighbors * len(generated)),
        coverage=covered / len(real),
    )


def check_features(**features: Tensor) -> None:
    """Raise InputError unless all sets are [n, d] with the same d, not empty, floating and finite; errors use the names."""
    shapes = " and ".join(f"{name} {tuple(value.shape)}" for name, value in features.items())
    if any(value.ndim != 2 or value.numel() == 0 for value in features.values()):
        raise InputError(f"features have the shapes {shapes}: pass [n, d] with at least one of each, images flattened")
    if len({value.shape[1] for value in features.values()}) > 1:
        raise InputError(f"features have the shapes {shapes}: compute all with the same encoder, so that d agrees")
    for name, value in features.items():
        if not value.is_floating_point():
            raise InputError(f"{name} is {value.dtype}: pass floating point features")
        if not value.isfinite().all():
            bad = int((~value.isfinite()).any(1).sum())
            raise InputError(
                f"{name} has {bad} rows of {len(value)} with a value that is not finite: leave them out, or fix the encoder"
            )
