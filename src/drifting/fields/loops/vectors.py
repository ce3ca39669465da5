"""What the compiled loops share: how numba compiles them, and sums along rows of any length.

Rows are named by a matrix and an index, because a slice for each would cost more than short loops.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

ZERO, ONE, INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
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
