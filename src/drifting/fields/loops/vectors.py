"""What the compiled loops share: how numba compiles them, sums along rows of any length, and the matrix product.

Rows are named by a matrix and an index, because a slice for each would cost more than short loops.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding
from numba import njit, types

from drifting.fields.compiled_drifts import products

ZERO, ONE, INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_NO, _YES = 78, 84  # the letters N and T of the library's transposition

for _name, _pointer in (products() or {}).items():
    binding.add_symbol(_name, _pointer)
_address = types.intp
_product = types.ExternalFunction("drifting_sgemm", types.void(*[_address] * 13))
use_threads = types.ExternalFunction("drifting_blas_threads", types.intc(types.intc))
_stamp = tuple((path.name, os.stat(path).st_mtime, os.stat(path).st_size) for path in sorted(Path(__file__).parent.glob("*.py")))


def loop(function: Callable[..., Any], **options: Any) -> Any:
    """Return the function, to be compiled when it is first called or when one that calls it is compiled."""
    # Sums may be reordered, so that they are computed in vectors; NaN and infinity keep their meaning.
    fastmath = {"reassoc", "contract", "nsz"}
    # Only an entry is called from Python: wrappers of all others would take a quarter of the time of compilation.
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
    # Checks of shapes in tests wrap every function of the package.
    return njit(nogil=True, error_model="numpy", fastmath=fastmath, **options)(inspect.unwrap(function))


def inlined(function: Callable[..., Any]) -> Any:
    """Return a loop that is compiled into those that call it: a call copies all arrays of a structure."""
    return loop(function, forceinline=True)


def entry(function: Callable[..., Any]) -> Any:
    """Return a loop that is called from Python, whose machine code is cached on disk with all that it calls."""
    dispatcher = loop(function, cache=True, no_cpython_wrapper=False)
    # Numba notes changes of the file of a function only. Functions here call those of other files.
    dispatcher._cache._cache_file._source_stamp = _stamp
    return dispatcher


def is_cached(dispatcher: Any) -> bool:
    """Return whether the machine code of an entry is on disk, for this processor or another."""
    return bool(dispatcher._cache._cache_file._load_index())


@loop
def dot(one, i, other, k, begin, end):
    """Return the product of two rows from column `begin` to `end`."""
    total = ZERO
    for j in range(begin, end):
        total += one[i, j] * other[k, j]
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
