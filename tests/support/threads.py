"""Peers without processes: threads that wait for each other, so that a split step can be compared with the whole one."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_PATIENCE = 20.0  # seconds


class ThreadPeers:
    """One of several threads of a group, see `drifting.fields.base.Peers`; it counts what it was asked for."""

    def __init__(self, rank: int, values: list, barrier: threading.Barrier) -> None:
        self.rank, self.size, self.calls = rank, len(values), 0
        self._values, self._barrier = values, barrier

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        return self._all(value).sum(0)

    def all_reduce_min(self, value: Tensor) -> Tensor:
        return self._all(value).amin(0)

    def _all(self, value: Tensor) -> Tensor:
        self.calls += 1
        self._values[self.rank] = value
        self._barrier.wait(_PATIENCE)
        everything = torch.stack(self._values)
        self._barrier.wait(_PATIENCE)
        return everything


def on_peers(size: int, work: Callable[[ThreadPeers], Any]) -> list:
    """Return what `work` returns on each of `size` threads; the first exception of any of them is raised."""
    barrier, values = threading.Barrier(size), [None] * size

    def run(rank: int) -> Any:
        try:
            return work(ThreadPeers(rank, values, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(run, rank) for rank in range(size)]]
