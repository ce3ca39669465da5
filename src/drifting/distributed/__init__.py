"""Training on several processes, each with a device of its own. This is the only package that uses torch.distributed.

`torchrun --nproc-per-node N -m drifting ...` starts N copies of the same command, and `join` connects them by the environment that
torchrun sets. All processes draw the same random numbers from generators in the same state, and each takes its share of them.
Quantities of the whole batch are summed or gathered here.

With "ddp" every process holds a copy of the weights, and gradients are averaged. With "fsdp" every process holds a share of the
weights, gradients, optimizer state and averages; the weights are gathered block by block where they are needed.
"""

from drifting.distributed.processes import (
    ALONE,
    Joined,
    LostProcessError,
    Processes,
    check_device,
    is_lost_process,
    join,
)
from drifting.distributed.shards import is_sharded, laid_out, load_shards, local, save_shards, whole

PARALLEL = ("ddp", "fsdp")

__all__ = [
    "ALONE",
    "PARALLEL",
    "Joined",
    "LostProcessError",
    "Processes",
    "check_device",
    "is_lost_process",
    "is_sharded",
    "join",
    "laid_out",
    "load_shards",
    "local",
    "save_shards",
    "whole",
]
