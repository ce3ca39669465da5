"""Weights and training states on disk: tensors as safetensors, everything else as JSON, never code.

A checkpoint is a folder `step-00001000` with `state.json` and `state.safetensors` or, if several processes share the weights, one
file of shards of each process. It is written completely or not at all, and any number of processes can continue from it.
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
from drifting._json import load_json, save_json
from drifting._torch import shapes_only
from drifting.distributed import ALONE, Processes, laid_out, load_shards, local, save_shards
from drifting.errors import InputError, reason

# Names of dtypes in a safetensors file, whose header is padded so that tensors are aligned.
_DTYPES, _ALIGNMENT = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}, 8
_TENSORS, _FACTS = "state.safetensors", "state.json"
# In the metadata of a safetensors file.
_CHECKSUM = "crc32"
# Where shards are written to, before the checkpoint appears.
_SHARDS = ".shards-"
# Dtypes of weights in a file; a network converts them to its own precision.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Numbers whose square root is computed: a negative one would make everything NaN.
_SQUARES = ("exp_avg_sq", "running_var")
# Integers of a memory bank that are -1 in empty slots.
_NONE_IS_MINUS_ONE = (".turns", ".numbers")

Network = TypeVar("Network", bound=torch.nn.Module)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to one safetensors file with their checksum, atomically. Tensors that share memory are copied."""
    written, places = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        written[name] = value.clone() if place in places else value
        places.add(place)
    with atomic_path(path) as scratch:
        save_file(written, scratch, metadata={_CHECKSUM: checksum(written)})


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of names, dtypes, shapes and bytes of tensors on the CPU, in hexadecimal digits.

    It detects damage by a disk or a transfer, and takes half the time of SHA-256.
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
        path: path of the file.
        described: name -> dtype and shape of a tensor.
        read: returns the tensor of a name.
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
        InputError: if the file is missing, truncated or of another format, or its tensors differ from its checksum, if it has one;
            the message ends in `fix`.
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
        raise _damaged(path, ValueError("its tensors differ from its checksum"), fix)
    return tensors


def _damaged(path: Path, error: Exception, fix: str) -> InputError:
    return InputError(f"checkpoint is '{path}', which is corrupted or truncated ({reason(error)}): {fix}")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read published weights: .safetensors, or .pth and .pt with torch's reader that accepts only tensors and runs no code.

    An entry "state_dict" is read instead of the whole file, and the prefix "module." of a network trained on several devices is
    removed.

    Raises:
        InputError: if the file is missing, truncated, of another format, holds something other than weights, or would run code.
    """
    readers = {".safetensors": load_file, ".pth": _load_torch, ".pt": _load_torch}
    if path.suffix not in readers:
        raise InputError(f"weights is '{path}': pass a .safetensors, .pth or .pt file")
    if not path.is_file():
        raise InputError(f"weights is '{path}', which is not a file: name one")
    try:
        loaded = readers[path.suffix](path)
    # Every layer below (zip, reader, storage) raises its own errors, and torch's message advises to run the code of the file.
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


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Any, *, keep: int, processes: Processes = ALONE
) -> Path:
    """Write the checkpoint of a step and delete all but the newest `keep`. The main process writes; each writes its own shards."""
    target, shards = folder / f"step-{step:08d}", folder / f"{_SHARDS}{step:08d}"
    sharded = any(hasattr(tensor, "to_local") for tensor in tensors.values())
    if sharded:
        with processes.main_process_first():
            if processes.is_main_process:
                for left in folder.glob(f"{_SHARDS}*"):  # from a killed run
                    shutil.rmtree(left)
                shards.mkdir(parents=True)
        try:
            save_shards(shards, tensors)
        except BaseException:  # for instance on a full disk: remove the incomplete files
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
    """Return the checkpoints of a run, oldest first, without folders of other names, such as copies."""
    found = [path for path in current(folder, "step-*") if re.fullmatch(r"step-(\d{8}|[1-9]\d{8,17})", named(path), re.ASCII)]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(named(checkpoint).removeprefix("step-"))


def steps_done(checkpoint: Path, steps: int) -> int:
    """Return the step of a checkpoint, or raise InputError if the run that continues from it has fewer steps in total."""
    done = _step_of(checkpoint)
    if steps < done:
        raise InputError(f"steps is {steps}, but the run to resume has done {done}: pass at least as many")
    return done


def load_checkpoint(checkpoint: Path, layout: Callable[[str], Tensor | None] = lambda _: None) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the facts of a checkpoint; raises InputError if it is damaged.

    Args:
        checkpoint: folder of the checkpoint.
        layout: name of an entry -> tensor with its sharding, see `distributed.load_shards`. All processes must call this.
    """
    earlier = [path for path in checkpoints(checkpoint.parent) if _step_of(path) < _step_of(checkpoint)]
    go_on = f"resume from '{named(earlier[-1])}'" if earlier else "start again with --overwrite"
    fix = f"delete the folder '{checkpoint.name}' and {go_on}"
    facts = load_json(checkpoint / _FACTS, fix=fix)
    if (checkpoint / _TENSORS).exists() or not any(checkpoint.glob("*.safetensors")):
        return load_tensors(checkpoint / _TENSORS, fix=fix), facts
    try:
        return load_shards(checkpoint, layout), facts
    # The reader raises errors of many classes for a damaged file.
    except Exception as error:
        raise _damaged(checkpoint, error, fix) from None


def different_names(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the names of tensors: "NAME is missing", "NAME is unknown"."""
    missing = [f"{name} is missing" for name in expected if name not in found]
    return missing + [f"{name} is unknown" for name in found if name not in expected]


def check_state(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, *, step: int | None = None) -> None:
    """Raise InputError unless a saved state can replace the current one.

    Args:
        tensors: state from a checkpoint.
        expected: current state, which defines the names, shapes and dtypes.
        origin: path of the checkpoint, for messages.
        step: step of the checkpoint: averages must have as many updates, and optimizers at most as many.
    """
    wrong = different_names(tensors, expected)
    for name, like in expected.items():
        if name in tensors and (tensors[name].shape, tensors[name].dtype) != (like.shape, like.dtype):
            wrong.append(f"{name} is {described(tensors[name])}, not {described(like)}")
    wrong = wrong or [f"{name} {fault}" for name in expected if (fault := _fault(name, tensors[name], step)) is not None]
    if wrong:
        raise InputError(f"checkpoint is '{origin}', which does not fit this run ({'; '.join(wrong[:2])}): delete it and resume")


def _fault(name: str, tensor: Tensor, step: int | None) -> str | None:
    """Return what is wrong with an entry of a state, independent of the run; None if nothing is."""
    values = local(tensor)
    if values.is_floating_point() and not bool(values.isfinite().all()):
        return "is not finite"
    # All integers in a state are counts.
    least = -1 if name.endswith(_NONE_IS_MINUS_ONE) else 0
    if (not values.is_floating_point() or name.endswith(_SQUARES)) and bool((values < least).any()):
        return f"is below {least}"
    if step is not None and name.endswith(".n_averaged") and int(values) != step:
        return f"is {int(values)}, not the step {step}"
    if step is not None and name.startswith("optimizer.") and name.endswith(".step") and not 0 <= float(values) <= step:
        return f"is {float(values):g}, beyond the step {step}"
    return None


def described(tensor: Tensor) -> str:
    """Return shape and dtype of a tensor, for messages."""
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def check_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Raise InputError naming the first three weights of a module that are missing, unknown, of another shape or not finite."""
    expected = module.state_dict()
    wrong = different_names(weights, expected)
    for name, value in expected.items():
        if name in weights and weights[name].shape != value.shape:
            wrong.append(f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}")
        elif name in weights and (weights[name].dtype in _FLOATS) != (value.dtype in _FLOATS):
            wrong.append(f"{name} is {described(weights[name])}, not {described(value)}")
    if wrong:
        raise InputError(f"weights of '{origin}' do not fit the configuration ({'; '.join(wrong[:3])}): use those of this network")
    check_finite(((name, weights[name].to(value.dtype)) for name, value in expected.items()), origin)


def check_finite(weights: Iterable[tuple[str, Tensor]], origin: str) -> None:
    """Raise InputError naming the first weight with a number that is NaN or infinite, or negative although it is a square."""
    for name, value in weights:
        if (fault := _fault(name, value, None)) is not None:
            fault = fault.replace("is not", "are not").replace("is below", "are below")
            raise InputError(f"weights of '{origin}' {fault} in '{name}': restore them, or train or download them again")


def load_network(build: Callable[[], Network], path: Path) -> Network:
    """Return a network of a configuration with the weights of a file.

    The network of a damaged configuration may not fit into memory, so a network on the meta device is compared with the file first.

    Raises:
        InputError: if the file is missing or damaged, the network cannot be built, or it has other weights.
    """
    weights = load_tensors(path, fix="delete it and resume, or download it again")
    check_weights(shapes_of_network(build, len(weights), path), weights, str(path))
    network = build()
    load_weights(network, weights, str(path))
    return network


def shapes_of_network(build: Callable[[], Network], weights: int, path: Path) -> Network:
    """Return the network of a configuration on the meta device, or raise InputError if it cannot be built.

    Args:
        build: returns the network.
        weights: number of tensors in the file of its weights.
        path: path of that file, for messages.
    """
    try:
        with shapes_only(), _at_most(weights):
            return build()
    except Exception as error:  # every layer raises its own error for a size that is too large
        if isinstance(error, InputError):
            raise
        raise InputError(f"configuration of '{path}' describes no network ({reason(error)}): restore it or train again") from None


@contextmanager
def _at_most(weights: int) -> Iterator[None]:
    """Raise ValueError in the block when it builds far more layers than this number of weights needs."""
    # Networks replace some layers while they are built, and layers contain layers.
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
