"""Triton kernels for groups of any size, cut into tiles of rows and targets that are computed again in every pass.

No matrix of pairs is written to memory. `triton_kernels` has the equation, and what these kernels share with those of small groups.

Shapes: g groups, n rows (generated samples), k columns (targets), d coordinates, t temperatures.
"""

from drifting.fields.triton_kernels import (
    INFINITY,
    affinities_of,
    block_of_center,
    distances_of,
    finite,
    inverse_of,
    jit,
    load_block,
    pointers_to_targets,
    tl,
    weighted_sum,
    weights_of,
)


@jit
def measure_tiles(samples, sums, CUT: tl.constexpr):
    """Write the weighted sum of the distances of each tile of rows [g, tiles]. Grid: tiles of rows, groups."""
    tile, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = tile * CUT.rows + tl.arange(0, CUT.rows)
    total = tl.full([CUT.rows], 0.0, tl.float32)
    for first in range(0, samples.columns, CUT.columns):
        total += weighted_sum(samples, group, i, (first + tl.arange(0, CUT.columns),), CUT)
    tl.store(sums + group * tl.num_programs(0) + tile, tl.sum(total, 0))


@jit
def add_up_tiles(samples, temperatures, nearest, sums, AXIS: tl.constexpr, CUT: tl.constexpr):
    """Write the nearest distance and, at all temperatures, the sum of the exponentials of each row or column.

    AXIS 1 sums over the targets of a row and writes [g, n] and [g, t, n]; axis 0 sums over the rows of a target and writes [g, k]
    and [g, t, k]. Grid: tiles of what is written, groups. The reference of a sum moves as nearer pairs are found.
    """
    tile, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    SIZE: tl.constexpr = CUT.rows if AXIS == 1 else CUT.columns
    OTHER: tl.constexpr = CUT.columns if AXIS == 1 else CUT.rows
    COUNT: tl.constexpr = CUT.temperatures
    count, others = (samples.rows, samples.columns) if AXIS == 1 else (samples.columns, samples.rows)
    one, t = tile * SIZE + tl.arange(0, SIZE), tl.arange(0, CUT.padded)
    inverse = inverse_of(temperatures + tl.minimum(t, CUT.temperatures - 1))[None, :]
    lowest = tl.full([SIZE], INFINITY, tl.float32)
    totals = tl.full([SIZE, CUT.padded], 0.0, tl.float32)
    for first in range(0, others, OTHER):
        other = first + tl.arange(0, OTHER)
        if AXIS == 1:
            distances = distances_of(samples, group, one, (other,), INFINITY, CUT)[0]
        else:
            distances = distances_of(samples, group, other, (one,), INFINITY, CUT)[0]
        found = tl.minimum(lowest, tl.min(distances, AXIS))
        totals *= tl.exp((finite(found) - lowest)[:, None] * inverse)
        gaps = tl.expand_dims(finite(found), AXIS) - distances
        for index in tl.static_range(COUNT):
            part = tl.sum(tl.exp(gaps * inverse_of(temperatures + index)), AXIS)
            totals += tl.where(t[None, :] == index, part[:, None], 0.0)
        lowest = found
    tl.store(nearest + group * count + one, lowest, mask=one < count)
    at = sums + (group * CUT.temperatures + t[None, :]) * count + one[:, None]
    tl.store(at, totals, mask=(one < count)[:, None] & (t < CUT.temperatures)[None, :])


@jit
def _affinity(samples, kernel, pairs, distances, index, CUT: tl.constexpr):
    """Return the weighted affinities [r, c] of rows to targets before the target `end` at one temperature."""
    group, i, j, end = pairs
    of, inside = group * CUT.temperatures + index, i < samples.rows
    nearest = tl.load(kernel.nearest + group * samples.rows + i, mask=inside, other=0.0)
    column_nearest = tl.load(kernel.column_nearest + group * samples.columns + j, mask=j < end, other=0.0)
    row = tl.load(kernel.sums + of * samples.rows + i, mask=inside, other=0.0)
    column = tl.load(kernel.column_sums + of * samples.columns + j, mask=j < end, other=0.0)
    inverse = inverse_of(kernel.temperatures + index)
    affinity = affinities_of(distances, (nearest, row), (column_nearest, column), inverse, samples.floor)
    return affinity * weights_of(samples, group, j, end, CUT)[None, :]


@jit
def _side(samples, side):
    """Return the first target of a side and that after its last: of the negatives, 0, or of the positives, 1."""
    return tl.where(side == 0, 0, samples.negatives), tl.where(side == 0, samples.negatives, samples.columns)


@jit
def move_tiles(samples, kernel, sides, masses, CUT: tl.constexpr):
    """Write the weighted sum of the targets [2, t, g, n, d] and the mass [2, t, g, n] of each side: negatives, then positives.

    Grid: tiles of rows, groups, sides. Reads the rows once per tile of columns, and the targets 1 + t times per tile of rows.
    """
    tile, group, side = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i, t, groups = tile * CUT.rows + tl.arange(0, CUT.rows), tl.arange(0, CUT.padded), tl.num_programs(1)
    begin, end = _side(samples, side)
    COUNT: tl.constexpr = CUT.temperatures
    mass = tl.full([CUT.rows, CUT.padded], 0.0, tl.float32)
    for first in range(begin, end, CUT.columns):
        j = first + tl.arange(0, CUT.columns)
        distances = distances_of(samples, group, i, (j,), INFINITY, CUT)[0]
        for index in tl.static_range(COUNT):
            affinity = _affinity(samples, kernel, (group, i, j, end), distances, index, CUT)
            mass += tl.where(t[None, :] == index, tl.sum(affinity, 1)[:, None], 0.0)
            at = sides + (((side * CUT.temperatures + index) * groups + group) * samples.rows + i) * samples.width
            _add_targets(samples, group, at, j, affinity, tl.where(first > begin, samples.rows, 0), CUT)
    at = masses + ((side * CUT.temperatures + t[None, :]) * groups + group) * samples.rows + i[:, None]
    tl.store(at, mass, mask=(i < samples.rows)[:, None] & (t < CUT.temperatures)[None, :])


@jit
def spread_tiles(samples, kernel, sums, CUT: tl.constexpr):
    """Write how the affinities of each row spread over the targets of each side [2, 3, t, g, n].

    The three numbers are the highest, and the sums of all and of their squares in units of it, which cannot underflow. Grid: tiles
    of rows, groups, sides.
    """
    tile, group, side = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i, t, groups = tile * CUT.rows + tl.arange(0, CUT.rows), tl.arange(0, CUT.padded), tl.num_programs(1)
    begin, end = _side(samples, side)
    COUNT: tl.constexpr = CUT.temperatures
    highest = tl.full([CUT.rows, CUT.padded], 0.0, tl.float32)
    total, squares = tl.zeros_like(highest), tl.zeros_like(highest)
    for first in range(begin, end, CUT.columns):
        j = first + tl.arange(0, CUT.columns)
        distances = distances_of(samples, group, i, (j,), INFINITY, CUT)[0]
        for index in tl.static_range(COUNT):
            affinity, chosen = _affinity(samples, kernel, (group, i, j, end), distances, index, CUT), t[None, :] == index
            before = tl.sum(tl.where(chosen, highest, 0.0), 1)
            found = tl.maximum(before, tl.max(affinity, 1))
            unit = tl.where(found == 0, 1.0, found)[:, None]
            shrunk = tl.where(chosen, highest / unit, 1.0)
            relative = affinity / unit
            total = total * shrunk + tl.where(chosen, tl.sum(relative, 1)[:, None], 0.0)
            squares = squares * shrunk * shrunk + tl.where(chosen, tl.sum(relative * relative, 1)[:, None], 0.0)
            highest = tl.where(chosen, found[:, None], highest)
    size = CUT.temperatures * groups * samples.rows
    at = sums + (side * 3 * size + (t[None, :] * groups + group) * samples.rows + i[:, None])
    known = (i < samples.rows)[:, None] & (t < CUT.temperatures)[None, :]
    tl.store(at, highest, mask=known)
    tl.store(at + size, total, mask=known)
    tl.store(at + 2 * size, squares, mask=known)


@jit
def _add_targets(samples, group, at, j, affinity, begun, CUT: tl.constexpr):
    """Add the weighted sum of some targets to memory which this program alone uses; it holds `begun` rows already."""
    tl.debug_barrier()  # the memory was written for the tile of columns before
    i = tl.program_id(0) * CUT.rows + tl.arange(0, CUT.rows)
    for start in tl.range(0, samples.width, CUT.features, num_stages=1):
        features = start + tl.arange(0, CUT.features)
        known = (i < samples.rows)[:, None] & (features < samples.width)[None, :]
        total = tl.load(at[:, None] + features[None, :], mask=known & (i < begun)[:, None], other=0.0)
        y = load_block(pointers_to_targets(samples, group, j), j < samples.columns, features, samples.width)
        y -= block_of_center(samples, group, features)[None, :]
        tl.store(at[:, None] + features[None, :], tl.dot(affinity, y, total, input_precision=CUT.precision), mask=known)


@jit
def join_sides(samples, sides, masses, squares, CUT: tl.constexpr):
    """Turn the first side into the drift; write the sum of its squares [t, g, tiles]. Grid: tiles of rows, groups, temperatures."""
    tile, group, index = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    groups, count = tl.num_programs(1), tl.num_programs(2)
    i = tile * CUT.rows + tl.arange(0, CUT.rows)
    inside, row = i < samples.rows, (index * groups + group) * samples.rows + i
    other = row + (count * groups).to(tl.int64) * samples.rows
    negative = tl.load(masses + row, mask=inside, other=0.0)[:, None]
    positive = tl.load(masses + other, mask=inside, other=0.0)[:, None]
    total = tl.full([CUT.rows], 0.0, tl.float32)
    for start in range(0, samples.width, CUT.features):
        features = start + tl.arange(0, CUT.features)
        away = load_block(sides + row * samples.width, inside, features, samples.width)
        toward = load_block(sides + other * samples.width, inside, features, samples.width)
        drift = negative * toward - positive * away
        known = inside[:, None] & (features < samples.width)[None, :]
        tl.store(sides + (row * samples.width)[:, None] + features[None, :], drift, mask=known)
        total += tl.sum(drift * drift, 1)
    tl.store(squares + (index * groups + group) * tl.num_programs(0) + tile, tl.sum(total, 0))
