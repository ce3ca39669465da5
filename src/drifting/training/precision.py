"""In which precision the networks of a run compute in training: half the memory and, on a GPU, a multiple of the speed.

Under autocast matrix products and convolutions are rounded to bfloat16; what a network returns is float32 again, so distances,
affinities and the loss lose nothing. Weights, their gradients and their averages stay in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drifting.inputs import full_precision

_TYPES = {"float32": None, "bfloat16": torch.bfloat16}
PRECISIONS = tuple(_TYPES)


def computed_in(precision: str, function: Callable[..., Any], device: torch.device | str) -> Callable[..., Any]:
    """Return a generator or an encoder that computes in a precision and returns float32.

    Args:
        precision: one of `PRECISIONS`.
        function: returns a tensor, or a dictionary of them.
        device: where it computes.
    """
    dtype = _TYPES[precision]
    if dtype is None:
        return function

    def run(*arguments: Tensor | None) -> Any:
        with torch.autocast(torch.device(device).type, dtype=dtype):
            result = function(*arguments)
        if isinstance(result, Tensor):
            return full_precision(result)
        return {name: full_precision(value) for name, value in result.items()}

    return run
