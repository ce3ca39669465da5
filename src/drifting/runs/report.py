"""The report of a run: one HTML file that needs no network, with the samples through the training, its curves and its figures.

A report shows what is there. Of a run that is not finished, not evaluated, or whose data are gone, it says what is missing.
"""

import base64
import io
import json
import math
import platform
import shlex
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from drifting import __version__, presets
from drifting._files import atomic_path, check_writable
from drifting.config import RunConfig
from drifting.data import Decoder, Source
from drifting.data.pixels import to_bytes
from drifting.data.points import Frame
from drifting.data.sources import reference_samples
from drifting.errors import InputError
from drifting.evaluation.tables import lines
from drifting.history import DRIFT_NORM
from drifting.presets.settings import settings
from drifting.runs.compare import read_figures
from drifting.runs.doctor import NOISE_FLOOR, examine
from drifting.runs.folder import CONFIG, LOG, METRICS, REPORT, WEIGHTS, read_config
from drifting.runs.pictures import Drawing, layout, summed_drift
from drifting.training.recorder import MetricsLog, read_snapshots

_TEMPLATE, _FACTS = "report.html", "@FACTS@"
# Points that are drawn, lines of arrows, and the resolution of coordinates.
_POINTS, _ARROWS, _LEVELS = 1500, 21, 4095
# Length of the longest arrow in pixels of the canvas, and the power of the drift that arrows show.
_LONGEST_ARROW, _ROOT = 60.0, 0.4
# Pixels between the images of a grid.
_GAP = 1
# Share of the window around the data that is left free.
_MARGIN = 0.1
# Widest picture of samples in pixels, and points of a curve.
_WIDEST, _CURVE_POINTS = 1000, 400


def write_report(
    folders: Sequence[str | Path], out: str | Path | None = None, *, overwrite: bool = False, source: Source | None = None
) -> Path:
    """Write the report of a run, or of several side by side, and return its path.

    Args:
        folders: folders of generators' runs, finished or not.
        out: the file; by default report.html in the folder of the only run, which is replaced.
        overwrite: replace an existing file.
        source: source of the real samples of all runs; None to make it for each.

    Raises:
        InputError: if a folder holds no run, or the file cannot be written.
    """
    if not folders:
        raise InputError("runs is empty: name the folder of at least one run")
    if out is None and len(folders) > 1:
        raise InputError(f"out is missing, but there are {len(folders)} runs: name the file of their report")
    path = Path(folders[0]) / REPORT if out is None else Path(out)
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"out is '{path}': name an .html file")
    if path.is_dir() or (path.exists() and not overwrite and out is not None):
        raise InputError(f"out is '{path}', which exists: pass --overwrite or name another file")
    configs = [read_config(Path(folder) / CONFIG) for folder in folders]
    check_writable(path.parent, "out")
    runs = [describe(Path(folder), config, source) for folder, config in zip(folders, configs, strict=True)]
    titles = [config.data.title for config in configs]
    facts = {
        "title": " and ".join(dict.fromkeys(titles)) + ": a generator that samples in one pass",
        "subtitle": f"Trained by a drift field, with drifting {__version__}",
        "charts": _charts(runs),
        "runs": [run.facts() for run in runs],
    }
    page = files("drifting.plotting").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    # "</" could end the script element that holds the facts.
    text = page.replace(_FACTS, json.dumps(facts, allow_nan=False).replace("</", "<\\/"))
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return path


@dataclass
class Described:
    """What a report shows of one run; its attributes are those of the page."""

    name: str
    lines: list[str]
    command: str
    environment: str
    log: list[dict[str, Any]]
    metrics: Mapping[str, Any]
    settings: list[tuple[str, str, str]]
    samples: dict[str, Any] | None = None
    comparison: str | None = None
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return the facts for the page."""
        own = {name: value for name, value in vars(self).items() if name not in ("log", "metrics")}
        return {**own, "figures": _figures(self.metrics)}


def describe(folder: Path, config: RunConfig, source: Source | None = None) -> Described:
    """Return what a report shows of the run in a folder."""
    missing: list[str] = []
    log = [line for line in _read(lambda: MetricsLog(folder / LOG).read(), missing) or [] if "step" in line]
    metrics = _read(lambda: read_figures(folder / METRICS, "evaluate the run again"), missing) or {}
    steps, done = config.schedule.steps, int(log[-1]["step"]) if log else 0
    if not (folder / WEIGHTS).exists():
        missing.append(f"The training is not finished: {done} of {steps} steps are in its log.")
    if not metrics:
        missing.append(f"Not evaluated yet: drifting evaluate {shlex.quote(str(folder))}")
    snapshots = _read(lambda: read_snapshots(folder, config.data.sample_shape), missing) or {}
    picture = folder / "comparison.png"
    return Described(
        name=str(folder),
        lines=_lines(config, done, log),
        command=f"drifting train --config {shlex.quote(str(folder / CONFIG))} --save-dir runs/again\n"
        f"drifting sample {shlex.quote(str(folder))} --num-samples 100 --out samples.png",
        environment=f"This report was made with torch {torch.__version__} and Python {platform.python_version()} on "
        f"{platform.system()} {platform.machine()}.",
        log=log,
        metrics=metrics,
        settings=_settings(config, missing),
        samples=_shown_samples(config, snapshots, source, missing),
        verdicts=_read(lambda: _verdicts(folder), missing) or [],
        comparison=_uri(picture.read_bytes()) if picture.is_file() else None,
        missing=missing,
    )


def _read(read: Any, missing: list[str]) -> Any:
    """Return what a function reads; if it cannot, note why and return None."""
    try:
        return read()
    except InputError as error:
        missing.append(f"{str(error)[:1].upper()}{str(error)[1:]}")
        return None


def _lines(config: RunConfig, done: int, log: Sequence[Mapping[str, Any]]) -> list[str]:
    classes, schedule = config.data.num_classes, config.schedule
    labels = "one population" if classes is None else f"{classes} classes, {min(schedule.labels_per_step, classes)} in a step"
    speed = next((line["mean_steps_per_second"] for line in reversed(log) if line.get("mean_steps_per_second")), None)
    minutes = "" if speed is None else f" in {done / speed / 60:.1f} minutes"
    temperatures = ", ".join(f"{value:g}" for value in config.loss.temperatures)
    return [
        f"{config.data.title}: {labels}, by the preset '{config.preset}'.",
        f"{done:,} steps{minutes}, each with {schedule.generated} generated and {schedule.positives} real samples of a label.",
        f"Drift field {type(config.loss.field).__name__} at the temperatures {temperatures}, "
        f"features {type(config.encoder).__name__.removesuffix('Config')}, "
        f"generator {type(config.generator).__name__.removesuffix('Config')}.",
    ]


def _verdicts(folder: Path) -> list[dict[str, Any]]:
    """Return the sentences of `drifting doctor`, each with whether it is good news."""
    found = examine(folder)
    first, *rest = found.lines()
    faults = {f"- {finding}" for finding in found.faults}
    return [{"text": first, "good": not faults}, *({"text": line.removeprefix("- "), "good": line not in faults} for line in rest)]


def _settings(config: RunConfig, missing: list[str]) -> list[tuple[str, str, str]]:
    """Return (name, value, value in the preset if it differs) of every setting."""
    own = {each.name: each.value for each in settings(config)}
    # A preset of own data needs them; a saved preset may not exist any more.
    arguments = {"dataset": own.get("data.dataset"), "data": own.get("data.path")}
    given = {name: value for name, value in arguments.items() if value is not None}
    preset = _read(lambda: presets.preset(config.preset, **given), missing) if config.preset in presets.PRESETS else None
    before = {} if preset is None else {each.name: each.value for each in settings(preset)}
    return [(name, _shown(value), "" if before.get(name, value) == value else _shown(before[name])) for name, value in own.items()]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _figures(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (name, value, floor, which direction is better) of every figure but the curve."""
    return [(line.name.replace("_", " "), *line[1:]) for line in lines(metrics) if not line.name.startswith("frechet_curve")]


def _charts(runs: Sequence[Described]) -> list[dict[str, Any]]:
    """Return the charts over the steps: of one run the loss and every temperature, of several one curve for each."""
    many = len(runs) > 1
    curves: dict[str, list[dict[str, Any]]] = {
        "raw drift norm": [],
        "squared energy distance": [],
        "Frechet distance": [],
        "loss": [],
    }
    for run in runs:
        prefix = f"{run.name}: " if many else ""
        floors = _by_temperature(run.log, NOISE_FLOOR)
        for temperature, values in _by_temperature(run.log, DRIFT_NORM).items():
            known = [value for value in floors.get(temperature, []) if value is not None]
            # One batch measures it roughly, and it depends on the features, which may change.
            recent = known[-max(1, len(known) // 3) :]
            curve = _curve(f"{prefix}temperature {temperature}", run.log, values)
            curves["raw drift norm"].append({**curve, "floor": statistics.median(recent) if recent else None})
        for title, name in (("squared energy distance", "energy_distance"), ("loss", "loss")):
            values = [line.get(name) for line in run.log]
            curves[title].append(_curve(run.name if many else title, run.log, values))
        distances = run.metrics.get("frechet_curve")
        if isinstance(distances, Sequence):
            measured = {"steps": list(run.metrics["frechet_curve_steps"]), "values": list(distances)}
            floor = run.metrics.get("frechet_curve_floor")
            curves["Frechet distance"].append({"name": run.name if many else "Frechet distance", **measured, "floor": floor})
    charts = [(title, [curve for curve in some if curve["steps"]]) for title, some in curves.items()]
    return [{"title": title, "curves": some, "logarithmic": title != "loss"} for title, some in charts if some]


def _by_temperature(log: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[float | None]]:
    """Return the geometric mean over the features of a figure at each temperature, for every line of the log."""
    names = sorted({name for line in log for name in line if name.startswith(f"{kind}/")})
    found: dict[str, list[float | None]] = {}
    for temperature in dict.fromkeys(name.split("/")[2] for name in names):
        of_this = [name for name in names if name.split("/")[2] == temperature]
        found[temperature] = [_geometric_mean([line.get(name) for name in of_this]) for line in log]
    return found


def _geometric_mean(values: Sequence[Any]) -> float | None:
    logs = [math.log(value) for value in values if isinstance(value, int | float) and 0 < value < math.inf]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _curve(name: str, log: Sequence[Mapping[str, Any]], values: Sequence[Any]) -> dict[str, Any]:
    """Return a curve of at most some hundred points; values that are not finite are left out."""
    pairs = [(int(line["step"]), float(value)) for line, value in zip(log, values, strict=True) if value is not None]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    every = max(1, math.ceil(len(pairs) / _CURVE_POINTS))
    kept = pairs[::-1][::every][::-1]
    return {"name": name, "steps": [step for step, _ in kept], "values": [value for _, value in kept], "floor": None}


@dataclass(frozen=True)
class Showing(Drawing):
    """The ways to show the samples of a run on the page; its data choose one, or draw pictures of their own into the folder.

    Attributes:
        found: the facts for the page.
    """

    found: dict[str, Any] = field(default_factory=dict)

    def points(self, frame: Frame) -> list[Path]:
        """Show points in the plane and, if the field can compute it, the drift at every place."""
        real = reference_samples(self.source, self.config.snapshot_samples, 0)
        self.found.update(_plane(self.snapshots, frame, real, summed_drift(self.config.loss.build(), frame, real)))
        return []

    def images(self, train: UInt8[Tensor, "s c h w"]) -> list[Path]:
        """Show images, one class per row where there are classes."""
        del train
        return self.decoded(to_bytes)

    def decoded(self, decode: Decoder) -> list[Path]:
        """Show images that a function decodes."""
        rows, columns = layout(self.source.num_classes, min(map(len, self.snapshots.values())))
        count, labeled = rows * columns, self.source.num_classes == rows
        anything = self.source.draw_unconditional(1, count, torch.Generator().manual_seed(0))[0]
        real = decode(reference_samples(self.source, count, 0) if labeled else anything)
        self.found.update(_sheets(self.snapshots, decode, rows, columns), real=_sheet(real, rows, columns))
        if labeled and self.config.data.class_names is not None:
            self.found["names"] = list(self.config.data.class_names)
        return []


def _shown_samples(
    config: RunConfig, snapshots: Mapping[int, Tensor], source: Source | None, missing: list[str]
) -> dict[str, Any] | None:
    """Return the samples through the training as facts for the page, without real ones if the data are gone; None for none."""
    if not snapshots:
        missing.append("No samples were kept of this training.")
        return None
    snapshots = dict(sorted(snapshots.items()))
    source = _read(lambda: config.data.source(config.seed), missing) if source is None else source
    if source is None:
        shape, count = next(iter(snapshots.values())).shape[1:], min(map(len, snapshots.values()))
        if shape == (2,):
            return _plane(snapshots, Frame((0.0, 0.0), 1.0), None, None)
        return (
            _sheets(snapshots, to_bytes, *layout(config.data.num_classes, count))
            if len(shape) == 3 and shape[0] in (1, 3)
            else None
        )
    with tempfile.TemporaryDirectory() as folder:
        showing = Showing(config, source, Path(folder), snapshots, [])
        own = _read(lambda: config.data.depict(showing), missing) or []
        pictures = [_uri(path.read_bytes()) for path in own if path.suffix == ".png"]
    return showing.found or ({"kind": "pictures", "pictures": pictures} if pictures else None)


def _plane(
    snapshots: Mapping[int, Float[Tensor, "n 2"]],
    frame: Frame,
    real: Float[Tensor, "r 2"] | None,
    drift: Callable[[Tensor, Tensor], Tensor] | None,
) -> dict[str, Any]:
    """Return points in the plane as facts for the page, in whole numbers from 0 to `_LEVELS` inside the window."""
    restored = [frame.restore(samples) for samples in snapshots.values()]
    window = restored[-1] if real is None else frame.restore(real)
    low, high = window.amin(0), window.amax(0)
    half = (0.5 + _MARGIN) * (float((high - low).max()) or 1.0)
    corner = (low + high) / 2 - half

    def placed(points: Float[Tensor, "n 2"]) -> list[int]:
        return ((points - corner) / (2 * half) * _LEVELS).round().clamp(-_LEVELS, 2 * _LEVELS).flatten().int().tolist()

    arrows = None
    if drift is not None:
        places = torch.cartesian_prod(
            *(torch.linspace(float(at), float(at) + 2 * half, _ARROWS, dtype=torch.float64) for at in corner)
        )
        fields = [drift(places, samples) for samples in restored]
        longest = max(float(vectors.norm(dim=1).max()) for vectors in fields) or 1.0
        vectors = [[round(value, 1) for value in _arrows(one / longest).flatten().tolist()] for one in fields]
        arrows = {"places": placed(places), "vectors": vectors}
    return {
        "kind": "points",
        "steps": list(snapshots),
        "real": None if real is None else placed(frame.restore(real)[:_POINTS]),
        "points": [placed(samples[:_POINTS]) for samples in restored],
        "arrows": arrows,
    }


def _sheets(snapshots: Mapping[int, Tensor], decode: Decoder, rows: int, columns: int) -> dict[str, Any]:
    """Return the images of every snapshot as facts for the page, without real ones."""
    sheets = [_sheet(decode(samples[: rows * columns]), rows, columns) for samples in snapshots.values()]
    return {"kind": "images", "steps": list(snapshots), "images": sheets, "real": None, "names": None}


def _arrows(vectors: Float[Tensor, "q 2"]) -> Float[Tensor, "q 2"]:
    """Return arrows in pixels, for vectors of length 1 at most."""
    return _LONGEST_ARROW * vectors * vectors.norm(dim=1, keepdim=True).clamp(min=1e-12) ** (_ROOT - 1)


def _sheet(images: UInt8[Tensor, "n c h w"], rows: int, columns: int) -> str:
    """Return a grid of images whose classes come in turn, one class per row, as the address of a picture."""
    framed = torch.nn.functional.pad(images[: rows * columns], (0, _GAP, 0, _GAP), value=128)
    pixels = framed.unflatten(0, (columns, rows)).permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]))
    if picture.width > _WIDEST:
        picture = picture.resize((_WIDEST, max(1, round(picture.height * _WIDEST / picture.width))))
    written = io.BytesIO()
    picture.save(written, format="png", optimize=True)
    return _uri(written.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
