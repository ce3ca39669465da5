"""Distances, affinities and drifts of a mean shift as Triton kernels, for a GPU or for Triton's interpreter.

Two sets of kernels: for small groups, whose distances stay on the chip of one program (`measure_groups`, `move_groups`), and for
groups of any size, cut into tiles that are computed again in every pass (`triton_tiles`). No matrix of pairs is written to memory.
All sums are in float32 and have a fixed order.

Equation, with the temperature T, the distances D, m_i that of row i to its nearest target, c_j that of target j to its nearest row:

    row_i = sum_j exp((m_i - D_ij) / T),    column_j = sum_i exp((c_j - D_ij) / T)
    A_ij = exp((m_i + c_j - 2 D_ij) / 2T) / sqrt(row_i column_j)

The exponents are never positive, and each sum that has any pair at all is at least 1: no sample is too far away.

Shapes: g groups, n rows (generated samples), k columns (targets: two sets of negatives, then the positives), d coordinates, t
temperatures, r rows and c columns of a tile, f coordinates of a block.

The kernels keep to what Triton 3.4 to 3.9 compile. In the earlier ones a size of a cut is no constant for `tl.zeros`, but for
`tl.full`, and their interpreter multiplies a tensor by a constant, but not a constant by a tensor.

Source: paper, Algorithm 2; the cut is ours.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

# A squared distance below this part of |x|^2 + |y|^2 has lost digits in |x|^2 + |y|^2 - 2xy: it is summed again directly.
CANCELLED = tl.constexpr(1 / 32)
HIGHEST = tl.constexpr(1e20)  # of 1 / temperature, whose product with any ordinary distance is then finite
INFINITY = tl.constexpr(float("inf"))


def jit(function: Callable) -> Any:
    """Compile a function when it is first called. Checks of shapes in tests wrap every function of the package."""
    return triton.jit(inspect.unwrap(function))


class Samples(NamedTuple):
    """The samples of a problem, contiguous and all in float32 or all in bfloat16, and what belongs to each."""

    generated: Any  # [g, n, d]
    first: Any  # [g, _, d], negatives
    second: Any  # [g, _, d], further negatives, or anything if there are none
    positives: Any  # [g, _, d]
    weights: Any  # [g, k] in float32, or anything if the cut is not `weighted`
    center: Any  # [g, d], the mean of the targets, in float32
    rows: Any  # n
    count: Any  # of the first negatives
    negatives: Any
    columns: Any  # k
    width: Any  # d
    shift: Any  # the target which is row 0, if rows are targets
    smallest: Any  # lower bound of distances
    floor: Any  # lower bound of affinities


class Kernel(NamedTuple):
    """The kernel at every temperature: what `add_up_tiles` writes and `move_tiles` reads."""

    temperatures: Any  # [t]
    nearest: Any  # [g, n], the distance of the nearest target of each row
    sums: Any  # [g, t, n], sums over each row
    column_nearest: Any  # [g, k]
    column_sums: Any  # [g, t, k]


class Cut(NamedTuple):
    """How a problem is cut, known when a kernel is compiled. All sizes are powers of two, and at least 16."""

    rows: int
    columns: int
    features: int
    tiles: tuple[tuple[int, int], ...]  # of small groups: first target and size of each tile of columns
    temperatures: int
    padded: int  # number of temperatures, as a power of two
    own: bool  # whether targets are the rows themselves, which are masked
    weighted: bool
    direct: bool  # whether distances are summed directly, for few coordinates
    precision: str  # of products, see tl.dot


@jit
def pointers_to_targets(samples, group, j):
    """Return pointers to the features of targets [c]."""
    first, second = samples.count, samples.negatives - samples.count
    of_first = samples.first + (group * first + j) * samples.width
    of_second = samples.second + (group * second + (j - first)) * samples.width
    positive = j - samples.negatives
    of_third = samples.positives + (group * (samples.columns - samples.negatives) + positive) * samples.width
    return tl.where(j < first, of_first, tl.where(positive < 0, of_second, of_third))


@jit
def _of_rows(samples, group, i):
    """Return pointers to the features of rows [r]."""
    return samples.generated + (group * samples.rows + i) * samples.width


@jit
def load_block(pointers, inside, features, width):
    """Return a block [r, f] of samples in float32."""
    known = inside[:, None] & (features < width)[None, :]
    return tl.load(pointers[:, None] + features[None, :], mask=known, other=0.0).to(tl.float32)


@jit
def block_of_center(samples, group, features):
    """Return a block [f] of the center of a group."""
    return tl.load(samples.center + group * samples.width + features, mask=features < samples.width, other=0.0)


@jit
def _directly(samples, group, i, j):
    """Return squared distances [r, c], one coordinate after the other."""
    at_rows, at_columns = _of_rows(samples, group, i), pointers_to_targets(samples, group, j)
    in_rows, in_columns = i < samples.rows, j < samples.columns
    total = tl.full([i.shape[0], j.shape[0]], 0.0, tl.float32)
    for coordinate in range(samples.width):
        x = tl.load(at_rows + coordinate, mask=in_rows, other=0.0).to(tl.float32)
        y = tl.load(at_columns + coordinate, mask=in_columns, other=0.0).to(tl.float32)
        difference = x[:, None] - y[None, :]
        total += difference * difference
    return total


@jit
def _all_directly(samples, group, i, tiles):
    """Return squared distances for few coordinates."""
    found = ()
    for index in tl.static_range(len(tiles)):
        found = found + (_directly(samples, group, i, tiles[index]),)
    return found


@jit
def _products(samples, group, i, tiles, CUT: tl.constexpr):
    """Return |x|^2 [r] of centered rows, and of each tile of targets the products [r, c] and |y|^2 [c]."""
    at_rows, in_rows = _of_rows(samples, group, i), i < samples.rows
    of_rows, of_columns, products = tl.full([i.shape[0]], 0.0, tl.float32), (), ()
    for index in tl.static_range(len(tiles)):
        of_columns = of_columns + (tl.full([tiles[index].shape[0]], 0.0, tl.float32),)
        products = products + (tl.full([i.shape[0], tiles[index].shape[0]], 0.0, tl.float32),)
    for start in range(0, samples.width, CUT.features):
        features = start + tl.arange(0, CUT.features)
        center = block_of_center(samples, group, features)[None, :]
        x = load_block(at_rows, in_rows, features, samples.width) - center
        of_rows += tl.sum(x * x, 1)
        norms, sums = (), ()
        for index in tl.static_range(len(tiles)):
            at, inside = pointers_to_targets(samples, group, tiles[index]), tiles[index] < samples.columns
            y = load_block(at, inside, features, samples.width) - center
            norms = norms + (of_columns[index] + tl.sum(y * y, 1),)
            sums = sums + (tl.dot(x, tl.trans(y), products[index], input_precision=CUT.precision),)
        of_columns, products = norms, sums
    return of_rows, products, of_columns


@jit
def _pairs(samples, i, j, CUT: tl.constexpr):
    """Return which pairs exist, and which are a row and itself."""
    inside = (i < samples.rows)[:, None] & (j < samples.columns)[None, :]
    return inside, (i[:, None] + samples.shift == j[None, :]) & CUT.own


@jit
def _expanded(samples, group, i, tiles, CUT: tl.constexpr):
    """Return squared distances as |x|^2 + |y|^2 - 2xy, summed again directly where digits are lost."""
    of_rows, products, of_columns = _products(samples, group, i, tiles, CUT)
    found = ()
    for index in tl.static_range(len(tiles)):
        inside, itself = _pairs(samples, i, tiles[index], CUT)
        both = of_rows[:, None] + of_columns[index][None, :]
        squares = both - 2 * products[index]
        lost = inside & (squares < both * CANCELLED) & (itself == 0)
        if tl.max(tl.max(lost.to(tl.int32), 1), 0) > 0:
            squares = tl.where(lost, _directly(samples, group, i, tiles[index]), squares)
        found = found + (squares,)
    return found


@jit
def distances_of(samples, group, i, tiles, of_self, CUT: tl.constexpr):
    """Return the distances [r, c] of rows i to each tile of targets, `of_self` for a row and itself, and infinity outside."""
    squares = _all_directly(samples, group, i, tiles) if CUT.direct else _expanded(samples, group, i, tiles, CUT)
    found = ()
    for index in tl.static_range(len(tiles)):
        inside, itself = _pairs(samples, i, tiles[index], CUT)
        # Comparisons with NaN are false, so that NaN stays.
        distances = tl.sqrt(tl.where(squares[index] < 0, 0.0, squares[index]))
        distances = tl.where(distances < samples.smallest, samples.smallest, distances)
        found = found + (tl.where(inside, tl.where(itself, of_self, distances), INFINITY),)
    return found


@jit
def weights_of(samples, group, j, end, CUT: tl.constexpr):
    """Return the weights of targets j [c], and 0 from the target `end`."""
    if CUT.weighted:
        return tl.load(samples.weights + group * samples.columns + j, mask=j < end, other=0.0)
    return tl.where(j < end, 1.0, 0.0)


@jit
def inverse_of(temperatures):
    """Return 1 / temperature, from a pointer or pointers."""
    return tl.minimum(1 / tl.load(temperatures), HIGHEST)


@jit
def finite(nearest):
    """Return a reference for exponents: the distance of the nearest, or 0 where there is none."""
    return tl.where(nearest == INFINITY, 0.0, nearest)


@jit
def _root(total):
    """Return the factor 1 / sqrt(total), or 0 where there is no pair."""
    return tl.where(total == 0, 0.0, 1 / tl.sqrt(tl.where(total == 0, 1.0, total)))


@jit
def affinities_of(distances, of_row, of_column, inverse, floor):
    """Return affinities [r, c] at one temperature, from (nearest, sum) of each row and of each column."""
    nearest, factor = finite(of_row[0])[:, None], _root(of_row[1])[:, None]
    column_nearest, column_factor = finite(of_column[0])[None, :], _root(of_column[1])[None, :]
    gaps = (nearest - distances) + (column_nearest - distances)
    affinity = tl.exp(gaps * (0.5 * inverse)) * factor * column_factor
    return tl.where(affinity < floor, floor, affinity)


@jit
def _write_center(samples, group, start, CUT: tl.constexpr):
    """Write a block of the center of a group."""
    features = start + tl.arange(0, CUT.features)
    total = tl.full([CUT.features], 0.0, tl.float32)
    for first in range(0, samples.columns, CUT.columns):
        j = first + tl.arange(0, CUT.columns)
        total += tl.sum(load_block(pointers_to_targets(samples, group, j), j < samples.columns, features, samples.width), 0)
    at = samples.center + group * samples.width + features
    tl.store(at, total / samples.columns, mask=features < samples.width)


@jit
def center_targets(samples, CUT: tl.constexpr):
    """Write the mean of the targets of each group. Grid: groups, blocks of coordinates. Reads the targets once."""
    _write_center(samples, tl.program_id(0).to(tl.int64), tl.program_id(1) * CUT.features, CUT)


@jit
def weighted_sum(samples, group, i, tiles, CUT: tl.constexpr):
    """Return the weighted sum of the distances of each row [r] to targets, a row being at the smallest distance from itself."""
    distances, total = distances_of(samples, group, i, tiles, samples.smallest, CUT), tl.full([i.shape[0]], 0.0, tl.float32)
    for index in tl.static_range(len(tiles)):
        j = tiles[index]
        known = tl.where((i < samples.rows)[:, None] & (j < samples.columns)[None, :], distances[index], 0.0)
        total += tl.sum(known * weights_of(samples, group, j, samples.columns, CUT)[None, :], 1)
    return total


@jit
def _tiles_of_columns(CUT: tl.constexpr):
    """Return the targets of each tile [c] of a small group."""
    tiles = ()
    for index in tl.static_range(len(CUT.tiles)):
        tiles = tiles + (CUT.tiles[index][0] + tl.arange(0, CUT.tiles[index][1]),)
    return tiles


@jit
def measure_groups(samples, sums, CUT: tl.constexpr):
    """Write the center of each group and the weighted sum of its distances [g]. Grid: groups.

    Reads the features of the targets for the center, then those of rows and targets, which the cache may still hold.
    """
    group = tl.program_id(0).to(tl.int64)
    for start in range(0, samples.width, CUT.features):
        _write_center(samples, group, start, CUT)
    tl.debug_barrier()  # other threads of the program read the center
    i = tl.arange(0, CUT.rows)
    tl.store(sums + group, tl.sum(weighted_sum(samples, group, i, _tiles_of_columns(CUT), CUT), 0))


@jit
def move_groups(samples, temperatures, moved, squares, CUT: tl.constexpr):
    """Write the drifts [t, g, n, d] at all temperatures, and the sum of the squares of each [t, g]. Grid: groups.

    Reads the features of rows and targets for the distances, then those of the targets once per temperature from the cache.
    """
    group, groups = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    i = tl.arange(0, CUT.rows)
    tiles, nearest = _tiles_of_columns(CUT), tl.full([CUT.rows], INFINITY, tl.float32)
    distances = distances_of(samples, group, i, tiles, INFINITY, CUT)
    for index in tl.static_range(len(tiles)):
        nearest = tl.minimum(nearest, tl.min(distances[index], 1))
    for temperature in range(CUT.temperatures):
        inverse = inverse_of(temperatures + temperature)
        total = tl.full([CUT.rows], 0.0, tl.float32)
        for index in tl.static_range(len(tiles)):
            total += tl.sum(tl.exp((finite(nearest)[:, None] - distances[index]) * inverse), 1)
        coefficients = _coefficients(samples, group, tiles, distances, (nearest, total, inverse), CUT)
        at = moved + ((temperature * groups + group) * samples.rows + i) * samples.width
        square = _move(samples, group, at, i < samples.rows, (tiles, coefficients), CUT)
        tl.store(squares + temperature * groups + group, square)


@jit
def _coefficients(samples, group, tiles, distances, of_row, CUT: tl.constexpr):
    """Return the coefficient of every target in the drift of every row, by tiles [r, c]."""
    negative = tl.full([CUT.rows], 0.0, tl.float32)
    positive = tl.full([CUT.rows], 0.0, tl.float32)
    nearest, total, inverse = of_row
    affinities, coefficients = (), ()
    for index in tl.static_range(len(tiles)):
        column_nearest = tl.min(distances[index], 0)
        column = tl.sum(tl.exp((finite(column_nearest)[None, :] - distances[index]) * inverse), 0)
        affinity = affinities_of(distances[index], (nearest, total), (column_nearest, column), inverse, samples.floor)
        affinity *= weights_of(samples, group, tiles[index], samples.columns, CUT)[None, :]
        repels = (tiles[index] < samples.negatives)[None, :]
        negative += tl.sum(tl.where(repels, affinity, 0.0), 1)
        positive += tl.sum(tl.where(repels, 0.0, affinity), 1)
        affinities = affinities + (affinity,)
    for index in tl.static_range(len(tiles)):
        mass = tl.where((tiles[index] < samples.negatives)[None, :], -positive[:, None], negative[:, None])
        coefficients = coefficients + (affinities[index] * mass,)
    return coefficients


@jit
def _move(samples, group, at, inside, terms, CUT: tl.constexpr):
    """Write the drift of a group at one temperature, given tiles of targets and coefficients; return the sum of its squares."""
    tiles, coefficients = terms
    total = tl.full([CUT.rows], 0.0, tl.float32)
    for start in range(0, samples.width, CUT.features):
        features = start + tl.arange(0, CUT.features)
        center = block_of_center(samples, group, features)[None, :]
        drift = tl.full([CUT.rows, CUT.features], 0.0, tl.float32)
        for index in tl.static_range(len(tiles)):
            of_targets = pointers_to_targets(samples, group, tiles[index])
            y = load_block(of_targets, tiles[index] < samples.columns, features, samples.width) - center
            drift = tl.dot(coefficients[index], y, drift, input_precision=CUT.precision)
        known = inside[:, None] & (features < samples.width)[None, :]
        tl.store(at[:, None] + features[None, :], drift, mask=known)
        total += tl.sum(tl.where(known, drift * drift, 0.0), 1)
    return tl.sum(total, 0)


@jit
def combine(moved, factors, total, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Write the sum of the drifts of all temperatures, of `size` numbers each, times a factor each. Grid: blocks of numbers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known, result = at < size, tl.full([BLOCK], 0.0, tl.float32)
    for index in tl.static_range(COUNT):
        result += tl.load(factors + index) * tl.load(moved + at, mask=known, other=0.0)
        moved += size
    tl.store(total + at, result, mask=known)
