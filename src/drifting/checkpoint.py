"""Weights and training state on disk: tensors as safetensors, everything else as JSON, never code.

A checkpoint is a folder `step-00001000` with `state.json` and `state.safetensors` or, where several processes share the weights,
one file of shards from each; it appears whole or not at all, and any number of processes can go on from it.
"""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from drifting.distributed import ALONE, Processes, laid_out, load_shards, save_shards
from drifting.errors import InputError
from drifting.files import atomic_path

# Names of dtypes in a safetensors file, whose header is padded so that tensors are aligned.
_DTYPES, _ALIGNMENT = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}, 8
_TENSORS, _FACTS = "state.safetensors", "state.json"
# Where shards are written to, before the checkpoint appears.
_SHARDS = ".shards-"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to one safetensors file, atomically."""
    with atomic_path(path) as scratch:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)


def write_tensors(path: Path, described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], read: Callable[[str], Tensor]) -> None:
    """Write a safetensors file with one tensor in memory at a time, atomically.

    Args:
        path: of the file.
        described: name -> dtype and shape.
        read: returns the tensor of a name, which is as described.
    """
    header, end = {}, 0
    for name, (dtype, shape) in described.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in described:
            # numpy has no bfloat16.
            file.write(read(name).detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises InputError if it is missing, truncated or something else."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"checkpoint is '{path}', which does not exist: train first, or name another run") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint is '{path}', which is corrupted or truncated ({error}): delete it and resume") from None


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read published weights: .safetensors, or .pth and .pt by torch's reader that lets through tensors and nothing that runs.

    What is found under "state_dict" is taken, and the prefix "module." of a network trained on several devices is left out.

    Raises:
        InputError: if the file is missing, truncated, of another kind, holds something else than weights, or would run code.
    """
    readers = {".safetensors": load_file, ".pth": _load_torch, ".pt": _load_torch}
    if path.suffix not in readers:
        raise InputError(f"weights is '{path}': pass a .safetensors, .pth or .pt file")
    if not path.is_file():
        raise InputError(f"weights is '{path}', which is no file: name one")
    try:
        loaded = readers[path.suffix](path)
    # Every layer below (zip, the reader, storages) raises its own kinds; torch's words are an advice to run what the file holds.
    except Exception:
        raise InputError(f"weights is '{path}', which is truncated or holds more than weights: pass tensors alone") from None
    if isinstance(loaded, Mapping):
        loaded = loaded.get("state_dict", loaded)
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"weights is '{path}', which holds no weights: pass tensors by name, or those under 'state_dict'")
    return {str(name).removeprefix("module."): value.detach() for name, value in loaded.items()}


def _load_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def save_json(path: Path, facts: Any) -> None:
    """Write JSON, atomically."""
    with atomic_path(path) as scratch:
        scratch.write_text(json.dumps(facts, indent=1) + "\n")


def load_json(path: Path, *, mend: str = "restore it or train again") -> Any:
    """Read JSON; raises InputError if it is missing, or damaged, which `mend` tells what to do about."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"file is '{path}', which does not exist: name the folder of a finished or interrupted run") from None
    # Beside what is no JSON: nesting or a number beyond what Python takes.
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"file is '{path}', which is corrupted ({error}): {mend}") from None


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Any, *, keep: int, processes: Processes = ALONE
) -> Path:
    """Write the checkpoint of a step and delete all but the newest `keep`; process 0 does, and of sharded tensors each its own."""
    target, shards = folder / f"step-{step:08d}", folder / f"{_SHARDS}{step:08d}"
    sharded = any(hasattr(tensor, "to_local") for tensor in tensors.values())
    if sharded:
        with processes.leads_the_way():
            if processes.leads:
                for left in folder.glob(f"{_SHARDS}*"):  # by a run that was killed
                    shutil.rmtree(left)
                shards.mkdir(parents=True)
        save_shards(shards, tensors)
        processes.wait()
    if processes.leads:
        if target.exists():
            shutil.rmtree(target)
        with atomic_path(target) as scratch:
            if sharded:
                shards.rename(scratch)
            else:
                scratch.mkdir()
                save_tensors(scratch / _TENSORS, tensors)
            save_json(scratch / _FACTS, facts)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    processes.wait()
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*"))


def steps_done(checkpoint: Path, steps: int) -> int:
    """Return the step of a checkpoint, or raise InputError if the run that goes on from it is to have fewer steps in all."""
    done = int(checkpoint.name.removeprefix("step-"))
    if steps < done:
        raise InputError(f"steps is {steps}, but the run to resume has done {done}: pass at least as many")
    return done


def load_checkpoint(checkpoint: Path, layout: Callable[[str], Tensor | None] = lambda _: None) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the facts of a checkpoint; raises InputError if it is damaged.

    Args:
        checkpoint: its folder.
        layout: name -> a tensor as which an entry is to be sharded, see `distributed.load_shards`. All processes take part.
    """
    facts = load_json(checkpoint / _FACTS)
    if (checkpoint / _TENSORS).exists() or not any(checkpoint.glob("*.safetensors")):
        return load_tensors(checkpoint / _TENSORS), facts
    try:
        return load_shards(checkpoint, layout), facts
    # What the reader meets in a damaged file, it raises in many kinds.
    except Exception as error:
        raise InputError(f"checkpoint is '{checkpoint}', which is corrupted or truncated ({error}): delete it and resume") from None


def check_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Raise InputError naming the first three weights of a module that are missing, unknown or of another shape."""
    expected = module.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in expected]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        raise InputError(f"weights of '{origin}' do not fit the configuration ({'; '.join(wrong[:3])}): use those of this network")


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights into a module; raises InputError as `check_weights` does."""
    check_weights(module, weights, origin)
    module.load_state_dict({name: laid_out(weights[name], value) for name, value in module.state_dict().items()})


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter as named tensors: "0.exp_avg", "0.step", ..."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, state in states.items() for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give back what `flatten_optimizer` took; the hyper-parameters stay those of the configuration."""
    states: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        # In the order of the parameter in memory, which a fused step takes for granted.
        same = tensor.shape == like.shape
        value = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(laid_out(tensor, like)) if same else tensor
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_stream(rng: torch.Generator, state: Tensor, origin: str) -> None:
    """Give a random stream the state that it had; raises InputError if that is of a stream of another kind of device."""
    if state.shape != rng.get_state().shape:
        name = rng.device.type
        raise InputError(f"device is '{name}', but the random stream of '{origin}' is of another kind of device: resume on that")
    rng.set_state(state)
