"""Seeds of random streams. Each purpose has its own stream, so no two of them draw the same numbers.

The noise of samples has other streams, see `generators.base`; sample i of a seed is the same in every version.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
