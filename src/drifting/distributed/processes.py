"""The processes of a run: how they find each other, what they sum and gather, and how they notice that one is gone."""

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drifting.distributed.shards import is_sharded, shard
from drifting.errors import InputError

# Longer than whatever one process does while others wait in a sum; a process that died is noticed at once.
_PATIENCE = timedelta(minutes=30)
# How often, in seconds, those that follow the first process look whether it is done.
_LOOK_EVERY = 0.1
# How torch's engines say that somebody is gone, in errors that have no class of their own.
_SIGNS_OF_LOSS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "socket")


class LostProcessError(RuntimeError):
    """A process of the run died or no longer answers. The message says how to go on."""


class Processes:
    """The processes of a run as one of them sees the others; this class is that of one that is alone, `Joined` that of several.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return value

    def smallest(self, value: Tensor) -> Tensor:
        """Return the element-wise minimum of a tensor over all processes."""
        return value

    def gathered(self, values: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
        """Return named tensors of all processes, of the same shapes on each, one after the other along a dimension."""
        return dict(values)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process; all processes ask together."""
        return flag

    def wait(self) -> None:
        """Return once all processes have come here."""

    def share(self, count: int) -> slice:
        """Return which of `count` things, a multiple of the number of processes, are this one's."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def leads_the_way(self) -> AbstractContextManager[None]:
        """Give a block that process 0 goes through before all others; if it fails there, all fail."""
        return nullcontext()

    def is_first_to_say(self, text: str) -> bool:
        """Return whether no other process has said the same."""
        return True

    def copied(self, generator: nn.Module) -> tuple[Callable[..., Tensor], Callable[[], AbstractContextManager[None]]]:
        """Return a network whose gradients are averaged over processes, and a block in which they are not yet."""
        return generator, nullcontext

    def shard(self, generator: nn.Module) -> None:
        """Leave of every weight a share to each process, in place."""

    def leave(self) -> None:
        """Part from the others."""


ALONE = Processes()


class Joined(Processes):
    """Several processes, see `join`.

    Args:
        rank: which one this is.
        size: how many there are.
        store: words that all can read.
    """

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size, self._store, self._turns = rank, size, store, 0

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def smallest(self, value: Tensor) -> Tensor:
        """Return the element-wise minimum of a tensor over all processes."""
        return self._reduced(value, dist.ReduceOp.MIN)

    def _reduced(self, value: Tensor, operation: Any) -> Tensor:
        result = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, operation)
        return result

    def gathered(self, values: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
        """Return named tensors of all processes, of the same shapes on each, one after the other along a dimension."""
        flat = torch.cat([value.detach().flatten() for value in values.values()])
        everywhere = [torch.empty_like(flat) for _ in range(self.size)]
        dist.all_gather(everywhere, flat)
        sizes = [value.numel() for value in values.values()]
        parts = zip(*(part.split(sizes) for part in everywhere), strict=True)
        named = zip(values.items(), parts, strict=True)
        return {name: torch.cat([part.view(value.shape) for part in of_all], dim) for (name, value), of_all in named}

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process. On the CPU, so that no device is waited for and a loss is noticed."""
        return bool(self.total(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Return once all processes have come here."""
        self.any(False)

    @contextmanager
    def leads_the_way(self) -> Iterator[None]:
        """Give a block that process 0 goes through before all others; if it fails there, all fail."""
        self._turns += 1
        key = f"turn-{self._turns}"
        if not self.leads:
            # Not its own wait: that has an end, and lets no signal through.
            while not self._store.check([key]):
                time.sleep(_LOOK_EVERY)
            outcome, _, reason = self._store.get(key).decode().partition(":")
            if outcome != "done":
                raise (InputError if outcome == "input" else LostProcessError)(reason)
            yield
            return
        try:
            yield
        except BaseException as error:
            told = f"input:{error}" if isinstance(error, InputError) else "error:process 0 of this run failed: see what it said"
            self._store.set(key, told)
            raise
        self._store.set(key, "done")

    def is_first_to_say(self, text: str) -> bool:
        """Return whether no other process has said the same."""
        try:
            return self._store.add(f"said-{text}", 1) == 1
        except RuntimeError:  # the process that keeps the words is gone
            return True

    def copied(self, generator: nn.Module) -> tuple[Callable[..., Tensor], Callable[[], AbstractContextManager[None]]]:
        """Return a network whose gradients are averaged over processes, and a block in which they are not yet.

        The weights stay those of the generator. Of a sharded one they are averaged as it is gone through backward, every time.
        """
        if is_sharded(generator):
            return generator, nullcontext
        with warnings.catch_warnings():
            # Newer releases of torch have another word for the first option, which older ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            copies = nn.parallel.DistributedDataParallel(generator, broadcast_buffers=False, gradient_as_bucket_view=True)
        return copies, copies.no_sync

    def shard(self, generator: nn.Module) -> None:
        """Leave of every weight a share to each process, in place."""
        shard(generator, self.size)

    def leave(self) -> None:
        """Part from the others."""
        self.wait()
        _joined.cache_clear()
        dist.destroy_process_group()


def join() -> Processes:
    """Return the processes that were started together with this one, `ALONE` where there are no others.

    Where there are CUDA devices, each process takes the one of its local rank as the current one.

    Raises:
        InputError: if the environment tells of several processes, but not how to find them.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        return ALONE
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise InputError(f"WORLD_SIZE is {size}, but {name} is not set: start the processes with torchrun")
    return _joined(int(os.environ["RANK"]), size)


@functools.lru_cache(maxsize=1)
def _joined(rank: int, size: int) -> Joined:
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank, size, timeout=_PATIENCE))
    words, collectives = (PrefixStore(name, store) for name in ("words", "collectives"))
    dist.init_process_group(backend, store=collectives, rank=rank, world_size=size, timeout=_PATIENCE)
    return Joined(rank, size, words)


def is_loss(error: BaseException) -> bool:
    """Return whether an error says that another process is gone, and not that something is wrong with this one."""
    if isinstance(error, LostProcessError | dist.DistBackendError | dist.DistNetworkError):
        return True
    plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    return plain and any(sign in str(error) for sign in _SIGNS_OF_LOSS)


def check_device(device: str, processes: Processes) -> None:
    """Raise InputError unless each process of this machine has a device of its own of the kind; a CPU is shared."""
    if processes.size == 1 or device == "cpu":
        return
    if device != "cuda":
        raise InputError(f"device is '{device}', but each of {processes.size} processes needs its own: pass cuda or cpu")
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > found:
        raise InputError(f"device is 'cuda', of which there are {found} for {here} processes: start as many as there are devices")
