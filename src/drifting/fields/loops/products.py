"""Matrix products of the compiled loops, whose results stay in registers while a product is added up.

A library's product is made for large matrices; those of a group of 64 samples run at half its rate. A tile of `ROWS` rows and
`PANEL` columns of the result fills the vector registers. The last tile repeats the last row, so that no other number of rows needs
code of its own; its columns are cut to fewer vectors.

Shapes: n rows, k columns, d coordinates, whole vectors of k and d.

Source: the tiling is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008).
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config

from drifting.fields.loops.simd import FLOATS, WIDTH, WORDS, constant, intrinsic, load, place, spread, store
from drifting.fields.loops.vectors import loop

_features: Any = vars(config)["CPU_FEATURES"]  # of the environment, None if it has none
_has_long_registers = "+avx512f" in (binding.get_host_cpu_features().flatten() if _features is None else _features)
# With 32 registers of a whole vector: 24 sums and 4 operands. With 16 of half a vector: 12 sums and 2 operands.
ROWS, VECTORS = 6, 4 if _has_long_registers else 1
PANEL = VECTORS * WIDTH
# Terms that are added up before they are added to the result: a panel of so many rows stays in the caches.
DEPTH = 256


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _tile(vectors: int) -> Any:
    """Return a function that computes `ROWS` rows of a product in `vectors` vectors of columns.

    It has the arguments (one, i, first, panel, j, out, at). It computes row i and those that follow of one[:, first:] @ panel, from
    column j of the panel, in column `at` of `out`. It adds them to what is there if `first` is above 0.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        one, i, first, panel, j, out, at = values
        of_one, of_panel, of_out = (signature.args[index] for index in (0, 3, 5))
        kind, columns = i.type, [WIDTH * index for index in range(vectors)]
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fmuladd.v{WIDTH}f32"
        )
        matrix = context.make_array(of_one)(context, builder, one)
        count, _ = cgutils.unpack_tuple(builder, matrix.shape, 2)
        terms, _ = cgutils.unpack_tuple(builder, context.make_array(of_panel)(context, builder, panel).shape, 2)
        last = builder.sub(count, kind(1))
        rows = [_smaller(builder, builder.add(i, kind(index)), last) for index in range(ROWS)]
        start, body = builder.block, builder.append_basic_block("terms")
        builder.branch(body)
        builder.position_at_end(body)
        term, sums = builder.phi(kind), [[builder.phi(FLOATS) for _ in columns] for _ in rows]
        read = [place(context, builder, of_panel, panel, [term, builder.add(j, kind(c))]) for c in columns]
        operands = [builder.load(entries, align=4) for entries in read]
        following = builder.add(term, kind(1))
        term.add_incoming(kind(0), start)
        term.add_incoming(following, body)
        for row, of_row in zip(rows, sums, strict=True):
            entry = cgutils.get_item_pointer(context, builder, of_one, matrix, [row, builder.add(first, term)])
            factor = spread(builder, builder.load(entry))
            for index, (operand, before) in enumerate(zip(operands, of_row, strict=True)):
                of_row[index] = builder.call(multiply_add, [factor, operand, before])
                before.add_incoming(constant(0.0), start)
                before.add_incoming(of_row[index], body)
        after, adding, writing = (builder.append_basic_block(name) for name in ("after", "adding", "writing"))
        builder.cbranch(builder.icmp_signed("<", following, terms), body, after)
        builder.position_at_end(after)
        results = [
            (place(context, builder, of_out, out, [row, builder.add(at, kind(c))]), value)
            for row, of_row in zip(rows, sums, strict=True)
            for c, value in zip(columns, of_row, strict=True)
        ]
        builder.cbranch(builder.icmp_signed(">", first, kind(0)), adding, writing)
        builder.position_at_end(adding)
        # The last row may be there several times: all are read before any is written.
        added = [builder.fadd(builder.load(to, align=4), value) for to, value in results]
        builder.branch(writing)
        builder.position_at_end(writing)
        finals = [builder.phi(FLOATS) for _ in results]
        for final, (to, value), more in zip(finals, results, added, strict=True):
            final.add_incoming(value, after)
            final.add_incoming(more, adding)
            builder.store(final, to, align=4)
        return context.get_dummy_value()

    def tile(context: Any, one: Any, i: Any, first: Any, panel: Any, j: Any, out: Any, at: Any) -> Any:
        return types.void(one, types.intp, types.intp, panel, types.intp, out, types.intp), generate

    return intrinsic(tile)


_whole, _two, _one = _tile(VECTORS), _tile(2), _tile(1)


@intrinsic
def _transpose(context: Any, source: Any, i: Any, c: Any, out: Any, to: Any, j: Any) -> Any:
    """Write a square of `WIDTH` rows and columns, transposed, by exchanging halves, quarters and so on of pairs of rows."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, i, c, out, to, j = values
        of_source, of_out = signature.args[0], signature.args[3]
        read = [place(context, builder, of_source, source, [builder.add(i, i.type(row)), c]) for row in range(WIDTH)]
        rows = [builder.load(entries, align=4) for entries in read]
        size = WIDTH // 2
        while size:
            for row in (row for row in range(WIDTH) if not row & size):
                upper, lower = rows[row], rows[row + size]
                left = [entry + WIDTH - size if entry & size else entry for entry in range(WIDTH)]
                right = [entry + WIDTH if entry & size else entry + size for entry in range(WIDTH)]
                rows[row], rows[row + size] = (
                    builder.shuffle_vector(upper, lower, ir.Constant(WORDS, order)) for order in (left, right)
                )
            size //= 2
        for row, value in enumerate(rows):
            builder.store(value, place(context, builder, of_out, out, [builder.add(to, i.type(row)), j]), align=4)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(source, whole, whole, out, whole, whole), generate


@loop
def _multiply_panel(one, first, panel, out, at):
    """Add one[:, first:] @ panel to the columns of `out` from `at`, or write it there if `first` is 0."""
    vectors = min(VECTORS, (out.shape[1] - at) // WIDTH)
    for i in range(0, one.shape[0], ROWS):
        if vectors == VECTORS:
            _whole(one, i, first, panel, 0, out, at)
        else:
            if vectors >= 2:
                _two(one, i, first, panel, 0, out, at)
            if vectors % 2:
                further = (vectors - 1) * WIDTH
                _one(one, i, first, panel, further, out, at + further)


@loop
def multiply(one, other, out, memory):
    """Write one [n, k] @ other [k, d] to out [n, d]; `memory` [`DEPTH`, `PANEL`] is for parts of `other`."""
    for first in range(0, one.shape[1], DEPTH):
        panel = memory[: min(DEPTH, one.shape[1] - first)]
        for at in range(0, out.shape[1], PANEL):
            for k in range(panel.shape[0]):
                for c in range(0, min(PANEL, out.shape[1] - at), WIDTH):
                    store(panel, k, c, load(other, first + k, at + c))
            _multiply_panel(one, first, panel, out, at)


@loop
def pack(samples, out):
    """Write samples [k, d] as panels of their transpose, each [d, `PANEL`] and contiguous, for `multiply_packed`."""
    width = samples.shape[1]
    for first in range(0, samples.shape[0], PANEL):
        panel = out[first * width : (first + PANEL) * width].reshape(width, PANEL)
        for j in range(first, min(first + PANEL, samples.shape[0]), WIDTH):
            for c in range(0, width, WIDTH):
                _transpose(samples, j, c, panel, c, j - first)


@loop
def multiply_packed(one, packed, out):
    """Write one [n, d] @ samples^T to out [n, k], for samples [k, d] that `pack` has written."""
    width = one.shape[1]
    for first in range(0, width, DEPTH):
        for at in range(0, out.shape[1], PANEL):
            panel = packed[at * width : (at + PANEL) * width].reshape(width, PANEL)
            _multiply_panel(one, first, panel[first : min(first + DEPTH, width)], out, at)
