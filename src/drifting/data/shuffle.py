"""A shuffled order of a data set that depends only on the seed and the position."""

import functools

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from drifting.errors import InputError

_MASK = 2**64 - 1


def shuffled_indices(count: int, start: int, size: int, seed: int) -> Int[Tensor, " size"]:
    """Return positions start to start + size of an endless sequence of permutations of 0 to count - 1, one per epoch.

    This is a pure function: a run resumes with the number of samples it has seen as its only state.

    Args:
        count: number of samples, 1 or more.
        start: first position, 0 or more.
        size: number of positions, 0 or more; they can span several epochs.
        seed: any integer; `stream_seed` gives one for each purpose.
    """
    for name, value, least in (("count", count, 1), ("start", start, 0), ("size", size, 0)):
        if value < least:
            raise InputError(f"{name} is {value}: pass {least} or more")
    first, last = start // count, (start + size + count - 1) // count
    epochs = [_epoch_order(count, seed & _MASK, epoch) for epoch in range(first, max(last, first + 1))]
    offset = start - first * count
    return torch.cat(epochs)[offset : offset + size].clone()


@functools.lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> Int[Tensor, " count"]:
    # In a plain list, numbers from 2^63 on would become floats.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return torch.from_numpy(rng.permutation(count))
