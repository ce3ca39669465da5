"""Sixteen float32 as a type of numba, so that loops over pairs of samples are vector instructions on every CPU.

LLVM's own vectorization takes 64 entries at a time, checks at every row whether arrays overlap, and computes the rest of a row one
entry after the other, which for 144 targets takes longer than all else. Rows are therefore padded to whole vectors (`padded`), and
an operation on a vector is one instruction on a CPU with AVX-512, two with AVX2 and four with NEON.

Source: the polynomial of the exponential is that of Cephes' expf; the result is within 2 ulp.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, overload, register_jitable, register_model

intrinsic: Any = _intrinsic  # its type does not tell that numba passes the first argument

WIDTH = 16
# Exponents below this one give 0: e^-69 is 1e-30, far above the denormal numbers on which a CPU is slow.
UNDERFLOW = np.float32(-69)
_LOWEST, _HALF, _ONE = np.float32(-87), np.float32(0.5), np.float32(1)
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(-0.693359375), np.float32(2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)

_FLOAT, _WORD = ir.FloatType(), ir.IntType(32)
FLOATS, WORDS = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_WORD, WIDTH)


class Vector(types.Type):
    """The type of 16 float32."""

    def __init__(self) -> None:
        super().__init__(name="drifting.Vector")


vector = Vector()


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)


def padded(count: int) -> int:
    """Return the number of entries of the whole vectors that hold `count` entries."""
    return -(-count // WIDTH) * WIDTH


def _unary(generate: Callable[..., Any], result: Any = vector) -> Any:
    """Return a function of one vector from what writes its instructions, generate(builder, value)."""

    def operation(context: Any, a: Any) -> Any:
        return result(vector), lambda context, builder, signature, values: generate(builder, *values)

    return intrinsic(operation)


def _binary(generate: Callable[..., Any]) -> Any:
    def operation(context: Any, a: Any, b: Any) -> Any:
        return vector(vector, vector), lambda context, builder, signature, values: generate(builder, *values)

    return intrinsic(operation)


def _ternary(generate: Callable[..., Any]) -> Any:
    def operation(context: Any, a: Any, b: Any, c: Any) -> Any:
        return vector(vector, vector, vector), lambda context, builder, signature, values: generate(builder, *values)

    return intrinsic(operation)


def _call(name: str, result: Any = FLOATS, **options: Any) -> Callable[..., Any]:
    """Return what writes a call of one of LLVM's own functions."""

    def generate(builder: Any, *values: Any) -> Any:
        kind = ir.FunctionType(result, [value.type for value in values])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values, **options)

    return generate


def spread(builder: Any, value: Any) -> Any:
    """Write the vector whose entries are all this number."""
    single = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, _WORD(0))
    return builder.shuffle_vector(single, single, ir.Constant(WORDS, [0] * WIDTH))


def constant(value: float) -> Any:
    """Return the vector whose entries are all this constant."""
    return ir.Constant(FLOATS, [value] * WIDTH)


def _two_to(builder: Any, exponent: Any) -> Any:
    """Write 2^exponent of whole numbers, by the bits."""
    whole = builder.add(builder.fptosi(exponent, WORDS), ir.Constant(WORDS, [127] * WIDTH))
    return builder.bitcast(builder.shl(whole, ir.Constant(WORDS, [23] * WIDTH)), FLOATS)


def _sum(builder: Any, value: Any) -> Any:
    return _call("llvm.vector.reduce.fadd.v16f32", _FLOAT, fastmath=("reassoc",))(builder, _FLOAT(-0.0), value)


def _kept(builder: Any, value: Any, x: Any, bound: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, bound), value, constant(0.0))


def _ones(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), constant(1.0), constant(0.0))


# NaN in the first argument of `larger` stays, NaN in the second of either is ignored.
larger = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", b, a), b, a))
smaller = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", b, a), b, a))
count_below = _binary(_ones)  # 1 where a < b, else 0
keep_above = _ternary(_kept)  # the value a where b > c, else 0
multiply_add = _ternary(_call("llvm.fmuladd.v16f32"))  # a b + c
root = _unary(_call("llvm.sqrt.v16f32"))
total = _unary(_sum, types.float32)
lowest = _unary(_call("llvm.vector.reduce.fmin.v16f32", _FLOAT), types.float32)
_first = _unary(lambda builder, a: builder.extract_element(a, _WORD(0)), types.float32)
_floor = _unary(_call("llvm.floor.v16f32"))
_power_of_two = _unary(_two_to)


@intrinsic
def splat(context: Any, number: Any) -> Any:
    """Return the vector whose entries are all this number."""
    return vector(types.float32), lambda context, builder, signature, values: spread(builder, *values)


def place(context: Any, builder: Any, kind: Any, matrix: Any, indices: list[Any]) -> Any:
    """Write the address of an entry of a matrix."""
    array = context.make_array(kind)(context, builder, matrix)
    place = cgutils.get_item_pointer(context, builder, kind, array, indices, wraparound=False)
    return builder.bitcast(place, FLOATS.as_pointer())


@intrinsic
def load(context: Any, matrix: Any, row: Any, column: Any) -> Any:
    """Return the vector that begins at an entry of a matrix."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        matrix, *indices = values
        return builder.load(place(context, builder, signature.args[0], matrix, indices), align=4)

    return vector(matrix, types.intp, types.intp), generate


@intrinsic
def store(context: Any, matrix: Any, row: Any, column: Any, value: Any) -> Any:
    """Write a vector to the place that begins at an entry of a matrix."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        matrix, *indices, value = values
        builder.store(value, place(context, builder, signature.args[0], matrix, indices), align=4)
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp, vector), generate


def _overload(symbol: Callable[..., Any], method: str) -> None:
    """Define an operator between vectors, and between a vector and a number."""
    of_vectors = _binary(lambda builder, a, b: getattr(builder, method)(a, b))

    @overload(symbol)
    def _(a, b):  # numba compares these arguments with those below, annotations included
        if a is vector and b is vector:
            return lambda a, b: of_vectors(a, b)  # noqa: PLW0108 - numba compiles functions of Python only
        if a is vector and b is types.float32:
            return lambda a, b: of_vectors(a, splat(b))
        if a is types.float32 and b is vector:
            return lambda a, b: of_vectors(splat(a), b)
        return None


_overload(operator.add, "fadd")
_overload(operator.sub, "fsub")
_overload(operator.mul, "fmul")


@register_jitable
def exponential(x):
    """Return exp(x) of a vector for x <= 0; what underflows is 0."""
    bounded = larger(x, splat(_LOWEST))
    count = _floor(multiply_add(bounded, splat(_LOG2E), splat(_HALF)))
    r = multiply_add(count, splat(_LN2_HIGH), bounded)
    r = multiply_add(count, splat(_LN2_LOW), r)
    p = multiply_add(splat(_P0), r, splat(_P1))
    p = multiply_add(p, r, splat(_P2))
    p = multiply_add(p, r, splat(_P3))
    p = multiply_add(p, r, splat(_P4))
    p = multiply_add(p, r, splat(_P5))
    p = multiply_add(p, r * r, r + _ONE)
    return keep_above(p * _power_of_two(count), x, splat(UNDERFLOW))


@register_jitable
def exponential_of_number(x):
    """Return exp(x) of a number x <= 0; what underflows is 0."""
    return _first(exponential(splat(x)))


@register_jitable
def whole_power(x, power):
    """Return a whole power of every entry, by squarings."""
    if power == 1:
        return x
    square = x * x
    if power == 4:
        return square * square
    if power == 10:
        fourth = square * square
        return fourth * fourth * square
    result, bit = x, 1
    while 2 * bit <= power:
        bit *= 2
    while bit > 1:
        bit //= 2
        result = result * result
        if power & bit:
            result = result * x
    return result
