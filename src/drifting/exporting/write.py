"""Write a generator in a format of other programs, after it was compared with PyTorch."""

import importlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from drifting._files import atomic_path, check_writable
from drifting.errors import InputError
from drifting.exporting import web
from drifting.exporting.formats import BATCHES, Runner, largest_difference, load_onnx, load_torch, save_torch, to_onnx, trace
from drifting.exporting.network import Subject, subject_of
from drifting.exporting.weights import check_weights, rounded, store
from drifting.sampling import Sampler

# Format -> its file or folder in that of a run.
NAMES = {"onnx": "generator.onnx", "torch": "generator.pt2", "web": "web"}
# Samples in a pass of a measurement of speed, and its repetitions.
_AT_ONCE, _REPETITIONS = 64, 10


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: the file or folder.
        size: bytes of the model.
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
            *([f"look at it: python3 -m http.server 8000 --bind 127.0.0.1 --directory {self.path}"] if self.path.is_dir() else []),
        ]


def export(
    sampler: Sampler,
    to: str = "onnx",
    out: str | Path | None = None,
    *,
    weights: str = "float32",
    cdn: bool = False,
    runtime: str | Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the generator of a run in another format, or raise InputError before anything is written.

    Args:
        sampler: a run, or a generator of the release; see `drifting.load`.
        to: the format: onnx, torch, or web for a folder with a page that runs it in a browser.
        out: the file or folder; generator.onnx, generator.pt2 or web in the folder of the run by default.
        weights: float32, float16 or int8, as which weights are stored; see `exporting.weights`. Not for torch.
        cdn: whether the page loads ONNX Runtime Web from a CDN; by default its files are in the folder.
        runtime: the npm package of ONNX Runtime Web for a page, a .tgz or a folder; None to fetch it by npm.
        overwrite: replace an existing file or page.

    Raises:
        InputError: if it exists or cannot be written, the generator cannot be exported, or its samples in the other format differ
            from those in PyTorch.
        ModuleNotFoundError: if a library of the extra `export` is missing.
    """
    path = check_request(sampler, to, out, weights=weights, cdn=cdn, runtime=runtime, overwrite=overwrite)
    subject = subject_of(sampler, rounded(sampler.generator, weights))
    if to == "web":
        web.check_shown(subject)
    fetched = web.runtime_files(runtime, cdn=cdn) if to == "web" else None
    program = trace(subject)
    with atomic_path(path) as scratch:
        if to == "torch":
            save_torch(program, subject, scratch)
            file, run = scratch, load_torch(scratch)
        else:
            model = to_onnx(program, subject)
            store(model, weights)
            content = model.SerializeToString()
            if to == "web":
                file = web.write_page(scratch, subject, content, fetched)
            else:
                file = scratch
                file.write_bytes(content)
            run = load_onnx(file)
        difference = largest_difference(subject, run)
        size = file.stat().st_size
    ours, theirs = _speeds(subject, run)
    return Exported(path=path, size=size, difference=difference, speed=theirs, torch_speed=ours)


def check_request(
    sampler: Sampler,
    to: str,
    out: str | Path | None,
    *,
    weights: str = "float32",
    cdn: bool = False,
    runtime: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Return the path that `export` writes to, or raise what it raises without looking at the network or fetching anything."""
    if to not in NAMES:
        raise InputError(f"to is '{to}': pass {', '.join(tuple(NAMES)[:-1])} or {tuple(NAMES)[-1]}")
    check_weights(weights)
    if to == "torch" and weights != "float32":
        raise InputError(f"weights is '{weights}', which a program of torch.export does not have: export to onnx or web")
    if to != "web" and (cdn or runtime is not None):
        name = "cdn is True" if cdn else f"runtime is '{runtime}'"
        raise InputError(f"{name}, but to is '{to}', and only a page has a runtime: leave it out, or export to web")
    if cdn and runtime is not None:
        raise InputError(f"runtime is '{runtime}', but cdn is True: leave out one of them")
    path = _target(sampler, to, out, overwrite=overwrite)
    for library in () if to == "torch" else ("onnx", "onnxscript", "onnxruntime"):
        importlib.import_module(library)
    if to == "web":
        web.check_runtime(runtime, cdn=cdn)
    return path


def _target(sampler: Sampler, to: str, out: str | Path | None, *, overwrite: bool) -> Path:
    folder, name, is_page = getattr(sampler, "folder", None), NAMES[to], to == "web"
    if out is None and folder is None:
        raise InputError("out is missing: name the file to write")
    path = Path(out) if out is not None else Path(str(folder), name)
    if not is_page and path.suffix != Path(name).suffix:
        raise InputError(f"out is '{path}': name a {Path(name).suffix} file")
    if path.exists() and path.is_dir() != is_page:
        raise InputError(f"out is '{path}', which is a {'file' if is_page else 'folder'}: name another")
    if is_page and (others := [each.name for each in path.glob("*") if each.name not in web.PARTS]):
        raise InputError(f"out is '{path}', which holds other files, such as '{min(others)}': name another folder")
    if path.exists() and not overwrite:
        raise InputError(f"out is '{path}', which exists: pass --overwrite, or name another")
    check_writable(path.parent, "out")
    return path


def _speeds(subject: Subject, run: Runner) -> tuple[float, float]:
    """Return samples in a second of PyTorch and of a format: the fastest of passes in turn, since other work only slows them."""
    inputs, seconds = subject.inputs(_AT_ONCE), ([], [])
    with torch.no_grad():
        for _ in range(_REPETITIONS):
            for kept, compute in zip(seconds, (lambda: subject.network(**inputs), lambda: run(inputs)), strict=True):
                start = time.perf_counter()
                compute()
                kept.append(time.perf_counter() - start)
    ours, theirs = (_AT_ONCE / max(min(kept), 1e-9) for kept in seconds)
    return ours, theirs
