"""Write a generator in a format of other programs, after it was compared with PyTorch."""

import importlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from drifting._files import atomic_path, check_writable
from drifting.errors import InputError
from drifting.exporting.formats import BATCHES, Runner, largest_difference, load_onnx, load_torch, save_torch, to_onnx, trace
from drifting.exporting.network import Subject, subject_of
from drifting.sampling import Sampler

# Format -> ending of its file.
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
# Samples in a pass of a measurement of speed, and its repetitions.
_AT_ONCE, _REPETITIONS = 64, 5


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        difference: largest difference between its samples and PyTorch's, in units of the generator.
        speed: samples in a second in the format, on this machine.
        torch_speed: samples in a second in PyTorch, measured in turn with the other.
    """

    path: Path
    size: int
    difference: float
    speed: float
    torch_speed: float

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        batches = ", ".join(map(str, BATCHES[:-1])) + f" and {BATCHES[-1]}"
        threads = torch.get_num_threads()
        how = f"in batches of {_AT_ONCE} with {threads} thread{'s' * (threads > 1)}"
        return [
            f"samples as in PyTorch to {self.difference:.1e}, in batches of {batches}",
            f"{self.size / 1e6:,.2f} MB, {self.speed:,.0f} samples/s; PyTorch {self.torch_speed:,.0f}, {how}",
            str(self.path),
        ]


def export(sampler: Sampler, to: str = "onnx", out: str | Path | None = None, *, overwrite: bool = False) -> Exported:
    """Write the generator of a run in another format, or raise InputError before anything is written.

    Args:
        sampler: a run, or a generator of the release; see `drifting.load`.
        to: the format: onnx or torch.
        out: the file; generator.onnx or generator.pt2 in the folder of the run by default.
        overwrite: replace an existing file.

    Raises:
        InputError: if the file exists or cannot be written, the generator cannot be exported, or its samples in the other format
            differ from those in PyTorch.
        ModuleNotFoundError: if a library of the extra `export` is missing.
    """
    if to not in SUFFIXES:
        raise InputError(f"to is '{to}': pass {' or '.join(SUFFIXES)}")
    path = check_target(sampler, to, out, overwrite=overwrite)
    check_libraries(to)
    subject = subject_of(sampler)
    program = trace(subject)
    with atomic_path(path) as scratch:
        if to == "onnx":
            scratch.write_bytes(to_onnx(program, subject).SerializeToString())
            run = load_onnx(scratch)
        else:
            save_torch(program, subject, scratch)
            run = load_torch(scratch)
        difference = largest_difference(subject, run)
        size = scratch.stat().st_size
    ours, theirs = _speeds(subject, run)
    return Exported(path=path, size=size, difference=difference, speed=theirs, torch_speed=ours)


def check_libraries(to: str) -> None:
    """Raise ModuleNotFoundError with the name of a library that a format needs and that is missing."""
    for library in () if to == "torch" else ("onnx", "onnxscript", "onnxruntime"):
        importlib.import_module(library)


def check_target(sampler: Sampler, to: str, out: str | Path | None, *, overwrite: bool) -> Path:
    """Return the path to write to, or raise InputError if nothing can be written there."""
    suffix = SUFFIXES.get(to, "")
    folder = getattr(sampler, "folder", None)
    if out is None and folder is None:
        raise InputError("out is missing: name the file to write")
    path = Path(out) if out is not None else Path(str(folder), f"generator{suffix}")
    if suffix and path.suffix != suffix:
        raise InputError(f"out is '{path}': name a {suffix} file")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InputError(f"out is '{path}', which exists: pass --overwrite or name another file")
    check_writable(path.parent, "out")
    return path


def _speeds(subject: Subject, run: Runner) -> tuple[float, float]:
    """Return samples in a second of PyTorch and of a format: medians of passes in turn, since other work disturbs both alike."""
    inputs, seconds = subject.inputs(_AT_ONCE), ([], [])
    with torch.no_grad():
        for _ in range(1 + _REPETITIONS):
            for kept, compute in zip(seconds, (lambda: subject.network(**inputs), lambda: run(inputs)), strict=True):
                start = time.perf_counter()
                compute()
                kept.append(time.perf_counter() - start)
    # The first pass also prepares.
    ours, theirs = (_AT_ONCE / max(statistics.median(kept[1:]), 1e-9) for kept in seconds)
    return ours, theirs
