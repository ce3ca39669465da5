"""What torch needs from a process that computes on a CPU: kernels that are chosen before they race, and memory that is kept.

First calls. On a CPU torch computes contiguous square roots, exponentials and the like with the vector library of oneMKL: each
worker thread computes its part of the tensor. oneMKL selects the kernel of a function at its first call. When several threads make
that first call at once, one of them can get a kernel of low accuracy for its part, with relative errors of up to 1e-3; later calls
are right. The core therefore makes them in one thread before any tensor is large.

Memory. A training step allocates and frees the same large tensors again and again. By default glibc returns memory of this size to
the system at once, and the system clears every page anew when it is needed again, which costs up to a third of the time of a step.
torch has caching allocators for its other devices, but none for the CPU.

Source: https://github.com/pytorch/pytorch/issues/188792 (oneMKL 2024.2, which the wheels of torch 2.13 contain); mallopt(3).
"""

import ctypes
import functools
import os
import sys

import torch

# What torch passes to oneMKL, in float32 and in float64.
FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "sin", "tan", "tanh"),
    *("erf", "erfc", "erfinv", "exp", "log", "log10", "log2", "sqrt", "trunc"),
)
# A contiguous vector, far shorter than what torch splits over threads.
_LENGTH = 16

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Larger blocks are mapped and returned one by one as before.
_LARGEST_KEPT = 2**30
_NEVER_TRIM = 2**31 - 1
# Settings of users, which are left alone.
_SET_BY_USER = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def first_calls() -> None:
    """Call each function once per precision on a short vector, which takes less than a millisecond."""
    for dtype in (torch.float32, torch.float64):
        numbers = torch.full((_LENGTH,), 0.5, dtype=dtype, device="cpu")
        for name in FUNCTIONS:
            getattr(torch, name)(numbers)


@functools.cache
def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees; return whether it does.

    Only glibc can be asked, so this does nothing on other systems. It also does nothing where an environment variable already
    configures or replaces the allocator (`MALLOC_...`, `GLIBC_TUNABLES`, `LD_PRELOAD`).
    """
    if not sys.platform.startswith("linux") or any(name.startswith(_SET_BY_USER) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) == 1 and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM) == 1
