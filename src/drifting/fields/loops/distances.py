"""Distances of a block of rows to all targets, compiled for the CPU by numba, and what the loss needs of them.

A unit of work is one lane of one group: every `lanes`-th block of its rows. One thread computes a unit, and nothing is added up
across units here, so that results do not depend on the number of threads.

Shapes: g groups, n rows, k columns (targets, negatives first), d coordinates.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from drifting.fields.loops.vectors import INFINITY, ZERO, dot, loop, lowest_of_row, multiply, use_threads

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
    negatives: int
    columns: int
    width: int
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
    weights: Any  # [g or 1, k]
    y: Any  # [g or threads, k d], centered targets
    x: Any  # [g or threads, n d], centered rows, where they are not the first targets
    norms: Any  # [g or threads, n + k], squared lengths of rows and targets
    distances: Any  # [g or threads, n or block, k]
    nearest: Any  # [g, n], the nearest target of each row
    column_nearest: Any  # [g lanes, k], the nearest row of each target
    scratch: Any  # [threads, t block, k]
    integers: Any  # [threads, 8], arguments of the products
    floats: Any  # [threads, 2]


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
def center_group(sizes, arrays, group, slot):
    """Center the targets and the rows of a group on the mean of its targets."""
    turned = sizes.width <= DIRECT_DIMENSIONS
    center = np.zeros(sizes.width, np.float32)
    first, second, third = arrays.first[group], arrays.second[group], arrays.third[group]
    _add_rows(first, center)
    _add_rows(second, center)
    _add_rows(third, center)
    for c in range(center.size):
        center[c] /= np.float32(sizes.columns)
    y = targets(sizes, arrays, slot)
    _subtract(first, center, y, 0, turned)
    _subtract(second, center, y, first.shape[0], turned)
    _subtract(third, center, y, first.shape[0] + second.shape[0], turned)
    _lengths(y, turned, arrays.norms[slot][sizes.rows :])
    if not sizes.own:
        x = arrays.x[slot].reshape(sizes.width, sizes.rows) if turned else arrays.x[slot].reshape(sizes.rows, sizes.width)
        _subtract(arrays.generated[group], center, x, 0, turned)
        _lengths(x, turned, arrays.norms[slot][: sizes.rows])


@loop
def targets(sizes, arrays, slot):
    """Return the centered targets [k, d], or [d, k] for few coordinates."""
    if sizes.width <= DIRECT_DIMENSIONS:
        return arrays.y[slot].reshape(sizes.width, sizes.columns)
    return arrays.y[slot].reshape(sizes.columns, sizes.width)


@loop
def _direct(x, at, y, out, i):
    """Write the squared distances of one row by differences, for targets stored one coordinate after the other."""
    point = x[0, at]
    for j in range(out.shape[1]):
        difference = y[0, j] - point
        out[i, j] = difference * difference
    for c in range(1, x.shape[0]):
        point = x[c, at]
        for j in range(out.shape[1]):
            difference = y[c, j] - point
            out[i, j] += difference * difference


@loop
def _expanded(x, y, norm, norms, out, i):
    """Turn the products of one row with all targets into squared distances, summed again directly where digits are lost."""
    lost = 0
    for j in range(out.shape[1]):
        total = norm + norms[j]
        value = total - _TWO * out[i, j]
        out[i, j] = value
        lost += value < _CANCELLED * total
    if lost == 0:
        return
    for j in range(out.shape[1]):
        if out[i, j] < _CANCELLED * (norm + norms[j]):
            total = ZERO
            for c in range(x.shape[1]):
                difference = x[i, c] - y[j, c]
                total += difference * difference
            out[i, j] = total


@loop
def write_distances(sizes, arrays, slot, first, last, thread, out):
    """Write the distances of some rows to all targets; those of the rows to themselves are infinite."""
    y = targets(sizes, arrays, slot)
    norms = arrays.norms[slot][sizes.rows :]
    row_norms = norms[: sizes.rows] if sizes.own else arrays.norms[slot][: sizes.rows]
    flat = arrays.y[slot] if sizes.own else arrays.x[slot]
    turned = sizes.width <= DIRECT_DIMENSIONS
    if turned:
        stride = sizes.columns if sizes.own else sizes.rows
        x = flat[: sizes.width * stride].reshape(sizes.width, stride)
    else:
        x = flat[: sizes.rows * sizes.width].reshape(sizes.rows, sizes.width)[first:last]
        multiply(arrays, thread, x, y, out, True)
    own = sizes.own
    for i in range(last - first):
        if turned:
            _direct(x, first + i, y, out, i)
        else:
            if own:
                out[i, first + i] = -INFINITY  # not summed again
            _expanded(x, y, row_norms[first + i], norms, out, i)
        for j in range(out.shape[1]):
            out[i, j] = max(math.sqrt(max(out[i, j], ZERO)), sizes.smallest)
        if own:
            out[i, first + i] = INFINITY


@loop
def stored(sizes, arrays, group, first, last, thread):
    """Return the distances of a block, or the memory for them."""
    if sizes.stored:
        return arrays.distances[group][first:last]
    return arrays.distances[thread][: last - first]


@loop
def _survey(distances, first, own, smallest, weights, nearest, column_nearest):
    """Write the nearest neighbors of rows and columns; return the weighted sum of the distances of a block."""
    total = 0.0
    for i in range(distances.shape[0]):
        nearest[first + i] = lowest_of_row(distances, i)
        for j in range(column_nearest.size):
            column_nearest[j] = min(column_nearest[j], distances[i, j])
        if own:
            distances[i, first + i] = smallest
        of_row = ZERO
        for j in range(weights.size):
            of_row += distances[i, j] * weights[j]
        total += of_row
        if own:
            distances[i, first + i] = INFINITY
    return total


@loop
def measure(sizes, arrays, sums, begin, end, thread):
    """Compute distances; write the weighted sum of those of each unit, and the nearest neighbors of rows and columns."""
    threads = use_threads(1)
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        slot = group if sizes.kept else thread
        if not sizes.kept:
            center_group(sizes, arrays, group, slot)
        weights = arrays.weights[group if arrays.weights.shape[0] > 1 else 0]
        nearest, column_nearest = arrays.nearest[group], arrays.column_nearest[unit]
        column_nearest[:] = INFINITY
        total = 0.0
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            last = min(first + sizes.block, sizes.rows)
            distances = stored(sizes, arrays, group, first, last, thread)
            write_distances(sizes, arrays, slot, first, last, thread, distances)
            total += _survey(distances, first, sizes.own, sizes.smallest, weights, nearest, column_nearest)
        sums[unit] = total
    use_threads(threads)
