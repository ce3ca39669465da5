"""The first call of every vectorized function of torch's CPU kernels, made in one thread before any tensor is large.

On a CPU torch computes contiguous square roots, exponentials and the like with the vector library of oneMKL: each worker thread
computes its part of the tensor. oneMKL selects the kernel of a function at its first call. When several threads make that first
call at once, one of them can get a kernel of low accuracy for its part, with relative errors of up to 1e-3; later calls are right.

Source: https://github.com/pytorch/pytorch/issues/188792 (oneMKL 2024.2, which the wheels of torch 2.13 contain).
"""

import torch

# What torch passes to oneMKL, in float32 and in float64.
FUNCTIONS = (
    "acos",
    "asin",
    "atan",
    "cos",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "log",
    "log10",
    "log2",
    "sin",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
)
# A contiguous vector, far shorter than what torch splits over threads.
_LENGTH = 16


def first_calls() -> None:
    """Call each function once per precision on a short vector, which takes less than a millisecond."""
    for dtype in (torch.float32, torch.float64):
        numbers = torch.full((_LENGTH,), 0.5, dtype=dtype, device="cpu")
        for name in FUNCTIONS:
            getattr(torch, name)(numbers)
