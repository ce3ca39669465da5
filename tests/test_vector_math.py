"""The first call of every vectorized function is made by one thread, when the core is imported."""

import subprocess
import sys

from drifting import _vector_math

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
    done = subprocess.run([sys.executable, "-c", RECORD], capture_output=True, text=True, check=True)
    calls = [line.split() for line in done.stdout.splitlines()]
    wanted = {(name, f"torch.{dtype}") for name in _vector_math.FUNCTIONS for dtype in ("float32", "float64")}
    assert wanted <= {(name, dtype) for name, dtype, _, _ in calls}
    first = {}
    for name, dtype, length, contiguous in calls:
        first.setdefault((name, dtype), (int(length), contiguous))
    assert [key for key in wanted if not (1 < first[key][0] < GRAIN and first[key][1] == "True")] == []
