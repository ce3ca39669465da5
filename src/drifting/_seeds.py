"""Seeds of random streams: one stream for each purpose, so that no two of them draw the same numbers.

The noise of samples has streams of its own, see `generators.base`: sample i of a seed is the same in every version.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, purpose: str) -> int:
    """Return the seed of the stream that a purpose has under a seed: a whole number from 0 to below 2^63.

    Args:
        seed: any integer.
        purpose: what the stream is for, such as "generator weights".
    """
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def initial_weights(seed: int, purpose: str) -> Iterator[None]:
    """Let modules that are made in this context draw their weights from a stream; the process's own one is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, purpose))
        yield
