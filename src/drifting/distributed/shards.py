"""Weights of which every process keeps a share: how they are split, put together, written and read."""

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
    """Leave of every weight a share to each of `size` processes, in place; blocks are gathered one at a time, to compute."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Its words on samples that are views of others, which nobody changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(next(network.parameters()).device.type, (size,))
    for weight in network.parameters():  # in their plain order, the only one that can be split
        weight.data = weight.data.contiguous()
    for blocks in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The outermost too gives its weights back after every pass, so that they are shares whenever they are looked at.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Return whether processes share the weights of a network."""
    return any(hasattr(weight, "to_local") for weight in network.parameters())


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor that is sharded, and any other as it is; what changes it changes the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor put together, on every process, and any other as it is; all processes ask together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that every process holds as a whole in the layout of another of the same shape."""
    if not hasattr(like, "to_local") or hasattr(tensor, "to_local"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # pyright: ignore[reportAttributeAccessIssue]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def save_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors, of which some are sharded, as one safetensors file for each process; all processes take part."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _plain_errors():
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what a process met, such as a full disk, on all processes; torch wraps it in an exception that is no `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise min(error.failures.items())[1][0] from None


def load_shards(folder: Path, layout: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """Read what `save_shards` wrote, on any number of processes.

    Args:
        folder: the files.
        layout: name -> a tensor as which an entry is to be sharded, None for one that every process takes as a whole.
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
        warnings.simplefilter("ignore")  # that it reads alone is no news
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not dist.is_initialized())
    return tensors
