"""Sharded weights: splitting them over processes, putting them together, writing and reading them."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata


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
