"""Weights and training state on disk: tensors as safetensors, everything else as JSON, never code.

A checkpoint is a folder `step-00001000` with `state.json` and `state.safetensors` or, where several processes share the weights,
one file of shards from each; it appears whole or not at all, and any number of processes can go on from it.
"""

import json
import math
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from drifting._files import atomic_path, current, discard, named
from drifting._json import parse_json
from drifting.distributed import ALONE, Processes, laid_out, load_shards, local, save_shards
from drifting.errors import InputError, reason

# Names of dtypes in a safetensors file, whose header is padded so that tensors are aligned.
_DTYPES, _ALIGNMENT = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}, 8
_TENSORS, _FACTS = "state.safetensors", "state.json"
# In the metadata of a safetensors file.
_CHECKSUM = "crc32"
# Where shards are written to, before the checkpoint appears.
_SHARDS = ".shards-"
# What weights come in; a network takes them in its own precision.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Numbers whose root is taken: below 0 they would make NaN of everything.
_SQUARES = ("exp_avg_sq", "running_var")
# Whole numbers of a memory bank that are -1 where there is none.
_NONE_IS_MINUS_ONE = (".turns", ".numbers")
# A random stream of the CPU: its bytes, where the count of numbers left (int32) and the place of the next (int64) lie, its block.
_CPU_STREAM, _LEFT, _NEXT, _BLOCK = 5056, 2, 2, 624

Network = TypeVar("Network", bound=torch.nn.Module)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to one safetensors file with their checksum, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as scratch:
        save_file(tensors, scratch, metadata={_CHECKSUM: checksum(tensors)})


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of names, dtypes, shapes and bytes of tensors on the CPU, in hexadecimal digits.

    It finds what a disk or a transfer did to a file, and takes half the time of SHA-256.
    """
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode(), total)
        # numpy has no bfloat16.
        total = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


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


def load_tensors(path: Path, *, fix: str = "delete it and resume") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: if it is missing, truncated or something else, or its tensors are not those of the checksum in it, if it has
            one, which `fix` tells what to do about.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(_CHECKSUM)
    except FileNotFoundError:
        raise InputError(f"checkpoint is '{path}', which does not exist: train first, or name another run") from None
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error, fix) from None
    if expected is not None and expected != checksum(tensors):
        raise _damaged(path, ValueError("its numbers are not those of its checksum"), fix)
    return tensors


def _damaged(path: Path, error: Exception, fix: str) -> InputError:
    return InputError(f"checkpoint is '{path}', which is corrupted or truncated ({reason(error)}): {fix}")


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


def load_json(path: Path, *, fix: str = "restore it or train again") -> Any:
    """Read JSON; raises InputError if it is missing, or damaged, which `fix` tells what to do about."""
    try:
        return parse_json(path.read_text())
    except FileNotFoundError:
        raise InputError(f"file is '{path}', which does not exist: name the folder of a finished or interrupted run") from None
    except (ValueError, OSError) as error:
        raise InputError(f"file is '{path}', which is corrupted ({reason(error)}): {fix}") from None


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Any, *, keep: int, processes: Processes = ALONE
) -> Path:
    """Write the checkpoint of a step and delete all but the newest `keep`; process 0 does, and of sharded tensors each its own."""
    target, shards = folder / f"step-{step:08d}", folder / f"{_SHARDS}{step:08d}"
    sharded = any(hasattr(tensor, "to_local") for tensor in tensors.values())
    if sharded:
        with processes.main_process_first():
            if processes.is_main_process:
                for left in folder.glob(f"{_SHARDS}*"):  # by a run that was killed
                    shutil.rmtree(left)
                shards.mkdir(parents=True)
        try:
            save_shards(shards, tensors)
        except BaseException:  # a full disk, perhaps: what was written is in the way
            if processes.is_main_process:
                shutil.rmtree(shards, ignore_errors=True)
            raise
        processes.barrier()
    if processes.is_main_process:
        with atomic_path(target) as scratch:
            if sharded:
                shards.rename(scratch)
            else:
                scratch.mkdir()
                save_tensors(scratch / _TENSORS, tensors)
            save_json(scratch / _FACTS, facts)
        for old in checkpoints(folder)[:-keep]:
            discard(old)
    processes.barrier()
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first; folders of other names, such as a copy that somebody kept, are none."""
    found = [path for path in current(folder, "step-*") if re.fullmatch(r"step-(\d{8}|[1-9]\d{8,17})", named(path), re.ASCII)]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(named(checkpoint).removeprefix("step-"))


def steps_done(checkpoint: Path, steps: int) -> int:
    """Return the step of a checkpoint, or raise InputError if the run that goes on from it is to have fewer steps in all."""
    done = _step_of(checkpoint)
    if steps < done:
        raise InputError(f"steps is {steps}, but the run to resume has done {done}: pass at least as many")
    return done


def load_checkpoint(checkpoint: Path, layout: Callable[[str], Tensor | None] = lambda _: None) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the facts of a checkpoint; raises InputError if it is damaged.

    Args:
        checkpoint: its folder.
        layout: name -> a tensor as which an entry is to be sharded, see `distributed.load_shards`. All processes take part.
    """
    earlier = [path for path in checkpoints(checkpoint.parent) if _step_of(path) < _step_of(checkpoint)]
    go_on = f"resume from '{named(earlier[-1])}'" if earlier else "start again with --overwrite"
    fix = f"delete the folder '{checkpoint.name}' and {go_on}"
    facts = load_json(checkpoint / _FACTS, fix=fix)
    if (checkpoint / _TENSORS).exists() or not any(checkpoint.glob("*.safetensors")):
        return load_tensors(checkpoint / _TENSORS, fix=fix), facts
    try:
        return load_shards(checkpoint, layout), facts
    # What the reader meets in a damaged file, it raises in many kinds.
    except Exception as error:
        raise _damaged(checkpoint, error, fix) from None


def check_state(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, *, step: int | None = None) -> None:
    """Raise InputError unless a state that was saved can take the place of the one that is there, before any of it is used.

    Args:
        tensors: the state from a checkpoint.
        expected: the state that is there, as it would be saved: its names, shapes and dtypes are those that are asked for.
        origin: of the checkpoint.
        step: of the checkpoint, which counts of updates of averages must be, and those of optimizers must not exceed.
    """
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    for name, like in expected.items():
        if name in tensors and (tensors[name].shape, tensors[name].dtype) != (like.shape, like.dtype):
            wrong.append(f"{name} is {_described(tensors[name])}, not {_described(like)}")
    wrong = wrong or [f"{name} {fault}" for name in expected if (fault := _fault(name, tensors[name], step)) is not None]
    if wrong:
        raise InputError(f"checkpoint is '{origin}', which does not fit this run ({'; '.join(wrong[:2])}): delete it and resume")


def _fault(name: str, tensor: Tensor, step: int | None) -> str | None:
    """Return what cannot be in an entry of a state, whatever the run."""
    values = local(tensor)
    if values.is_floating_point() and not bool(values.isfinite().all()):
        return "is not finite"
    # Whole numbers in a state count something.
    least = -1 if name.endswith(_NONE_IS_MINUS_ONE) else 0
    if (not values.is_floating_point() or name.endswith(_SQUARES)) and bool((values < least).any()):
        return f"is below {least}"
    if step is not None and name.endswith(".n_averaged") and int(values) != step:
        return f"is {int(values)}, not the step {step}"
    if step is not None and name.startswith("optimizer.") and name.endswith(".step") and not 0 <= float(values) <= step:
        return f"is {float(values):g}, beyond the step {step}"
    return None


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def check_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Raise InputError naming the first three weights of a module that are missing, unknown or of another shape, or not finite."""
    expected = module.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in expected]
    for name, value in expected.items():
        if name in weights and weights[name].shape != value.shape:
            wrong.append(f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}")
        elif name in weights and (weights[name].dtype in _FLOATS) != (value.dtype in _FLOATS):
            wrong.append(f"{name} is {_described(weights[name])}, not {_described(value)}")
    if wrong:
        raise InputError(f"weights of '{origin}' do not fit the configuration ({'; '.join(wrong[:3])}): use those of this network")
    check_finite(((name, weights[name].to(value.dtype)) for name, value in expected.items()), origin)


def check_finite(weights: Iterable[tuple[str, Tensor]], origin: str) -> None:
    """Raise InputError naming the first weight with a number that is NaN, infinite, or negative where a root is taken of it."""
    for name, value in weights:
        if (fault := _fault(name, value, None)) is not None:
            fault = fault.replace("is not", "are not").replace("is below", "are below")
            raise InputError(f"weights of '{origin}' {fault} in '{name}': restore them, or train or download them again")


def load_network(build: Callable[[], Network], path: Path) -> Network:
    """Return a network of a configuration with the weights of a file, none of which is used before all fit.

    The configuration may ask for a network that no memory holds, so a network without numbers is compared with the file first.

    Raises:
        InputError: if the file is missing or damaged, or there is no such network, or it has other weights.
    """
    weights = load_tensors(path)
    try:
        with torch.device("meta"), _at_most(len(weights)):
            like = build()
    except Exception as error:  # every layer has its own kind for a size beyond all bounds, or none
        if isinstance(error, InputError):
            raise
        raise InputError(f"configuration of '{path}' is of no network ({reason(error)}): restore it or train again") from None
    check_weights(like, weights, str(path))
    network = build()
    load_weights(network, weights, str(path))
    return network


@contextmanager
def _at_most(weights: int) -> Iterator[None]:
    """Raise ValueError once far more layers are built than so many weights belong to."""
    # Networks replace some layers while they are built, and layers hold layers.
    left = 16 * weights + 1000

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it has many more than the {weights} weights of the file")

    hooks = [
        torch.nn.modules.module.register_module_module_registration_hook(count),
        torch.nn.modules.module.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights into a module; raises InputError as `check_weights` does."""
    check_weights(module, weights, origin)
    module.load_state_dict({name: laid_out(weights[name], value) for name, value in module.state_dict().items()})


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter as named tensors: "0.exp_avg", "0.step", ..."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, state in states.items() for key, value in state.items()}


def start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Give every weight of AdamW the state that its first step would, where it has none: what is to be saved is known before."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if not optimizer.state[weight]:
                counted_on = weight.device if group["fused"] or group["capturable"] else "cpu"
                optimizer.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=counted_on)
                for name in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[weight][name] = torch.zeros_like(weight, requires_grad=False)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], origin: str = "the checkpoint") -> None:
    """Give back what `flatten_optimizer` took; the hyper-parameters stay those of the configuration.

    Raises:
        InputError: if it is not complete, or of other weights.
    """
    start_optimizer(optimizer)
    own = flatten_optimizer(optimizer)
    check_state(tensors, own, origin)
    # In place, and so in the order of the weights in memory, which a fused step takes for granted.
    for name, value in own.items():
        value.copy_(laid_out(tensors[name], value))


def check_stream(rng: torch.Generator, state: Tensor | None, origin: str) -> None:
    """Raise InputError unless a random stream can be given a state; the stream stays as it is."""
    if state is None or state.dtype != torch.uint8 or state.ndim != 1:
        found = "missing" if state is None else _described(state)
        raise InputError(f"checkpoint is '{origin}', whose random stream is {found}: delete it and resume")
    if state.shape != rng.get_state().shape:
        name = rng.device.type
        raise InputError(f"device is '{name}', but the random stream of '{origin}' is of another kind of device: resume on that")
    try:
        torch.Generator(rng.device).set_state(state)
        sound = len(state) != _CPU_STREAM or _has_numbers(state)
    except RuntimeError:
        sound = False
    if not sound:
        raise InputError(f"checkpoint is '{origin}', whose random stream is in no state that there is: delete it and resume")


def _has_numbers(state: Tensor) -> bool:
    """Return whether a stream of the CPU goes on inside its block of numbers; torch itself would read beyond it."""
    left, place = int(state.view(torch.int32)[_LEFT]), int(state.view(torch.int64)[_NEXT])
    return (left, place) == (1, 0) or (left >= 1 and left + place == _BLOCK + 1)


def restore_stream(rng: torch.Generator, state: Tensor | None, origin: str) -> None:
    """Give a random stream the state that it had; raises InputError as `check_stream` does."""
    check_stream(rng, state, origin)
    rng.set_state(state)  # pyright: ignore[reportArgumentType] - checked
