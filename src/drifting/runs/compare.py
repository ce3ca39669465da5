"""Several trained runs of images side by side: a table of their settings and figures, and a picture of their samples.

Figures of two runs can be compared if they come from the same extractor and the same real images, which have equal floors.

Shapes: n samples, c channels, h height, w width.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from drifting._files import atomic_path, check_writable
from drifting.config import RunConfig
from drifting.data.pixels import to_signed
from drifting.errors import InputError
from drifting.evaluation import Metrics, as_text
from drifting.evaluation.tables import CURVE, CURVE_STEPS, FLOOR, direction, in_order, markdown, read_figures
from drifting.plotting import RunColumn, draw_runs
from drifting.runs.folder import ENCODER_METRICS, LOG, METRICS
from drifting.runs.run import Run, load_run
from drifting.training.recorder import MetricsLog

TABLE, PICTURE = "comparison.md", "compare.png"
_FACTS = ("run", "preset", "encoder", "steps", "minutes")
_FLOORS, _BETTER, _DASH = "real against real", "better", "-"

# Largest grid of samples in the picture.
_ROWS, _COLUMNS = 10, 10

# The floor of the curve that is shown in the picture.
_CURVE_FLOOR = f"{CURVE}{FLOOR}"

# Floors of the same images differ only by rounding.
_TOLERANCE = {"rel_tol": 1e-3, "abs_tol": 1e-6}


@dataclass(frozen=True)
class Entry:
    """A run in the comparison.

    Attributes:
        name: unique name.
        folder: folder of the run.
        config: configuration of the run.
        metrics: figures of its evaluation; empty if it was not evaluated.
        minutes: training time without that of its encoder; None if unknown.
        probe: linear probe accuracy of its encoder; None if unknown.
    """

    name: str
    folder: Path
    config: RunConfig
    metrics: Metrics
    minutes: float | None = None
    probe: int | float | None = None


@dataclass(frozen=True)
class Comparison:
    """A table of runs, and warnings about it.

    Attributes:
        columns: names of the columns.
        rows: cells of each run, of real images if the runs agree on them, and which direction of a figure is better.
        doubts: a sentence for each run that was not evaluated, and for figures that cannot be compared.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    doubts: tuple[str, ...]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        return markdown([self.columns, *self.rows])


def write_comparison(
    folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False
) -> tuple[Comparison, tuple[Path, Path]]:
    """Compare runs of images, and write comparison.md and compare.png into a folder.

    Args:
        folders: folders of the runs, in the order of rows and columns.
        out: folder of the files; created if it does not exist.
        overwrite: replace existing files.

    Returns:
        The comparison, and the paths of the two files.

    Raises:
        InputError: if a folder is not a run of images, or the runs cannot be compared, before anything is written.
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


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Return trained runs of images of the same shape, or raise InputError naming the folder that does not fit."""
    if not folders:
        raise InputError("runs is empty: name the folder of at least one trained run of images")
    seen: set[Path] = set()
    for folder in folders:
        if (place := Path(folder).resolve()) in seen:
            raise InputError(f"runs has '{folder}' twice: name each run once")
        seen.add(place)
    loaded = [load_run(folder) for folder in folders]
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


def read_entry(run: Run, name: str) -> Entry:
    """Return the entry of a run from the files in its folder, or raise InputError if one of them is damaged."""
    log = MetricsLog(run.folder / LOG).read()
    speed = log[-1].get("mean_steps_per_second") if log else None
    minutes = run.config.schedule.steps / speed / 60 if speed else None
    metrics = read_figures(run.folder / METRICS, f"evaluate the run again with {_evaluation(run.folder)}")
    probe: Any = read_figures(run.folder / ENCODER_METRICS, "delete it").get("linear_probe_accuracy")
    return Entry(name, run.folder, run.config, metrics, minutes, probe)


def comparison(entries: Sequence[Entry]) -> Comparison:
    """Return the table of runs with every figure of any of them and its floor, in the order of the evaluations."""
    names = [name for name in dict.fromkeys(name for entry in entries for name in entry.metrics)]
    names = [name for name in in_order(names) if name not in (CURVE_STEPS, CURVE)]
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
    if names:
        better = (direction(name, has_floor=name in known) or _DASH for name in names)
        rows.append((_BETTER, *[_DASH] * (len(_FACTS) - 1), *better))
    doubts = [f"'{entry.name}' has not been evaluated: {_evaluation(entry.folder)}" for entry in entries if not entry.metrics]
    return Comparison((*_FACTS, *names), tuple(rows), (*doubts, *_incomparable(entries, apart)))


def _names(loaded: Sequence[Run]) -> list[str]:
    """Return the names of the folders, or their paths where two have one name."""
    names = [run.folder.resolve().name for run in loaded]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, loaded, strict=True)]


def _list(metrics: Metrics, name: str) -> Sequence[int | float]:
    value = metrics.get(name)
    return value if isinstance(value, list) else []


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


def _incomparable(entries: Sequence[Entry], apart: str | None) -> list[str]:
    """Return the main reason why figures cannot be compared, as a sentence; nothing if they can."""
    if (who := _names_by(entries, "extractor")) is not None:
        return [
            f"different extractors evaluated the runs ({who}), so figures cannot be compared: evaluate them with one --extractor"
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
    """Return the runs grouped by the value of a figure that is text; None if they all have the same value."""
    names: dict[Any, list[str]] = {}
    for entry in entries:
        if figure in entry.metrics:
            names.setdefault(entry.metrics[figure], []).append(f"'{entry.name}'")
    return ", ".join(f"{value} {' and '.join(some)}" for value, some in names.items()) if len(names) > 1 else None


def _difference(entries: Sequence[Entry], names: Sequence[str]) -> str | None:
    """Return a sentence about the first of these figures in which two runs differ; None if there is none."""
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


def _column(entry: Entry, run: Run) -> RunColumn:
    distance = entry.metrics.get("frechet_distance")
    title = "" if distance is None else f"Frechet distance {as_text(distance)}"
    known = entry.metrics.get(_CURVE_FLOOR)
    floor = known if isinstance(known, int | float) else None
    names = None if run.generator.num_classes is None else run.class_names
    return RunColumn(entry.name, title, _grid(run), _list(entry.metrics, CURVE_STEPS), _list(entry.metrics, CURVE), floor, names)


def _grid(run: Run) -> Float[Tensor, "rows columns c h w"]:
    """Return samples of the first classes, one class per row, with the same seed for every run."""
    classes = run.generator.num_classes
    rows = min(_ROWS, classes or _ROWS)
    samples = run.sample(rows * _COLUMNS, seed=0, labels=None if classes is None else range(rows))
    return to_signed(samples.movedim(-1, 1)).unflatten(0, (_COLUMNS, rows)).transpose(0, 1)
