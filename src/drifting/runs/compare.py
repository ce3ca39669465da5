"""Several trained runs of images side by side: a table of what they are and how they were measured, a picture of their samples.

A figure can be compared where the same extractor saw it and real images had the same one: the extractors and the floors tell.

Shapes: n samples, c channels, h height, w width.
"""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from drifting import runs
from drifting._files import atomic_path, check_writable
from drifting.checkpoint import load_json
from drifting.config import RunConfig
from drifting.data.pixels import to_signed
from drifting.errors import InputError
from drifting.evaluation import Metrics, as_text
from drifting.plotting import RunColumn, draw_runs
from drifting.runs.folder import ENCODER_METRICS, LOG, METRICS
from drifting.training.recorder import MetricsLog

TABLE, PICTURE = "comparison.md", "compare.png"
_FACTS = ("run", "preset", "encoder", "steps", "minutes")
_FLOORS, _DASH = "real against real", "-"

# Largest grid of samples in the picture.
_ROWS, _COLUMNS = 10, 10

# Lists over the steps of a training: for the picture.
_STEPS, _CURVE, _CURVE_FLOOR = "frechet_curve_steps", "frechet_curve", "frechet_curve_floor"

# Floors of the same images differ by rounding alone.
_TOLERANCE = {"rel_tol": 1e-3, "abs_tol": 1e-6}


@dataclass(frozen=True)
class Entry:
    """What is known of a run.

    Attributes:
        name: by which it is told from the others.
        folder: of the run.
        config: of the run.
        metrics: of its evaluation; empty where there was none.
        minutes: of its training, without that of its encoder; None where it is not known.
        probe: linear probe accuracy of its encoder; None where it is not known.
    """

    name: str
    folder: Path
    config: RunConfig
    metrics: Metrics
    minutes: float | None = None
    probe: int | float | None = None


@dataclass(frozen=True)
class Comparison:
    """A table, and what is to be said of it.

    Attributes:
        columns: their names.
        rows: cells of each run; a last one for real images where the runs agree on them.
        doubts: a sentence for each run that was not evaluated, and where figures cannot be compared.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    doubts: tuple[str, ...]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def write_comparison(
    folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False
) -> tuple[Comparison, tuple[Path, Path]]:
    """Compare runs of images, and write comparison.md and compare.png into a folder.

    Args:
        folders: of the runs, in the order of rows and columns.
        out: where to write; made if it is not there.
        overwrite: replace the files if they are there.

    Returns:
        The comparison, and the paths of the two files.

    Raises:
        InputError: for what is no run of images, or cannot be compared or written, before anything is written.
    """
    table, picture = Path(out) / TABLE, Path(out) / PICTURE
    for path in (table, picture):
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"out is '{out}', where '{path.name}' exists: pass --overwrite or name another folder")
    check_writable(Path(out), "out")
    loaded = load_runs(folders)
    entries = [read_entry(run, name) for run, name in zip(loaded, _names(loaded), strict=True)]
    compared = comparison(entries)
    columns = [_column(entry, run) for entry, run in zip(entries, loaded, strict=True)]
    labeled = all(run.generator.num_classes is not None for run in loaded)
    draw_runs(picture, columns, f"Samples made in one pass{', one class a row' if labeled else ''}")
    with atomic_path(table) as scratch:
        scratch.write_text(compared.markdown())
    return compared, (table, picture)


def load_runs(folders: Sequence[str | Path]) -> list[runs.Run]:
    """Return trained runs that make images of one shape, or raise InputError naming the folder that is something else."""
    if not folders:
        raise InputError("runs is empty: name the folder of at least one trained run of images")
    seen: set[Path] = set()
    for folder in folders:
        if (place := Path(folder).resolve()) in seen:
            raise InputError(f"runs has '{folder}' twice: name each run once")
        seen.add(place)
    loaded = [runs.load_run(folder) for folder in folders]
    for run in loaded:
        shape, first = run.generator.sample_shape, loaded[0]
        if len(shape) != 3:
            raise InputError(f"runs has '{run.folder}', which makes points: name runs of images")
        if shape != first.generator.sample_shape:
            raise InputError(
                f"runs has '{run.folder}' of images {tuple(shape)} and '{first.folder}' of images "
                f"{tuple(first.generator.sample_shape)}: name runs whose images have one shape"
            )
    return loaded


def read_entry(run: runs.Run, name: str) -> Entry:
    """Return what the folder of a run says of it; raises InputError if one of its files is damaged."""
    log = MetricsLog(run.folder / LOG).read()
    speed = log[-1].get("mean_steps_per_second") if log else None
    minutes = run.config.schedule.steps / speed / 60 if speed else None
    metrics = read_figures(run.folder / METRICS, f"evaluate the run again with {_evaluation(run.folder)}")
    if len(_list(metrics, _STEPS)) != len(_list(metrics, _CURVE)):
        raise InputError(f"file is '{run.folder / METRICS}', where {_STEPS} and {_CURVE} differ in length: evaluate the run again")
    probe: Any = read_figures(run.folder / ENCODER_METRICS, "delete it").get("linear_probe_accuracy")
    return Entry(name, run.folder, run.config, metrics, minutes, probe)


def comparison(entries: Sequence[Entry]) -> Comparison:
    """Return the table of runs: every figure that one of them has, each with its floor, in the order of their evaluations."""
    names = [name for name in dict.fromkeys(name for entry in entries for name in entry.metrics) if _is_column(name)]
    floors = [{name: entry.metrics.get(f"{name}_floor") for name in names} for entry in entries]
    apart = _difference(entries, [f"{name}_floor" for name in names])
    rows = []
    for entry, own in zip(entries, floors, strict=True):
        shown = [_cell(entry.metrics.get(name), own[name] if apart else None) for name in names]
        rows.append((*_facts(entry), *shown))
    # The first run that has a floor gives it.
    known = {name: floor for own in reversed(floors) for name, floor in own.items() if floor is not None}
    if known and not apart:
        rows.append((_FLOORS, *[_DASH] * (len(_FACTS) - 1), *(_cell(known.get(name)) for name in names)))
    return Comparison((*_FACTS, *names), tuple(rows), (*_not_evaluated(entries), *_incomparable(entries, apart)))


def _names(loaded: Sequence[runs.Run]) -> list[str]:
    """Return the names of the folders, or their paths where two have one name."""
    names = [run.folder.resolve().name for run in loaded]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, loaded, strict=True)]


def read_figures(path: Path, fix: str) -> Metrics:
    """Return the figures of a file by name; none if it is not there."""
    if not path.exists():
        return {}
    figures = load_json(path, fix=fix)
    if not isinstance(figures, dict):
        raise InputError(f"file is '{path}', which holds no figures by name: {fix}")
    # Version 0.1 wrote some under other names.
    figures = {"extractor" if name == "judge" else re.sub("^colour", "color", name): value for name, value in figures.items()}
    for name, value in figures.items():
        if not (isinstance(value, str) if name in ("extractor", "reference") else _is_figure(value)):
            raise InputError(f"file is '{path}', where {name} is no figure: {fix}")
    return figures


def _is_figure(value: Any) -> bool:
    return all(isinstance(part, int | float) for part in (value if isinstance(value, list) else [value]))


def _list(metrics: Metrics, name: str) -> Sequence[int | float]:
    value = metrics.get(name)
    return value if isinstance(value, list) else []


def _is_column(name: str) -> bool:
    return not name.endswith("_floor") and name not in (_STEPS, _CURVE)


def _cell(value: Any, floor: Any = None) -> str:
    if value is None:
        return _DASH
    return as_text(value) if floor is None else f"{as_text(value)} ({as_text(floor)})"


def _facts(entry: Entry) -> tuple[str, ...]:
    minutes = _DASH if entry.minutes is None else f"{entry.minutes:.1f}"
    return (entry.name, entry.config.preset, _encoder(entry), str(entry.config.schedule.steps), minutes)


def _encoder(entry: Entry) -> str:
    encoder = entry.config.encoder
    features = getattr(encoder, "features", ())
    words = [" ".join([type(encoder).__name__.removesuffix("Config"), *filter(None, [getattr(encoder, "arch", None)])])]
    words += [f"{len(features)} feature{'s' * (len(features) > 1)}"] if features else []
    words += [] if entry.probe is None else [f"linear probe {as_text(entry.probe)}"]
    return ", ".join(words)


def _evaluation(folder: Path) -> str:
    return f"drifting evaluate {shlex.quote(str(folder))}"


def _not_evaluated(entries: Sequence[Entry]) -> list[str]:
    return [f"'{entry.name}' has not been evaluated: {_evaluation(entry.folder)}" for entry in entries if not entry.metrics]


def _incomparable(entries: Sequence[Entry], apart: str | None) -> list[str]:
    """Return a sentence on what keeps figures from being compared, the weightiest alone; nothing where they can be."""
    if (who := _names_by(entries, "extractor")) is not None:
        return [
            f"different extractors saw the runs ({who}), so their figures cannot be compared: evaluate them with one --extractor"
        ]
    if (what := _names_by(entries, "reference")) is not None:
        against = f"the runs were measured against different real images ({what}), so their figures cannot be compared"
        return [f"{against}: evaluate them with one --real"]
    if apart:
        fix = "evaluate them on the same data with one --extractor and --num-samples"
        return [f"the runs were measured against different real images ({apart}), so their figures cannot be compared: {fix}"]
    curves = _difference(entries, [_CURVE_FLOOR])
    return [f"the curves are of different real images or numbers of samples ({curves}) and cannot be compared"] if curves else []


def _names_by(entries: Sequence[Entry], figure: str) -> str | None:
    """Return the runs by a word among their figures where that has several values, None where it has not."""
    names: dict[Any, list[str]] = {}
    for entry in entries:
        if figure in entry.metrics:
            names.setdefault(entry.metrics[figure], []).append(f"'{entry.name}'")
    return ", ".join(f"{value} {' and '.join(some)}" for value, some in names.items()) if len(names) > 1 else None


def _difference(entries: Sequence[Entry], names: Sequence[str]) -> str | None:
    """Return the first of these figures on which two runs that have it differ, in words."""
    for name in names:
        having = [entry for entry in entries if name in entry.metrics]
        for entry in having:
            first, value = having[0].metrics[name], entry.metrics[name]
            if not _same(first, value):
                return f"{name} is {as_text(first)} of '{having[0].name}' and {as_text(value)} of '{entry.name}'"
    return None


def _same(first: Any, second: Any) -> bool:
    first, second = (value if isinstance(value, list) else [value] for value in (first, second))
    return len(first) == len(second) and all(math.isclose(*pair, **_TOLERANCE) for pair in zip(first, second, strict=True))


def _column(entry: Entry, run: runs.Run) -> RunColumn:
    distance = entry.metrics.get("frechet_distance")
    title = "" if distance is None else f"Frechet distance {as_text(distance)}"
    known = entry.metrics.get(_CURVE_FLOOR)
    floor = known if isinstance(known, int | float) else None
    names = None if run.generator.num_classes is None else run.class_names
    return RunColumn(entry.name, title, _grid(run), _list(entry.metrics, _STEPS), _list(entry.metrics, _CURVE), floor, names)


def _grid(run: runs.Run) -> Float[Tensor, "rows columns c h w"]:
    """Return samples of the first classes, one class a row, of the same seed for every run."""
    classes = run.generator.num_classes
    rows = min(_ROWS, classes or _ROWS)
    samples = run.sample(rows * _COLUMNS, seed=0, labels=None if classes is None else range(rows))
    return to_signed(samples.movedim(-1, 1)).unflatten(0, (_COLUMNS, rows)).transpose(0, 1)
