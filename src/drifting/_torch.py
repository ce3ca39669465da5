"""How this library uses torch: streams of random numbers, kernels that are chosen before they race, and memory that is kept.

Random streams. Each purpose has a stream of its own, so no two of them draw the same numbers. The noise of samples has other
streams, see `generators.base`; sample i of a seed is the same in every version.

First calls. On a CPU torch computes contiguous square roots, exponentials and the like with the vector library of oneMKL: each
worker thread computes its part of the tensor. oneMKL selects the kernel of a function at its first call. When several threads make
that first call at once, one of them can get a kernel of low accuracy for its part, with relative errors of up to 1e-3; later calls
are right. The core therefore makes them in one thread before any tensor is large.

Memory. A training step allocates and frees the same large tensors again and again. By default glibc returns memory of this size to
the system at once, and the system clears every page anew when it is needed again, which costs up to a third of the time of a step.
torch has caching allocators for its other devices, but none for the CPU.

Source: https://github.com/pytorch/pytorch/issues/188792 (oneMKL 2024.2, which the wheels of torch 2.13 contain); mallopt(3).
"""

import copy
import ctypes
import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=torch.nn.Module)

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


def stream_seed(seed: int, purpose: str) -> int:
    """Return the seed of the stream of a purpose, an integer from 0 to below 2^63.

    Args:
        seed: any integer.
        purpose: purpose of the stream, such as "generator weights".
    """
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def initial_weights(seed: int, purpose: str) -> Iterator[None]:
    """Return a context in which modules draw their initial weights from a stream; the global random stream is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, purpose))
        yield


def first_calls() -> None:
    """Call each function once per precision on a short vector, which takes less than a millisecond."""
    for dtype in (torch.float32, torch.float64):
        numbers = torch.full((_LENGTH,), 0.5, dtype=dtype, device="cpu")
        for name in FUNCTIONS:
            getattr(torch, name)(numbers)


class _Undrawn(TorchFunctionMode):
    """Leaves out the normal numbers that layers start with: on the meta device torch would load its compiler for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").endswith("normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Return a context in which networks are built with the shapes of their weights alone, without memory for values."""
    with torch.device("meta"), _Undrawn():
        yield


@functools.cache
def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees; return whether it does.

    Only glibc has such a setting, so this does nothing on other systems. It also does nothing where an environment variable already
    configures or replaces the allocator (`MALLOC_...`, `GLIBC_TUNABLES`, `LD_PRELOAD`).
    """
    if not sys.platform.startswith("linux") or any(name.startswith(_SET_BY_USER) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) == 1 and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM) == 1


def without_weights(network: Network) -> Network:
    """Return a copy of a network whose weights take no memory, to be loaded later."""
    weights = {id(weight): torch.nn.Parameter(torch.empty_like(weight, device="meta")) for weight in network.parameters()}
    return copy.deepcopy(network, weights)
