"""What the loss on a GPU has to do: bytes from and to its memory, and operations; and how fast a device can do either.

Eager code reads every operand of every operation from memory and writes every result, so its bytes are those of all tensors that
go in and out. The Triton kernels of the library keep pairs on the chip. Their bytes follow from their passes, see
`drifting.fields.triton_drifts`, if a pass finds what it reads again in the cache of the device. Operations are those of products of
matrices, two for each pair of numbers; exponentials and sums are not counted.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timing import median_seconds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from drifting.fields.triton_drifts import fits_the_chip

NUMBER = 4  # bytes of a float32
# These give another view of a tensor, or memory that nothing is written to.
VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "transpose",
        "permute",
        "t",
        "expand",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "diagonal",
        "alias",
    ),
    *("detach", "unbind", "split_with_sizes", "as_strided", "empty", "new_empty", "empty_like"),
}


class Work(NamedTuple):
    """Bytes from and to memory, and operations of products."""

    bytes: float
    operations: float

    def seconds(self, limits: "Work") -> float:
        """Return the shortest time on a device with these limits per second."""
        return max(self.bytes / limits.bytes, self.operations / limits.operations)


class _Moved(TorchDispatchMode):
    """Add up the bytes of all tensors that go into and come out of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.distances = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in VIEWS:
            tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
            self.bytes += sum(value.numel() * value.element_size() for value in tensors)
        if func.overloadpacket.__name__ in ("_cdist_forward", "_euclidean_dist"):
            self.distances += 2 * result.numel() * args[0].shape[-1]
        return result


def of_eager(call: Callable[[], object]) -> Work:
    """Count the work of a call of eager code; with tensors of the device "meta" nothing is computed."""
    with FlopCounterMode(display=False) as products, _Moved() as moved:
        call()
    return Work(moved.bytes, products.get_total_flops() + moved.distances)


def of_kernels(shape: tuple[int, int, int, int], temperatures: int) -> Work:
    """Return the work of the Triton kernels for loss and gradient of (groups, generated, positives, channels).

    A small group is read once for the scale and once for the drifts. A larger one is read for the center of its targets, and in
    four passes: for the scale, the sums over rows, those over columns, and the drift, whose two sides are written and then joined.
    Every drift is written and read once more when they are added up; the total is written, read by the loss, and read and written
    by the gradient.
    """
    groups, generated, positives, channels = shape
    columns = generated + positives
    of_targets, of_rows, pairs = groups * columns * channels, groups * generated * channels, groups * generated * columns * channels
    total = 4 * of_rows
    if fits_the_chip(generated, columns):
        numbers, passes = 2 * of_targets + 2 * temperatures * of_rows + total, 2
    else:
        numbers, passes = 5 * of_targets + (2 + 2 + 1 + 1) * temperatures * of_rows + total, 4
    return Work(NUMBER * numbers, 2 * pairs * (passes + temperatures))


def limits(device: str) -> Work:
    """Measure how many bytes a device copies, read and written, and how many operations of float32 products it does in a second."""
    size = 2**28 if device == "cuda" else 2**22
    source = torch.zeros(size, device=device)
    target = torch.empty_like(source)
    copied = 2 * NUMBER * size / median_seconds(partial(target.copy_, source), 7)
    width = 8192 if device == "cuda" else 256
    one = torch.randn(width, width, device=device)
    return Work(copied, 2 * width**3 / median_seconds(partial(torch.mm, one, one), 7))
