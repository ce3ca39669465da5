"""Distances of a block of rows to all targets, compiled for the CPU by numba, and what the loss needs of them.

A unit of work is one lane of one group: every `lanes`-th block of its rows. One thread computes a unit, and nothing is added up
across units here, so that results do not depend on the number of threads.

The columns of a matrix are the negatives and the positives, each filled up to whole vectors (`simd`). Filling targets are at the
center of all others, have weight 0, and their distance is infinite.

Shapes: g groups, n rows, k columns, d coordinates.
"""

from typing import Any, NamedTuple

import numpy as np

from drifting.fields.loops.products import multiply_packed, pack
from drifting.fields.loops.simd import WIDTH, count_below, larger, load, lowest, root, smaller, splat, store
from drifting.fields.loops.simd import total as sum_of
from drifting.fields.loops.vectors import INFINITY, ZERO, dot, entry, loop

# Up to this many coordinates are subtracted directly; the targets are then stored one coordinate after the other.
DIRECT_DIMENSIONS = 8

_TWO = np.float32(2)
# A squared distance below this part of |x|^2 + |y|^2 has lost digits in |x|^2 + |y|^2 - 2xy: it is summed again directly.
_CANCELLED = np.float32(1 / 32)


class Sizes(NamedTuple):
    """The shape of a problem and how it is cut. `own` and `kept` and `stored` are 0 or 1.

    `own`: the first columns are the rows themselves. `kept`: the centered targets of all groups are in `y`; otherwise those of one
    group at a time, by thread. `stored`: the same for distances.
    """

    rows: int
    negatives: int  # the columns of the negatives, filled up
    columns: int  # all columns
    targets: int  # the columns that are not filled up
    width: int
    stride: int  # entries of a centered sample: `width`, filled up where samples are multiplied
    own: int
    kept: int
    stored: int
    block: int
    lanes: int
    smallest: Any  # lower bound of distances


class Arrays(NamedTuple):
    """The arrays of a problem."""

    generated: Any  # [g, n, d]
    first: Any  # the targets: three parts [g, _, d], the second of which may be empty
    second: Any
    third: Any
    weights: Any  # [g or 1, k], 0 for filling columns
    filling: Any  # [1, k], infinity for filling columns, 0 for others
    center: Any  # [g, d], the means of the targets
    y: Any  # [g or threads, k stride], centered targets
    packed: Any  # [g or threads, _], the same for products
    x: Any  # [g or threads, n stride], centered rows, where they are not the first targets
    norms: Any  # [g or threads, n + k], squared lengths of rows and targets
    distances: Any  # [g or threads, n or block, k]
    nearest: Any  # [g, n], the nearest target of each row
    column_nearest: Any  # [g lanes, k], the nearest row of each target
    scratch: Any  # [threads, _, k]
    panel: Any  # [threads, DEPTH, PANEL], for `multiply`


@loop
def _add_rows(samples, total):
    for i in range(samples.shape[0]):
        for c in range(total.size):
            total[c] += samples[i, c]


@loop
def _subtract(samples, center, out, start, turned):
    for i in range(samples.shape[0]):
        if turned:
            for c in range(center.size):
                out[c, start + i] = samples[i, c] - center[c]
        else:
            for c in range(center.size):
                out[start + i, c] = samples[i, c] - center[c]
            for c in range(center.size, out.shape[1]):
                out[start + i, c] = ZERO


@loop
def _fill(out, begin, end, turned):
    if turned:
        out[:, begin:end] = ZERO
    else:
        out[begin:end] = ZERO


@loop
def _lengths(samples, turned, out):
    for j in range(out.size):
        if turned:
            total = ZERO
            for c in range(samples.shape[0]):
                total += samples[c, j] * samples[c, j]
            out[j] = total
        else:
            out[j] = dot(samples, j, samples, j, 0, samples.shape[1])


@loop
def center_targets(sizes, arrays, group, slot):
    """Center the targets of a group on their mean, which is known."""
    turned, center, y = sizes.width <= DIRECT_DIMENSIONS, arrays.center[group], targets(sizes, arrays, slot)
    first, second, third = arrays.first[group], arrays.second[group], arrays.third[group]
    negatives = first.shape[0] + second.shape[0]
    _subtract(first, center, y, 0, turned)
    _subtract(second, center, y, first.shape[0], turned)
    _fill(y, negatives, sizes.negatives, turned)
    _subtract(third, center, y, sizes.negatives, turned)
    _fill(y, sizes.negatives + third.shape[0], sizes.columns, turned)


@loop
def center_group(sizes, arrays, group, slot):
    """Center the targets and the rows of a group on the mean of its targets, and write their lengths."""
    turned = sizes.width <= DIRECT_DIMENSIONS
    center = arrays.center[group]
    center[:] = ZERO
    _add_rows(arrays.first[group], center)
    _add_rows(arrays.second[group], center)
    _add_rows(arrays.third[group], center)
    for c in range(center.size):
        center[c] /= np.float32(sizes.targets)
    center_targets(sizes, arrays, group, slot)
    y = targets(sizes, arrays, slot)
    _lengths(y, turned, arrays.norms[slot][sizes.rows :])
    if not turned:
        pack(y, arrays.packed[slot])
    if not sizes.own:
        x = arrays.x[slot].reshape(sizes.width, sizes.rows) if turned else arrays.x[slot].reshape(sizes.rows, sizes.stride)
        _subtract(arrays.generated[group], center, x, 0, turned)
        _lengths(x, turned, arrays.norms[slot][: sizes.rows])


@entry
def center_groups(sizes, arrays, begin, end, thread):
    """Center all groups, where several units share one."""
    for group in range(begin, end):
        center_group(sizes, arrays, group, group)


@loop
def targets(sizes, arrays, slot):
    """Return the centered targets [k, d], or [d, k] for few coordinates."""
    if sizes.width <= DIRECT_DIMENSIONS:
        return arrays.y[slot].reshape(sizes.width, sizes.columns)
    return arrays.y[slot].reshape(sizes.columns, sizes.stride)


@loop
def _direct(x, at, y, out, i):
    """Write the squared distances of one row by differences, for targets stored one coordinate after the other."""
    for j in range(0, out.shape[1], WIDTH):
        difference = load(y, 0, j) - x[0, at]
        squares = difference * difference
        for c in range(1, x.shape[0]):
            difference = load(y, c, j) - x[c, at]
            squares = squares + difference * difference
        store(out, i, j, squares)


@loop
def _expanded(x, y, norm, norms, out, i, own):
    """Turn the products of one row with all targets into squared distances, summed again directly where digits are lost."""
    lost = splat(ZERO)
    for j in range(0, out.shape[1], WIDTH):
        lengths = load(norms, 0, j) + norm
        value = lengths - load(out, i, j) * _TWO
        lost = lost + count_below(value, lengths * _CANCELLED)
        store(out, i, j, value)
    # The distance of a row to itself is 0 in any case.
    if sum_of(lost) <= own:
        return
    for j in range(out.shape[1]):
        if out[i, j] < _CANCELLED * (norm + norms[0, j]):
            total = ZERO
            for c in range(x.shape[1]):
                difference = x[i, c] - y[j, c]
                total += difference * difference
            out[i, j] = total


@loop
def _roots(out, i, smallest, weights, of_weights, filling):
    """Turn the squared distances of one row into distances; return their weighted sum."""
    total = splat(ZERO)
    for j in range(0, out.shape[1], WIDTH):
        value = larger(root(larger(load(out, i, j), splat(ZERO))), splat(smallest))
        total = total + value * load(weights, of_weights, j)
        store(out, i, j, value + load(filling, 0, j))
    return sum_of(total)


@loop
def write_distances(sizes, arrays, group, slot, first, last, thread, out):
    """Write the distances of some rows to all targets, and return their weighted sum.

    The distances of rows to themselves are infinite, but count as the lower bound in the sum.
    """
    y = targets(sizes, arrays, slot)
    norms = arrays.norms[slot][sizes.rows :].reshape(1, sizes.columns)
    row_norms = norms[0, : sizes.rows] if sizes.own else arrays.norms[slot][: sizes.rows]
    flat = arrays.y[slot] if sizes.own else arrays.x[slot]
    turned, of_weights = sizes.width <= DIRECT_DIMENSIONS, group if arrays.weights.shape[0] > 1 else 0
    if turned:
        stride = sizes.columns if sizes.own else sizes.rows
        x = flat[: sizes.width * stride].reshape(sizes.width, stride)
    else:
        x = flat[: sizes.rows * sizes.stride].reshape(sizes.rows, sizes.stride)[first:last]
        multiply_packed(x, arrays.packed[slot], out)
    sum_of_distances = 0.0
    for i in range(last - first):
        if turned:
            _direct(x, first + i, y, out, i)
        else:
            if sizes.own:
                out[i, first + i] = row_norms[first + i]
            _expanded(x, y, row_norms[first + i], norms, out, i, sizes.own)
        sum_of_distances += _roots(out, i, sizes.smallest, arrays.weights, of_weights, arrays.filling)
        if sizes.own:
            out[i, first + i] = INFINITY
    return sum_of_distances


@loop
def stored(sizes, arrays, group, first, last, thread):
    """Return the distances of a block, or the memory for them."""
    if sizes.stored:
        return arrays.distances[group][first:last]
    return arrays.distances[thread][: last - first]


@loop
def _survey(distances, first, nearest, column_nearest, unit):
    """Write the nearest neighbors of the rows of a block, and of columns in the rows so far."""
    for i in range(distances.shape[0]):
        of_row = splat(INFINITY)
        for j in range(0, distances.shape[1], WIDTH):
            value = load(distances, i, j)
            of_row = smaller(of_row, value)
            store(column_nearest, unit, j, smaller(load(column_nearest, unit, j), value))
        nearest[first + i] = lowest(of_row)


@entry
def measure(sizes, arrays, sums, begin, end, thread):
    """Compute distances; write the weighted sum of those of each unit, and the nearest neighbors of rows and columns."""
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        slot = group if sizes.kept else thread
        if not sizes.kept:
            center_group(sizes, arrays, group, slot)
        arrays.column_nearest[unit] = INFINITY
        total = 0.0
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            last = min(first + sizes.block, sizes.rows)
            distances = stored(sizes, arrays, group, first, last, thread)
            total += write_distances(sizes, arrays, group, slot, first, last, thread, distances)
            _survey(distances, first, arrays.nearest[group], arrays.column_nearest, unit)
        sums[unit] = total
