"""Several processes that work as one, each on a device of its own: the only place that names torch.distributed.

`torchrun --nproc-per-node N -m drifting ...` starts N copies of the same command; `join` finds the others from what it put into the
environment. Everything that is random is decided by all of them alike, from the same stream in the same state, so that a process
only takes its share of it. What has to be known of the others is summed or gathered here.

Of weights there is either a copy on every process, whose gradients are averaged ("ddp"), or every process keeps a share of each
("fsdp"): weights, gradients, the state of the optimiser and the averages, gathered block by block where they are needed.
"""

from drifting.distributed.processes import (
    ALONE,
    Joined,
    LostProcessError,
    Processes,
    check_device,
    is_loss,
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
    "is_loss",
    "is_sharded",
    "join",
    "laid_out",
    "load_shards",
    "local",
    "save_shards",
    "whole",
]
