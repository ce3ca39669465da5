"""A folder with a page that runs a generator in the browser of its reader, from any host of files.

    index.html   page.js   model.onnx   runtime/ort.js   runtime/ort.wasm

ONNX Runtime Web computes it in WebAssembly with one thread, which needs neither WebGPU nor special headers of the host. Its two
files come from the npm package when the page is made, or from a CDN when it is read.
"""

import html
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from drifting.errors import InputError, one_line, reason
from drifting.exporting.network import Subject

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
_CDN = f"https://cdn.jsdelivr.net/npm/{PACKAGE}/"
_PAGE, _SCRIPT, _MODEL, _RUNTIME = "index.html", "page.js", "model.onnx", "runtime"
# File of the package -> file in the folder of the page. Some hosts do not know the ending .mjs.
_NEEDED = {"dist/ort.wasm.bundle.min.mjs": "ort.js", "dist/ort-wasm-simd-threaded.wasm": "ort.wasm"}
_SCRIPT_SOURCE, _WASM_SOURCE = _NEEDED
PARTS = (_PAGE, _SCRIPT, _MODEL, _RUNTIME)
_PATIENCE = 300  # seconds, for npm
# Points that are sampled to find the window, and the space around them relative to its half side.
_LOOKED_AT, _MARGIN = 4000, 0.08
_OTHERWISE = f"pass --cdn, or --runtime with the package that 'npm pack {PACKAGE}' fetches elsewhere"


def check_shown(subject: Subject) -> None:
    """Raise InputError unless a page can show the samples."""
    if subject.kind not in ("points", "images"):
        made = "latents, which another network decodes" if subject.kind == "latents" else "samples that are no images or points"
        raise InputError(f"to is 'web', but the run makes {made}, and a page cannot show them: export to onnx")


def runtime_files(source: str | Path | None, *, cdn: bool) -> dict[str, bytes] | None:
    """Return the files of ONNX Runtime Web, name -> content; None for those of the CDN.

    Args:
        source: the npm package: a .tgz, or a folder with its `package.json`; None to fetch it by npm.
        cdn: whether the page loads them from a CDN.

    Raises:
        InputError: if they cannot be found or fetched; the message says what to do without a network.
    """
    if cdn:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(source) if source is not None else _fetched(Path(scratch))
        try:
            return _from_folder(place) if place.is_dir() else _from_archive(place)
        except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
            unfit = f"runtime is '{place}', which is not the npm package of ONNX Runtime Web ({reason(error)})"
            raise InputError(f"{unfit}: pass what 'npm pack {PACKAGE}' fetches") from None


def check_runtime(source: str | Path | None, *, cdn: bool) -> None:
    """Raise what `runtime_files` raises without fetching anything: npm is missing, or the package is not whole."""
    if source is None and not cdn:
        _npm()
    else:
        runtime_files(source, cdn=cdn)


def _from_folder(folder: Path) -> dict[str, bytes]:
    return {name: (folder / path).read_bytes() for path, name in _NEEDED.items()}


def _from_archive(path: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for inside, name in _NEEDED.items():
            file = archive.extractfile(f"package/{inside}")
            if file is None:
                raise tarfile.ExtractError(f"{inside} is not a file")
            found[name] = file.read()
        # The checksum stands at the end, behind all files.
        if archive.fileobj is not None:
            archive.fileobj.read(-1)
    return found


def _npm() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"npm is not installed, which fetches ONNX Runtime Web: install it, {_OTHERWISE}")
    return npm


def _fetched(folder: Path) -> Path:
    """Return the package that npm fetches from its registry, or from its cache."""
    command = [_npm(), "pack", PACKAGE, "--prefer-offline", "--loglevel=error", f"--pack-destination={folder}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"npm has not fetched {PACKAGE} in {_PATIENCE} s: {_OTHERWISE}") from None
    packages = sorted(folder.glob("*.tgz"))
    if done.returncode or not packages:
        said = one_line(" ".join(done.stderr.split()) or f"status {done.returncode}", 100)
        raise InputError(f"npm cannot fetch {PACKAGE} ({said}): {_OTHERWISE}")
    return packages[0]


def write_page(folder: Path, subject: Subject, model: bytes, runtime: dict[str, bytes] | None) -> Path:
    """Write the page, its script, the model and the files of the runtime into a new folder, and return the path of the model."""
    folder.mkdir()
    (folder / _MODEL).write_bytes(model)
    if runtime is None:
        places = {"script": f"{_CDN}{_SCRIPT_SOURCE}", "wasm": f"{_CDN}{_WASM_SOURCE}"}
    else:
        (folder / _RUNTIME).mkdir()
        for name, content in runtime.items():
            (folder / _RUNTIME / name).write_bytes(content)
        places = {kind: f"{_RUNTIME}/{_NEEDED[path]}" for kind, path in (("script", _SCRIPT_SOURCE), ("wasm", _WASM_SOURCE))}
    facts: dict[str, Any] = {**subject.facts(), "model": _MODEL, "runtime": places, "about": _about(subject, len(model))}
    if subject.kind == "points":
        facts["window"] = _window(subject)
    text = _template("page.html").replace("@TITLE@", html.escape(_title(subject)))
    # No end of a script can stand in the facts.
    text = text.replace("@FACTS@", json.dumps(facts).replace("<", "\\u003c"))
    (folder / _PAGE).write_text(text, encoding="utf-8")
    (folder / _SCRIPT).write_text(_template("page.js"), encoding="utf-8")
    return folder / _MODEL


def _template(name: str) -> str:
    return files("drifting.exporting").joinpath(name).read_text(encoding="utf-8")


def _title(subject: Subject) -> str:
    return f"{subject.title}: one pass from noise to {subject.kind}"


def _about(subject: Subject, size: int) -> str:
    count = sum(parameter.numel() for parameter in subject.generator.parameters())
    shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"
    return f"A drifting model of {count:,} weights ({shown}) that runs in your browser, and nowhere else."


def _window(subject: Subject) -> dict[str, Any]:
    """Return the center and half the side of the square that shows nearly all points."""
    with torch.no_grad():
        (points,) = subject.network(**subject.inputs(_LOOKED_AT))
    low, high = torch.quantile(points.double(), torch.tensor([0.002, 0.998], dtype=torch.float64), dim=0)
    half = float((high - low).max()) / 2 * (1 + _MARGIN)
    return {"center": ((low + high) / 2).tolist(), "half": half if half > 0 else 1.0}
