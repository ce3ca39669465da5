"""Rows of matrices, compiled for the CPU by numba: exponentials, whole powers, sums and the matrix product.

Rows are named by a matrix and an index, because a slice for each would cost more than short loops.

Source: the polynomial of the exponential is that of Cephes' expf; the result is within 2 ulp.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

from drifting.fields.backends import products

ZERO, ONE, INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
# Exponents below this one give 0: e^-69 is 1e-30, far above the denormal numbers on which a CPU is slow.
UNDERFLOW = np.float32(-69)
_LOWEST, _HALF = np.float32(-87), np.float32(0.5)
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_NO, _YES = 78, 84  # the letters N and T of the library's transposition

for _name, _pointer in (products() or {}).items():
    binding.add_symbol(_name, _pointer)
_address = types.intp
_product = types.ExternalFunction("drifting_sgemm", types.void(*[_address] * 13))
use_threads = types.ExternalFunction("drifting_blas_threads", types.intc(types.intc))
_stamp = tuple((path.name, os.stat(path).st_mtime, os.stat(path).st_size) for path in sorted(Path(__file__).parent.glob("*.py")))


def _compiled(fastmath: set[str]) -> Callable[[Callable], Any]:
    """Return a decorator that compiles a function at its first call, and caches the result on disk."""

    def decorate(function: Callable) -> Any:
        # Checks of shapes in tests wrap every function of the package.
        dispatcher = njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(inspect.unwrap(function))
        # Numba notes changes of the file of a function only. Functions here call those of other files.
        dispatcher._cache._cache_file._source_stamp = _stamp  # pyright: ignore[reportAttributeAccessIssue]
        return dispatcher

    return decorate


# Sums may be reordered, so that they are computed in vectors; NaN and infinity keep their meaning.
loop = _compiled({"reassoc", "contract", "nsz"})
# The range reduction of the exponential needs its order.
_exact = _compiled({"contract"})


@intrinsic
def _power_of_two(context: Any, exponent: Any) -> Any:
    """Return 2^exponent for a float32 that is a whole number, by its bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        whole = builder.add(builder.fptosi(arguments[0], word), word(127))
        return builder.bitcast(builder.shl(whole, word(23)), ir.FloatType())

    return types.float32(types.float32), generate


@_exact
def exponential(x):
    """Return exp(x) for x <= 0, and exp(-87) below -87."""
    x = x if x > _LOWEST else _LOWEST
    count = np.floor(x * _LOG2E + _HALF)
    r = x - count * _LN2_HIGH
    r = r - count * _LN2_LOW
    p = _P0 * r + _P1
    p = p * r + _P2
    p = p * r + _P3
    p = p * r + _P4
    p = p * r + _P5
    p = p * (r * r) + r + ONE
    return p * _power_of_two(count)  # pyright: ignore[reportCallIssue]


@loop
def exponentials(distances, i, nearest, scale, out, at):
    """Write exp((nearest - distance) * scale) of one row. What underflows is 0."""
    for j in range(out.shape[1]):
        x = (nearest - distances[i, j]) * scale
        value = exponential(x)
        out[at, j] = value if x > UNDERFLOW else ZERO


@loop
def raise_row(base, i, power, out, at):
    """Write a whole power of every entry, by squarings. What underflows is 0."""
    lowest = exponential(UNDERFLOW / np.float32(power))
    if power == 4:
        for j in range(out.shape[1]):
            value = base[i, j] if base[i, j] > lowest else ZERO
            value = value * value
            out[at, j] = value * value
        return
    if power == 10:
        for j in range(out.shape[1]):
            value = base[i, j] if base[i, j] > lowest else ZERO
            square = value * value
            fourth = square * square
            out[at, j] = fourth * fourth * square
        return
    for j in range(out.shape[1]):
        out[at, j] = base[i, j] if base[i, j] > lowest else ZERO
    bit = 1
    while 2 * bit <= power:
        bit *= 2
    while bit > 1:
        bit //= 2
        for j in range(out.shape[1]):
            square = out[at, j] * out[at, j]
            out[at, j] = square * base[i, j] if power & bit else square


@loop
def dot(one, i, other, k, begin, end):
    """Return the product of two rows from column `begin` to `end`."""
    total = ZERO
    for j in range(begin, end):
        total += one[i, j] * other[k, j]
    return total


@loop
def sum_row(values, i):
    """Return the sum of one row."""
    total = ZERO
    for j in range(values.shape[1]):
        total += values[i, j]
    return total


@loop
def lowest_of_row(values, i):
    """Return the smallest entry of one row."""
    total = INFINITY
    for j in range(values.shape[1]):
        total = values[i, j] if values[i, j] < total else total
    return total


@loop
def multiply(arrays, thread, one, other, out, transposed):
    """Write one @ other, or one @ other^T, of contiguous matrices, by the Fortran interface: everything is transposed."""
    integers, floats = arrays.integers[thread], arrays.floats[thread]
    integers[0], integers[1], integers[2] = out.shape[1], out.shape[0], one.shape[1]
    integers[3], integers[4], integers[5] = other.shape[1], one.shape[1], out.shape[1]
    integers[6], integers[7] = (_YES if transposed else _NO), _NO
    floats[0], floats[1] = ONE, ZERO
    i, f = integers.ctypes.data, floats.ctypes.data
    a, b, c = one.ctypes.data, other.ctypes.data, out.ctypes.data
    _product(i + 24, i + 28, i, i + 4, i + 8, f, b, i + 12, a, i + 16, f + 4, c, i + 20)
