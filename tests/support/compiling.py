"""Compile the loops of the CPU backend once for all test processes, while these collect the tests and run those without loops.

Each process would compile them for itself at its first step otherwise, at the same time as the others.
"""

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_VARIABLE = "DRIFTING_TESTS_LOCK"
# So many samples take several lanes, and with them every loop.
_PROGRAM = """
import drifting, torch
from drifting.fields import compiled_drifts
if compiled_drifts.must_compile():
    drifting.drifting_loss(torch.ones(300, 2), torch.zeros(4, 2))
"""


def start() -> None:
    """Compile in a process of its own, which holds a lock until it ends; it ends soon where the loops are on disk."""
    if os.name != "posix" or importlib.util.find_spec("numba") is None:
        return
    import fcntl

    number, path = tempfile.mkstemp(prefix="drifting-loops-")
    fcntl.flock(number, fcntl.LOCK_EX)
    subprocess.Popen([sys.executable, "-c", _PROGRAM], pass_fds=[number])
    os.close(number)
    os.environ[_VARIABLE] = path


def wait_before_use(patch: pytest.MonkeyPatch) -> None:
    """Let this process wait for that one, if there is one, when it first uses the loops: many tests do not."""
    if path := os.environ.get(_VARIABLE):
        from drifting.fields import compiled_drifts

        for owner, name in ((compiled_drifts.CompiledDrifts, "__init__"), (compiled_drifts, "must_compile")):
            patch.setattr(owner, name, _after_waiting(getattr(owner, name), path))


def _after_waiting(function: Callable[..., Any], path: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        _wait(path)
        return function(*arguments, **options)

    return call


@functools.cache
def _wait(path: str) -> None:
    import fcntl

    with open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def end() -> None:
    """Delete the lock."""
    if path := os.environ.pop(_VARIABLE, None):
        Path(path).unlink(missing_ok=True)
