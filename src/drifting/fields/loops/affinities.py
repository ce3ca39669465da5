"""Affinities and drifts of a block of rows at every temperature, compiled for the CPU by numba.

Equation: with m_i the distance of the nearest target of row i, and m the smallest of all m_i,

    E_ij = exp(-(D_ij - m_i) / T),    row_i = sum_j E_ij,    w_i = exp(-(m_i - m) / T),    column_j = sum_i w_i E_ij
    A_ij = E_ij sqrt(w_i / row_i) / sqrt(column_j)

and with S- and S+ the sums of A_ij over negatives and positives and r the repulsion, the drift is

    V_i = S- sum_j A_ij y+_j - r S+ sum_j A_ij y-_j + (r - 1) S+ S- x_i

This is one exponential for all temperatures of which the highest is a multiple: the others are its powers. Where a row or a target
is far from everything, w_i and column_j underflow. Then ("spread" groups) each column has a reference of its own, as in `pairwise`.

Shapes: g groups, n rows, r rows of a block, k columns (targets, negatives first), d coordinates, t temperatures.

Source: the factorization is ours.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from drifting.fields.loops.distances import DIRECT_DIMENSIONS, center_group, center_targets, stored, targets, write_distances
from drifting.fields.loops.products import multiply
from drifting.fields.loops.simd import (
    WIDTH,
    exponential,
    exponential_of_number,
    keep_above,
    larger,
    load,
    multiply_add,
    splat,
    store,
    total,
    whole_power,
)
from drifting.fields.loops.vectors import INFINITY, ONE, ZERO, dot, entry, inlined, loop

# Columns whose sums at all temperatures stay in the first cache of a core while a block of rows is added to them.
_TILE = 1024
_HALF = np.float32(0.5)
# Beyond this range of distances to the nearest, in temperatures, one reference for all columns underflows: the sum of a column is
# at least e^-range, of which terms below e^-87 are no part.
_RANGE = np.float32(60)
# Rows of the scratch memory of a thread before the factors of columns, one per temperature, and the values of rows.
RESERVED = 2


class Kernel(NamedTuple):
    """The kernel at every temperature."""

    scale: Any  # [t], 1 / temperature, the highest temperature first
    power: Any  # [t], the power of the first exponential that gives this one, or 0
    bound: Any  # [t], what is not above this underflows when it is raised to the power
    row: Any  # [g, t, n], row factors sqrt(w_i / row_i)
    column: Any  # [g lanes t, k], column sums of each lane
    floor: Any  # lower bound of affinities
    repulsion: Any  # [g], weight of the push of the negatives; if it is not 1, each sample is the masked negative of its row
    moved: Any  # [g, t n stride], the drifts: of each block of rows those of all temperatures
    squares: Any  # [g lanes, t], the sum of their squares over each unit


class Block(NamedTuple):
    """Some rows of one group and what they share."""

    distances: Any  # [r, k], or the first exponentials if `replaced` and these have been computed
    nearest: Any  # [r]
    smallest: Any  # the smallest distance of the group
    spread: Any  # 1 in a group in which one reference for all columns underflows
    replaced: Any
    base: Any  # [r, k], the distances themselves if `replaced`, or [1, k]: memory for the first exponentials
    reference: Any  # [1, k], of each column the nearest row
    factor: Any  # [t, k], column factors
    values: Any  # [_, k]: memory for the exponentials at one temperature or at all
    row: Any  # [t, r]
    weights: Any  # [1, k]


@loop
def _survey_group(sizes, arrays, kernel, group, thread):
    """Write the nearest row of each column; return the smallest distance, and whether the group is spread."""
    reference, nearest = arrays.scratch[thread, 1], arrays.nearest[group]
    smallest, highest = INFINITY, -INFINITY
    for i in range(sizes.rows):
        smallest, highest = min(smallest, nearest[i]), max(highest, nearest[i])
    for j in range(sizes.columns):
        lowest = INFINITY
        for unit in range(group * sizes.lanes, (group + 1) * sizes.lanes):
            lowest = min(lowest, arrays.column_nearest[unit, j])
        reference[j] = lowest if lowest < INFINITY else ZERO
        highest = max(highest, reference[j])
    return smallest, int((highest - smallest) * kernel.scale[-1] > _RANGE)


@loop
def _load(sizes, arrays, kernel, survey, group, first, last, thread):
    """Return a block of rows, whose distances are computed again if they are not stored."""
    smallest, spread = survey
    distances = stored(sizes, arrays, group, first, last, thread)
    if not sizes.stored:
        write_distances(sizes, arrays, group, group if sizes.kept else thread, first, last, thread, distances)
    replaced = sizes.stored and kernel.power.min() > 0 and not spread
    scratch, count = arrays.scratch[thread], kernel.scale.size
    of_weights = group if arrays.weights.shape[0] > 1 else 0
    return Block(
        distances,
        arrays.nearest[group, first:last],
        smallest,
        spread,
        replaced,
        distances if replaced else scratch[:1],
        scratch[1:2],
        scratch[RESERVED : RESERVED + count],
        scratch[RESERVED + count :],
        kernel.row[group, :, first:last],
        arrays.weights[of_weights : of_weights + 1],
    )


@inlined
def _exponentials(block, i, scale, at, begin, end):
    """Write the first exponentials of one row, exp((nearest - distance) * scale), for some columns."""
    nearest = block.nearest[i]
    for j in range(begin, end, WIDTH):
        store(block.base, at, j, exponential((nearest - load(block.distances, i, j)) * scale))


@inlined
def _of_temperature(block, i, at, j, power, bound, scale):
    """Return the exponentials of a vector of one row at one temperature, from the first ones if they give them."""
    if power > 0:
        first = load(block.base, at, j)
        return whole_power(keep_above(first, first, bound), power)
    return exponential((block.nearest[i] - load(block.distances, i, j)) * scale)


@loop
def _sum_block(block, kernel, unit):
    """Write the factors of rows and add to the sums of columns, in a group with one reference for all columns."""
    count, column = kernel.scale.size, kernel.column
    block.row[:] = ZERO
    for begin in range(0, column.shape[1], _TILE):
        end = min(begin + _TILE, column.shape[1])
        for i in range(block.distances.shape[0]):
            at = i if block.replaced else 0
            _exponentials(block, i, kernel.scale[0], at, begin, end)
            for t in range(count):
                power, bound, scale = kernel.power[t], splat(kernel.bound[t]), kernel.scale[t]
                weight = exponential_of_number((block.smallest - block.nearest[i]) * scale)
                weights, of_row, place = splat(weight), splat(ZERO), unit * count + t
                for j in range(begin, end, WIDTH):
                    value = _of_temperature(block, i, at, j, power, bound, scale)
                    of_row = of_row + value
                    store(column, place, j, multiply_add(value, weights, load(column, place, j)))
                block.row[t, i] += total(of_row)
                if end == column.shape[1]:
                    block.row[t, i] = math.sqrt(weight / block.row[t, i])


@loop
def _sum_spread_block(block, kernel, unit):
    """The same in a group in which every column has a reference of its own."""
    count, column = kernel.scale.size, kernel.column
    for i in range(block.distances.shape[0]):
        for t in range(count):
            scale, of_row, place = kernel.scale[t], splat(ZERO), unit * count + t
            for j in range(0, column.shape[1], WIDTH):
                distances = load(block.distances, i, j)
                of_row = of_row + exponential((block.nearest[i] - distances) * scale)
                value = exponential((load(block.reference, 0, j) - distances) * scale)
                store(column, place, j, load(column, place, j) + value)
            block.row[t, i] = math.sqrt(ONE / total(of_row))


@entry
def add_up(sizes, arrays, kernel, begin, end, thread):
    """Write the factors of rows, and the sums of the exponentials of each column over the rows of each unit.

    Where distances are stored and one exponential gives all temperatures, it replaces them.
    """
    count = kernel.scale.size
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        if not (sizes.kept or sizes.stored):
            center_group(sizes, arrays, group, thread)
        survey = _survey_group(sizes, arrays, kernel, group, thread)
        kernel.column[unit * count : (unit + 1) * count] = ZERO
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            last = min(first + sizes.block, sizes.rows)
            block = _load(sizes, arrays, kernel, survey, group, first, last, thread)
            if block.spread:
                _sum_spread_block(block, kernel, unit)
            else:
                _sum_block(block, kernel, unit)


@loop
def _column_factors(sizes, arrays, kernel, group, thread):
    """Write the factors of columns from the sums of all lanes."""
    count = kernel.scale.size
    for t in range(count):
        for j in range(sizes.columns):
            of_column = ZERO
            for unit in range(group * sizes.lanes, (group + 1) * sizes.lanes):
                of_column += kernel.column[unit * count + t, j]
            arrays.scratch[thread, RESERVED + t, j] = ONE / np.float32(math.sqrt(of_column)) if of_column > ZERO else ZERO


@inlined
def _spread_exponential(block, i, j, scale):
    """Return the roots of the products of the exponentials relative to row and to column."""
    distances = load(block.distances, i, j)
    return exponential(((block.nearest[i] - distances) + (load(block.reference, 0, j) - distances)) * (_HALF * scale))


@inlined
def _affinities(block, kernel, i, t, to, begin, end):
    """Write the weighted affinities of one row to some columns, and return their sum."""
    mass, floor, factor, at = splat(ZERO), splat(kernel.floor), splat(block.row[t, i]), i if block.replaced else 0
    power, bound, scale, spread = kernel.power[t], splat(kernel.bound[t]), kernel.scale[t], block.spread
    for j in range(begin, end, WIDTH):
        value = _spread_exponential(block, i, j, scale) if spread else _of_temperature(block, i, at, j, power, bound, scale)
        value = larger(value * (factor * load(block.factor, t, j)), floor) * load(block.weights, 0, j)
        store(block.values, to, j, value)
        mass = mass + value
    return total(mass)


@loop
def _product(values, at, y, c, begin, end):
    """Return the product of two rows from column `begin` to `end`."""
    even, odd = splat(ZERO), splat(ZERO)
    for j in range(begin, end - WIDTH, 2 * WIDTH):
        even = multiply_add(load(values, at, j), load(y, c, j), even)
        odd = multiply_add(load(values, at, j + WIDTH), load(y, c, j + WIDTH), odd)
    if (end - begin) % (2 * WIDTH):
        even = multiply_add(load(values, at, end - WIDTH), load(y, c, end - WIDTH), even)
    return total(even + odd)


@inlined
def _move_directly(values, at, y, split, negative, positive, out, to):
    """Write the drift of one row, from targets stored one coordinate after the other."""
    for c in range(out.shape[1]):
        away = _product(values, at, y, c, 0, split)
        toward = _product(values, at, y, c, split, values.shape[1])
        out[to, c] = negative * toward - positive * away


@inlined
def _multiply_row(values, at, begin, end, factor):
    for j in range(begin, end, WIDTH):
        store(values, at, j, load(values, at, j) * factor)


@loop
def _move_block(sizes, kernel, block, y, repulsion, first, moved):
    """Write the coefficients of all targets for a block of rows at every temperature, or for few coordinates the drift itself.

    The column of a sample among the negatives is masked for it, so it takes the coefficient of the sample itself.
    """
    split, columns, values = sizes.negatives, sizes.columns, block.values
    count, turned = block.distances.shape[0], sizes.width <= DIRECT_DIMENSIONS
    for i in range(count):
        if not (block.spread or block.replaced):
            _exponentials(block, i, kernel.scale[0], 0, 0, columns)
        for t in range(kernel.scale.size):
            to = 0 if turned else t * count + i
            negative = _affinities(block, kernel, i, t, to, 0, split)
            positive = _affinities(block, kernel, i, t, to, split, columns)
            push, own = repulsion * positive, (repulsion - ONE) * negative * positive
            if turned:
                _move_directly(values, to, y, split, negative, push, moved, t * count + i)
                if own != ZERO:
                    for c in range(sizes.width):
                        moved[t * count + i, c] += own * y[c, first + i]
            else:
                _multiply_row(values, to, 0, split, -push)
                _multiply_row(values, to, split, columns, negative)
                if own != ZERO:
                    values[to, first + i] += own


@entry
def move(sizes, arrays, kernel, begin, end, thread):
    """Write the drift at every temperature, block by block, and the sum of its squares over each unit."""
    count, stride = kernel.scale.size, sizes.stride
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        slot = group if sizes.kept else thread
        if not sizes.kept and sizes.stored:
            center_targets(sizes, arrays, group, slot)
        elif not sizes.kept:
            center_group(sizes, arrays, group, slot)
        y = targets(sizes, arrays, slot)
        survey = _survey_group(sizes, arrays, kernel, group, thread)
        _column_factors(sizes, arrays, kernel, group, thread)
        kernel.squares[unit] = 0
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            last = min(first + sizes.block, sizes.rows)
            rows = count * (last - first)
            block = _load(sizes, arrays, kernel, survey, group, first, last, thread)
            drift = kernel.moved[group][first * count * stride : last * count * stride].reshape(rows, stride)
            _move_block(sizes, kernel, block, y, kernel.repulsion[group], first, drift)
            if sizes.width > DIRECT_DIMENSIONS:
                multiply(block.values[:rows], y, drift, arrays.panel[thread])
            for i in range(rows):
                kernel.squares[unit, i // (last - first)] += dot(drift, i, drift, i, 0, stride)


@entry
def combine(sizes, moved, factors, total, begin, end, thread):
    """Write the sum of the drifts of all temperatures, each times a factor."""
    count, width, stride = factors.size, sizes.width, sizes.stride
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            rows = min(first + sizes.block, sizes.rows) - first
            drift = moved[group][first * count * stride : (first + rows) * count * stride].reshape(count * rows, stride)
            out = total[group][first : first + rows]
            for i in range(rows):
                for c in range(width):
                    out[i, c] = factors[0] * drift[i, c]
                for t in range(1, count):
                    for c in range(width):
                        out[i, c] += factors[t] * drift[t * rows + i, c]
