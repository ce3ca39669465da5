"""Affinities and drifts of a block of rows at every temperature, compiled for the CPU by numba.

Equation: with m_i the distance of the nearest target of row i, and m the smallest of all m_i,

    E_ij = exp(-(D_ij - m_i) / T),    row_i = sum_j E_ij,    w_i = exp(-(m_i - m) / T),    column_j = sum_i w_i E_ij
    A_ij = E_ij sqrt(w_i / row_i) / sqrt(column_j)

This is one exponential for all temperatures of which the highest is a multiple: the others are its powers. Where a row or a target
is far from everything, w_i and column_j underflow. Then ("spread" groups) each column has a reference of its own, as in `pairwise`.

Shapes: g groups, n rows, r rows of a block, k columns (targets, negatives first), d coordinates, t temperatures.

Source: the factorization is ours.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from drifting.fields.loops.distances import DIRECT_DIMENSIONS, center_group, stored, targets, write_distances
from drifting.fields.loops.vectors import (
    ONE,
    UNDERFLOW,
    ZERO,
    dot,
    exponential,
    exponentials,
    loop,
    multiply,
    raise_row,
    sum_row,
    use_threads,
)

_HALF = np.float32(0.5)


class Kernel(NamedTuple):
    """The kernel at every temperature."""

    scale: Any  # [t], 1 / temperature, the highest temperature first
    power: Any  # [t], the power of the first exponential that gives this one, or 0
    spread: Any  # [g], 1 for a group in which one reference for all columns underflows
    row: Any  # [g, t, n], row sums, then row factors
    column: Any  # [g lanes, t, k], column sums of each lane
    smallest: Any  # [g], the smallest entry of `nearest`
    reference: Any  # [g, k], of each column the nearest row, in spread groups
    factor: Any  # [g, t, k], column factors
    floor: Any  # lower bound of affinities
    moved: Any  # [g, t n d], the drifts: of each block of rows those of all temperatures
    squares: Any  # [g lanes, t], the sum of their squares over each unit


class Block(NamedTuple):
    """Some rows of one group and what they share."""

    distances: Any  # [r, k], or the first exponentials if `replaced` and these have been computed
    nearest: Any  # [r]
    smallest: Any
    reference: Any  # [k]
    spread: Any
    replaced: Any
    base: Any  # [r, k], the distances themselves if `replaced`, or [1, k]: memory for the first exponentials
    values: Any  # [1, k], or [t r, k]: memory for those at one temperature
    row: Any  # [t, r]
    factor: Any  # [t, k]
    weights: Any  # [k]


@loop
def _load(sizes, arrays, kernel, group, first, last, thread):
    """Return a block of rows, whose distances are computed again if they are not stored."""
    slot = group if sizes.kept else thread
    distances = stored(sizes, arrays, group, first, last, thread)
    if not sizes.stored:
        write_distances(sizes, arrays, slot, first, last, thread, distances)
    replaced = sizes.stored and kernel.power.min() > 0 and not kernel.spread[group]
    scratch = arrays.scratch[thread]
    return Block(
        distances,
        arrays.nearest[group, first:last],
        kernel.smallest[group],
        kernel.reference[group],
        kernel.spread[group],
        replaced,
        distances if replaced else scratch[:1],
        scratch[1:],
        kernel.row[group, :, first:last],
        kernel.factor[group if kernel.factor.shape[0] > group else 0],
        arrays.weights[group if arrays.weights.shape[0] > 1 else 0],
    )


@loop
def _sum_block(block, scale, power, column):
    """Add a block to the sums of rows and columns, in a group with one reference for all columns."""
    distances, base = block.distances, block.base
    for i in range(distances.shape[0]):
        at, nearest = (i if block.replaced else 0), block.nearest[i]
        exponentials(distances, i, nearest, scale[0], base, at)
        for t in range(scale.size):
            values, place = block.values, 0
            if power[t] == 1:
                values, place = base, at
            elif power[t] > 1:
                raise_row(base, at, power[t], values, 0)
            else:
                exponentials(distances, i, nearest, scale[t], values, 0)
            weight = exponential((block.smallest - nearest) * scale[t])
            total = ZERO
            for j in range(distances.shape[1]):
                value = values[place, j]
                total += value
                column[t, j] += weight * value
            block.row[t, i] = total


@loop
def _sum_spread_block(block, scale, column):
    """The same in a group in which every column has a reference of its own."""
    distances, reference, values = block.distances, block.reference, block.values
    for i in range(distances.shape[0]):
        for t in range(scale.size):
            exponentials(distances, i, block.nearest[i], scale[t], values, 0)
            block.row[t, i] = sum_row(values, 0)
            for j in range(distances.shape[1]):
                x = (reference[j] - distances[i, j]) * scale[t]
                value = exponential(x)
                column[t, j] += value if x > UNDERFLOW else ZERO


@loop
def add_up(sizes, arrays, kernel, begin, end, thread):
    """Write the sums of the exponentials of each row, and of each column over the rows of each unit.

    Where distances are stored and one exponential gives all temperatures, it replaces them.
    """
    threads = use_threads(1)
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        if not (sizes.kept or sizes.stored):
            center_group(sizes, arrays, group, thread)
        column = kernel.column[unit]
        column[:] = ZERO
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            last = min(first + sizes.block, sizes.rows)
            block = _load(sizes, arrays, kernel, group, first, last, thread)
            if block.spread:
                _sum_spread_block(block, kernel.scale, column)
            else:
                _sum_block(block, kernel.scale, kernel.power, column)
    use_threads(threads)


@loop
def _affinities(values, at, row, factor, t, weights, floor, split):
    """Turn exponentials into weighted affinities; return the masses of the negatives and of the positives."""
    negative, positive = ZERO, ZERO
    for j in range(split):
        value = max(values[at, j] * row * factor[t, j], floor) * weights[j]
        values[at, j] = value
        negative += value
    for j in range(split, values.shape[1]):
        value = max(values[at, j] * row * factor[t, j], floor) * weights[j]
        values[at, j] = value
        positive += value
    return negative, positive


@loop
def _spread_exponentials(distances, i, nearest, reference, scale, out, at):
    """Write the roots of the products of the exponentials relative to row and to column."""
    for j in range(out.shape[1]):
        x = ((nearest - distances[i, j]) + (reference[j] - distances[i, j])) * (_HALF * scale)
        value = exponential(x)
        out[at, j] = value if x > UNDERFLOW else ZERO


@loop
def _move_directly(values, at, y, split, negative, positive, out, to):
    """Write the drift of one row, from targets stored one coordinate after the other."""
    for c in range(out.shape[1]):
        away = dot(values, at, y, c, 0, split)
        toward = dot(values, at, y, c, split, values.shape[1])
        out[to, c] = negative * toward - positive * away


@loop
def _exponentials_of_row(block, i, t, scale, power, to):
    """Write the exponentials of one row at one temperature; return the factor of the row."""
    distances, base, values, nearest = block.distances, block.base, block.values, block.nearest[i]
    if block.spread:
        _spread_exponentials(distances, i, nearest, block.reference, scale[t], values, to)
        return np.float32(math.sqrt(ONE / block.row[t, i]))
    at = i if block.replaced else 0
    if power[t] == 1:
        for j in range(values.shape[1]):
            values[to, j] = base[at, j]
    elif power[t] > 1:
        raise_row(base, at, power[t], values, to)
    else:
        exponentials(distances, i, nearest, scale[t], values, to)
    weight = exponential((block.smallest - nearest) * scale[t])
    return np.float32(math.sqrt(weight / block.row[t, i]))


@loop
def _move_block(sizes, kernel, block, y, moved):
    """Write the coefficients of all targets for a block of rows at every temperature, or for few coordinates the drift itself."""
    scale, power, split, values = kernel.scale, kernel.power, sizes.negatives, block.values
    count, turned = block.distances.shape[0], sizes.width <= DIRECT_DIMENSIONS
    for i in range(count):
        if not (block.spread or block.replaced):
            exponentials(block.distances, i, block.nearest[i], scale[0], block.base, 0)
        for t in range(scale.size):
            to = 0 if turned else t * count + i
            row = _exponentials_of_row(block, i, t, scale, power, to)
            negative, positive = _affinities(values, to, row, block.factor, t, block.weights, kernel.floor, split)
            if turned:
                _move_directly(values, to, y, split, negative, positive, moved, t * count + i)
            else:
                for j in range(split):
                    values[to, j] *= -positive
                for j in range(split, values.shape[1]):
                    values[to, j] *= negative


@loop
def move(sizes, arrays, kernel, begin, end, thread):
    """Write the drift at every temperature, block by block, and the sum of its squares over each unit."""
    threads = use_threads(1)
    count, width = kernel.scale.size, sizes.width
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        slot = group if sizes.kept else thread
        if not sizes.kept:
            center_group(sizes, arrays, group, slot)
        y = targets(sizes, arrays, slot)
        kernel.squares[unit] = 0
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            last = min(first + sizes.block, sizes.rows)
            rows = count * (last - first)
            block = _load(sizes, arrays, kernel, group, first, last, thread)
            drift = kernel.moved[group][first * count * width : last * count * width].reshape(rows, width)
            _move_block(sizes, kernel, block, y, drift)
            if width > DIRECT_DIMENSIONS:
                multiply(arrays, thread, block.values[:rows], y, drift, False)
            for i in range(rows):
                kernel.squares[unit, i // (last - first)] += dot(drift, i, drift, i, 0, width)
    use_threads(threads)


@loop
def combine(sizes, moved, factors, total, begin, end, thread):
    """Write the sum of the drifts of all temperatures, each times a factor."""
    count = factors.size
    for unit in range(begin, end):
        group, lane = unit // sizes.lanes, unit % sizes.lanes
        for first in range(lane * sizes.block, sizes.rows, sizes.lanes * sizes.block):
            last = min(first + sizes.block, sizes.rows)
            flat = moved[group][first * count * sizes.width : last * count * sizes.width]
            rows = (last - first) * sizes.width
            out = total[group][first:last].reshape(rows)
            one = flat[:rows]
            for j in range(rows):
                out[j] = factors[0] * one[j]
            for t in range(1, count):
                one, factor = flat[t * rows : (t + 1) * rows], factors[t]
                for j in range(rows):
                    out[j] += factor * one[j]
