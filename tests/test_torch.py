"""Tests of what torch needs on a CPU: first calls by one thread, when the core is imported, and memory that is kept."""

import sys

import pytest

from drifting import _torch
from tests.support import processes

# Torch computes up to so many elements of a unary function in the calling thread.
GRAIN = 2048

RECORD = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class Record(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if isinstance(args[0] if args else None, torch.Tensor):
            print(function.overloadpacket.__name__, args[0].dtype, args[0].numel(), args[0].is_contiguous())
        return function(*args, **(kwargs or {}))

with Record():
    import drifting

    drifting.drifting_loss
"""


def test_import_calls_every_function_on_a_short_contiguous_vector():
    done = processes.run(RECORD)
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in done.stdout.splitlines()]
    wanted = {(name, f"torch.{dtype}") for name in _torch.FUNCTIONS for dtype in ("float32", "float64")}
    assert wanted <= {(name, dtype) for name, dtype, _, _ in calls}
    first = {}
    for name, dtype, length, contiguous in calls:
        first.setdefault((name, dtype), (int(length), contiguous))
    assert [key for key in wanted if not (1 < first[key][0] < GRAIN and first[key][1] == "True")] == []


# Page faults of sixty tensors of 64 MB that are made and freed one after the other, once the first one was.
_PROGRAM = """
import os, resource, torch
for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD")) and name not in {given}]:
    del os.environ[name]
from drifting._torch import keep_freed_memory
kept = keep_freed_memory() if {keep} else False
torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.zeros(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(keep: bool, **variables: str) -> tuple[bool, int]:
    done = processes.run(_PROGRAM.format(keep=keep, given=list(variables)), environment=variables)
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is a function of glibc")
def test_freed_memory_is_used_again():
    kept, faults = _run(keep=True)
    if not kept:
        pytest.skip("the C library is not glibc")
    _, usual = _run(keep=False)
    assert faults < usual / 4


def test_settings_of_the_user_are_left_alone():
    assert _run(keep=True, MALLOC_ARENA_MAX="2")[0] is False
    assert _run(keep=True, GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0] is False
