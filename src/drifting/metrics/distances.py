"""Distances between all samples of two sets: the energy distance, and the exact nearest pairs of large sets.

The squared energy distance is a two-sample statistic without parameters,

    D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|,

as a V-statistic (over all pairs, including the zero diagonals). It is never negative, and 0 only for equal distributions. It is
computed in float64: by subtracting coordinates in few dimensions, and by a matrix product in many.

A matrix product gives |x|^2 + |y|^2 - 2 xy quickly, but its error does not shrink with the distance. It suffices to compare most
pairs. The others are measured again by subtraction, which depends only on the two samples, not on their positions in the sets. So
copies have distance 0, and equal distances are equal up to the tolerance `ROUNDING`.

Source: Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).

Shapes: x and y, or n and m, samples of two sets, d features, r rows of a chunk, q pairs.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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


@torch.no_grad()
def mean_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the mean Euclidean distance over all pairs, in float64 and in the units of the coordinates."""
    if x.shape[1] > pairwise.DIRECT_DIMENSIONS:
        parts = _sums_by_products(x, y)
    else:
        memory, rows = pairwise.Memory(), x.double().split(max(1, _DIRECT_CHUNK // len(y)))
        parts = [pairwise.pairwise_distances(part[None], y.double()[None], memory=memory).sum() for part in rows]
    return float(torch.stack(parts).sum()) / (len(x) * len(y))


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
    """
    within = mean_distance(y, y) if within_y is None else within_y
    return 2 * mean_distance(x, y) - mean_distance(x, x) - within


def energy_distances(xs: Sequence[Float[Tensor, "n d"]], ys: Sequence[Float[Tensor, "m d"]]) -> Float[Tensor, "_ _"]:
    """Return the squared energy distance of every x to every y: [len(xs), len(ys)]. Distances within each are computed once."""
    within_x, within_y = (
        torch.tensor([mean_distance(sample, sample) for sample in some], dtype=torch.float64) for some in (xs, ys)
    )
    between = torch.tensor([[mean_distance(x, y) for y in ys] for x in xs], dtype=torch.float64)
    return 2 * between - within_x[:, None] - within_y
