"""What the GPU benchmarks measure: the time until the device has finished, and the memory that was allocated."""

import statistics
import time
from collections.abc import Callable

import torch


def now() -> float:
    """Return the time in seconds once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def median_seconds(call: Callable[[], object], repeats: int, warm_up: int = 2) -> float:
    """Return the median time of `repeats` calls, after `warm_up` calls that are not counted."""
    times = []
    for _ in range(warm_up + repeats):
        start = now()
        call()
        times.append(now() - start)
    return statistics.median(times[warm_up:])


def peak_gigabytes() -> float:
    """Return the maximum of allocated memory in GiB since the last call, which resets it; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak
