"""Compile the loops of the CPU backend once for all test processes, while these collect the tests.

Each process would compile them for itself at its first step otherwise, at the same time as the others.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from drifting.fields import compiled_drifts

_VARIABLE = "DRIFTING_TESTS_LOCK"
# So many samples take several lanes, and with them every loop.
_PROGRAM = "import torch, drifting; drifting.drifting_loss(torch.ones(300, 2), torch.zeros(4, 2))"


def start() -> None:
    """Compile in a process of its own, which holds a lock until it ends, unless the loops are on disk."""
    if os.name != "posix" or not compiled_drifts.must_compile():
        return
    import fcntl

    number, path = tempfile.mkstemp(prefix="drifting-loops-")
    fcntl.flock(number, fcntl.LOCK_EX)
    subprocess.Popen([sys.executable, "-c", _PROGRAM], pass_fds=[number])
    os.close(number)
    os.environ[_VARIABLE] = path


def wait() -> None:
    """Wait until that process has ended, if there is one."""
    if path := os.environ.get(_VARIABLE):
        import fcntl

        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)


def end() -> None:
    """Delete the lock."""
    if path := os.environ.pop(_VARIABLE, None):
        Path(path).unlink(missing_ok=True)
