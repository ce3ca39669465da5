"""Training on several processes, each with a device of its own. This is the only file that uses torch.distributed.

`torchrun --nproc-per-node N -m drifting ...` starts N copies of the same command, and `join` connects them by the environment that
torchrun sets. All processes draw the same random numbers from generators in the same state, and each takes its share of them.
Quantities of the whole batch are summed or gathered here.

With "ddp" every process holds a copy of the weights, and gradients are averaged. With "fsdp" every process holds a share of the
weights, gradients, optimizer state and averages; the weights are gathered block by block where they are needed.
"""

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drifting.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

PARALLEL = ("ddp", "fsdp")
# Longer than anything one process does while others wait for it; a process that died is detected at once.
_PATIENCE = timedelta(minutes=30)
# Seconds between two checks of whether the main process is done.
_CHECK_EVERY = 0.1
# What the messages of torch's backends contain when a process is lost; the errors have no class of their own.
_LOST_PROCESS_MARKS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "socket")


class LostProcessError(RuntimeError):
    """A process of the run died or no longer answers; the message says how to continue."""


class Processes:
    """The processes of a run, as seen by one of them. This class stands for a single process, a subclass for several.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files and prints the messages."""
        return self.rank == 0

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return value

    def all_reduce_min(self, value: Tensor) -> Tensor:
        """Return the element-wise minimum of a tensor over all processes."""
        return value

    def all_gather(self, values: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
        """Return the named tensors of all processes, concatenated along a dimension; shapes must be equal on all processes."""
        return dict(values)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process; all processes must call it."""
        return flag

    def barrier(self) -> None:
        """Wait until all processes have called it."""

    def share(self, count: int) -> slice:
        """Return the slice of `count` items, a multiple of the number of processes, that belongs to this process."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def main_process_first(self) -> AbstractContextManager[None]:
        """Return a context in which process 0 runs the block before all others; if it fails there, it fails on all."""
        return nullcontext()

    def is_first_to_say(self, text: str) -> bool:
        """Return whether no other process has printed the same text."""
        return True

    def something_said(self) -> bool:
        """Return whether a process has printed why the command ends."""
        return False

    def wrap_ddp(self, generator: nn.Module) -> tuple[Callable[..., Tensor], Callable[[], AbstractContextManager[None]]]:
        """Return a network whose gradients are averaged over the processes, and a context that postpones the averaging."""
        return generator, nullcontext

    def shard(self, generator: nn.Module) -> None:
        """Split every weight over the processes, in place."""


ALONE = Processes()


class _Joined(Processes):
    """Several processes, see `join`.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        store: key-value store that all processes share.
    """

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size, self._store, self._turns = rank, size, store, 0

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        return self._reduced(value, dist.ReduceOp.SUM)

    def all_reduce_min(self, value: Tensor) -> Tensor:
        return self._reduced(value, dist.ReduceOp.MIN)

    def _reduced(self, value: Tensor, operation: Any) -> Tensor:
        result = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, operation)
        return result

    def all_gather(self, values: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
        flat = torch.cat([value.detach().flatten() for value in values.values()])
        everywhere = [torch.empty_like(flat) for _ in range(self.size)]
        dist.all_gather(everywhere, flat)
        sizes = [value.numel() for value in values.values()]
        parts = zip(*(part.split(sizes) for part in everywhere), strict=True)
        named = zip(values.items(), parts, strict=True)
        return {name: torch.cat([part.view(value.shape) for part in of_all], dim) for (name, value), of_all in named}

    def any(self, flag: bool) -> bool:
        # Reduced on the CPU, so that no device waits.
        return bool(self.all_reduce_sum(torch.tensor(int(flag))))

    def barrier(self) -> None:
        self.any(False)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        self._turns += 1
        key = f"turn-{self._turns}"
        if not self.is_main_process:
            # The store's own `wait` has a timeout and blocks signals.
            while not self._store.check([key]):
                time.sleep(_CHECK_EVERY)
            outcome, _, reason = self._store.get(key).decode().partition(":")
            if outcome != "done":
                raise (InputError if outcome == "input" else LostProcessError)(reason)
            yield
            return
        try:
            yield
        except BaseException as error:
            outcome = f"input:{error}" if isinstance(error, InputError) else "error:process 0 of this run failed: see its message"
            self._store.set(key, outcome)
            raise
        self._store.set(key, "done")

    def is_first_to_say(self, text: str) -> bool:
        try:
            self._store.add("said", 1)
            return self._store.add(f"said-{text}", 1) == 1
        except RuntimeError:  # the process that holds the store is lost
            return True

    def something_said(self) -> bool:
        try:
            return self._store.add("said", 0) > 0
        except RuntimeError:  # the process that holds the store is lost
            return False

    def wrap_ddp(self, generator: nn.Module) -> tuple[Callable[..., Tensor], Callable[[], AbstractContextManager[None]]]:
        # The network shares its weights with the generator. A sharded generator averages gradients in every backward pass.
        if is_sharded(generator):
            return generator, nullcontext
        with warnings.catch_warnings():
            # Newer releases of torch renamed the first option; older ones know only this name.
            warnings.simplefilter("ignore", FutureWarning)
            copies = nn.parallel.DistributedDataParallel(generator, broadcast_buffers=False, gradient_as_bucket_view=True)
        return copies, copies.no_sync

    def shard(self, generator: nn.Module) -> None:
        shard(generator, self.size)


def join() -> Processes:
    """Return the processes that were started together with this one, or `ALONE` if there are no others.

    With CUDA, each process makes the device of its local rank the current one.

    Raises:
        InputError: if the environment sets WORLD_SIZE, but not the address of the other processes.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        return ALONE
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise InputError(f"WORLD_SIZE is {size}, but {name} is not set: start the processes with torchrun")
    return _joined(int(os.environ["RANK"]), size)


@functools.lru_cache(maxsize=1)
def _joined(rank: int, size: int) -> _Joined:
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank, size, timeout=_PATIENCE))
    shared, collectives = (PrefixStore(name, store) for name in ("words", "collectives"))
    dist.init_process_group(backend, store=collectives, rank=rank, world_size=size, timeout=_PATIENCE)
    return _Joined(rank, size, shared)


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error means that another process is lost, rather than that this one failed."""
    if isinstance(error, LostProcessError | dist.DistBackendError | dist.DistNetworkError):
        return True
    plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    return plain and any(sign in str(error) for sign in _LOST_PROCESS_MARKS)


def check_devices(device: str, processes: Processes) -> None:
    """Raise InputError unless each process of this machine has a device of its own; processes may share the CPU."""
    if processes.size == 1 or device == "cpu":
        return
    if device != "cuda":
        raise InputError(f"device is '{device}', but each of {processes.size} processes needs its own: pass cuda or cpu")
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > found:
        raise InputError(f"device is 'cuda', but {here} processes would share {found} devices: start one process per device")


def shard(network: nn.Module, size: int) -> None:
    """Split every weight over `size` processes, in place; a forward pass gathers one block at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP warns about outputs that are views; nothing here changes them in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(next(network.parameters()).device.type, (size,))
    for weight in network.parameters():  # only contiguous weights can be split
        weight.data = weight.data.contiguous()
    for blocks in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The outermost module reshards as well, so that its weights are shares outside of a pass.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Return whether the weights of a network are split over processes."""
    return any(hasattr(weight, "to_local") for weight in network.parameters())


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a sharded tensor, as a view; return any other tensor unchanged."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor; return any other tensor unchanged. All processes must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor, whole on every process, sharded like another tensor of the same shape."""
    if not hasattr(like, "to_local") or hasattr(tensor, "to_local"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # pyright: ignore[reportAttributeAccessIssue]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def save_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors, sharded or not, as one safetensors file per process. All processes must call it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _plain_errors():
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the error of one process, such as a full disk, on all; torch wraps it in a class that is no `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise min(error.failures.items())[1][0] from None


def load_shards(folder: Path, layout: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """Read the files of `save_shards`, on any number of processes.

    Args:
        folder: where the files are.
        layout: maps the name of an entry to a tensor whose layout it takes; None for an entry that every process reads whole.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors: dict[str, Tensor] = {}
    for name, entry in HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items():
        found, like = cast("TensorStorageMetadata", entry), layout(name)
        kind = found.properties.dtype
        fits = like is not None and hasattr(like, "to_local") and like.shape == found.size
        tensors[name] = torch.empty_like(cast(Tensor, like), dtype=kind) if fits else torch.empty(found.size, dtype=kind)
    with _plain_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it reads without a process group
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not dist.is_initialized())
    return tensors
