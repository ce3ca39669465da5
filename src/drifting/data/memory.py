"""Whether data will fit into memory, asked before they are read."""

import os
from contextlib import suppress
from pathlib import Path

from drifting.errors import InputError

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Return the bytes that this process can still take, the limit of its container included; None where no system tells."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        found.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(found)) if found else None


def check_memory(need: int, what: str, fix: str) -> None:
    """Raise InputError unless there is memory for data.

    Args:
        need: bytes.
        what: subject of the sentence, such as "image_size is 64, at which 9 images".
        fix: what to do where they do not fit.
    """
    free = available_memory()
    if free is not None and need > free:
        raise InputError(f"{what} need {need / 2**30:,.1f} GiB of memory, but {free / 2**30:,.1f} GiB are free: {fix}")
