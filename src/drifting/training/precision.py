"""In which precision the networks of a run compute in training: half the memory and, on a GPU, a multiple of the speed.

Under autocast matrix products and convolutions are rounded to bfloat16; what a network returns is float32 again, so distances,
affinities and the loss lose nothing. Weights, their gradients and their averages stay in float32.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from drifting._checks import PRECISIONS, full_precision

_TYPES = dict(zip(PRECISIONS, (None, torch.bfloat16), strict=True))


def computed_in(precision: str, function: Callable[..., Any], device: torch.device | str) -> Callable[..., Any]:
    """Return a generator or an encoder that computes in a precision and returns float32.

    Args:
        precision: one of `_checks.PRECISIONS`.
        function: returns a tensor, or a dictionary of them.
        device: where it computes.
    """
    if _TYPES[precision] is None:
        return function

    def run(*arguments: Tensor | None) -> Any:
        with computing_in(precision, device):
            result = function(*arguments)
        if isinstance(result, Tensor):
            return full_precision(result)
        return {name: full_precision(value) for name, value in result.items()}

    return run


def computing_in(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context in which networks compute in a precision, one of `PRECISIONS`, on a device."""
    dtype = _TYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)
