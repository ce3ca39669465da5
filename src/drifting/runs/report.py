"""The report of a run: one HTML file that needs no network, with the samples through the training, its curves and its figures.

A report shows what is there. Of a run that is not finished, not evaluated, or whose data are gone, it says what is missing.
"""

import json
import math
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from drifting import __version__, presets
from drifting._files import atomic_path, check_writable
from drifting.config import RunConfig
from drifting.data import Source
from drifting.errors import InputError
from drifting.evaluation.tables import lines, read_figures
from drifting.history import DRIFT_NORM, NOISE_FLOOR
from drifting.presets.settings import settings
from drifting.runs.doctor import examine
from drifting.runs.folder import CONFIG, LOG, METRICS, REPORT, WEIGHTS, read_config, read_environments
from drifting.runs.report_samples import picture_address, read_or_note, shown_samples
from drifting.training.recorder import MetricsLog, read_snapshots

_TEMPLATE, _FACTS = "report.html", "@FACTS@"
# One and many of what an environment counts.
_COUNTED = (("thread", "threads"), ("process", "processes"))
# Points of a curve.
_CURVE_POINTS = 400


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
    # No end or start of a script can stand in the facts.
    text = page.replace(_FACTS, json.dumps(facts, allow_nan=False).replace("<", "\\u003c"))
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return path


@dataclass
class Described:
    """What a report shows of one run; its attributes are those of the page."""

    name: str
    lines: list[str]
    command: str
    environment: list[str]
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
    log = [line for line in read_or_note(lambda: MetricsLog(folder / LOG).read(), missing) or [] if "step" in line]
    metrics = read_or_note(lambda: read_figures(folder / METRICS, "evaluate the run again"), missing) or {}
    steps, done = config.schedule.steps, int(log[-1]["step"]) if log else 0
    if not (folder / WEIGHTS).exists():
        missing.append(f"The training is not finished: {done} of {steps} steps are in its log.")
    if not metrics:
        missing.append(f"Not evaluated yet: drifting evaluate {shlex.quote(str(folder))}")
    snapshots = read_or_note(lambda: read_snapshots(folder, config.data.sample_shape), missing) or {}
    picture = folder / "comparison.png"
    return Described(
        name=str(folder),
        lines=_lines(config, done, log),
        command=f"drifting train --config {shlex.quote(str(folder / CONFIG))} --save-dir runs/again\n"
        f"drifting sample {shlex.quote(str(folder))} --num-samples 100 --out samples.png",
        environment=_environment(folder, missing),
        log=log,
        metrics=metrics,
        settings=_settings(config, missing),
        samples=shown_samples(config, snapshots, source, missing),
        verdicts=read_or_note(lambda: _verdicts(folder), missing) or [],
        comparison=picture_address(picture.read_bytes()) if picture.is_file() else None,
        missing=missing,
    )


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


def _environment(folder: Path, missing: list[str]) -> list[str]:
    """Return a sentence for each start of the training, and one about the report."""
    starts = read_or_note(lambda: read_environments(folder), missing) or []
    made = f"with drifting {__version__}, torch {torch.__version__} and Python {platform.python_version()}"
    unknown = "Runs of earlier versions did not keep the environment of their training."
    return [*(map(_sentence, starts) if starts else [unknown]), f"This report was made {made}."]


def _sentence(start: Mapping[str, Any]) -> str:
    """Return what is known of the environment from a step on."""
    versions = ", ".join(f"{name} {start[name]}" for name in ("drifting", "torch", "Python") if name in start)
    where = [str(start[name]) for name in ("system", "processor") if start.get(name)]
    devices = [f"device {start['device']}"] if "device" in start else []
    counts = [f"{start[many]} {one if start[many] == 1 else many}" for one, many in _COUNTED if many in start]
    began = f" on {start['started']}" if "started" in start else ""
    return f"From step {start.get('step', 0):,}{began}: {', '.join([versions, *where, *devices, *counts])}."


def _verdicts(folder: Path) -> list[dict[str, Any]]:
    """Return the sentences of `drifting doctor`, each with whether it is good news."""
    found = examine(folder)
    first, *rest = found.lines()
    faults = {f"- {finding}" for finding in found.faults}
    # What cannot be judged is neither good nor bad.
    open_questions = {line for line in rest if line.removeprefix("- ").startswith("not judged")}
    judged = [(line, None if line in open_questions else line not in faults) for line in rest]
    return [{"text": first, "good": not faults}, *({"text": line.removeprefix("- "), "good": good} for line, good in judged)]


def _settings(config: RunConfig, missing: list[str]) -> list[tuple[str, str, str]]:
    """Return (name, value, value in the preset if it differs) of every setting."""
    own = {each.name: each.value for each in settings(config)}
    # A preset of own data needs them; a saved preset may not exist any more.
    arguments = {"dataset": own.get("data.dataset"), "data": own.get("data.path")}
    given = {name: value for name, value in arguments.items() if value is not None}
    preset = read_or_note(lambda: presets.preset(config.preset, **given), missing) if config.preset in presets.PRESETS else None
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
