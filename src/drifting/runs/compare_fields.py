"""Drift fields compared on equal terms: the same preset, data, seeds and training time for each of them.

Every training is a run in a folder of its own, OUT/PROBLEM/FIELD/seed-N. The time of a training is processor time, which other work
on the machine disturbs least: the time of a step is measured once for each problem and field, and the run takes as many steps as
fit. A preset that trains an encoder trains it once, in OUT/PROBLEM/encoder; its time is not counted. A comparison that was stopped
is continued by the same command: finished runs are kept.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drifting import presets
from drifting._checks import check_counts, check_positive, nearest_name
from drifting._files import atomic_path, check_writable, hold
from drifting._json import load_json, save_json
from drifting.config import RunConfig
from drifting.data.points import TOYS
from drifting.distributed import join
from drifting.errors import InputError
from drifting.evaluation.extractors import extractor_path
from drifting.evaluation.tables import markdown, read_figures
from drifting.plotting import Measured, draw_fields
from drifting.presets.encoders import with_encoder
from drifting.presets.fields import field_choice
from drifting.runs.evaluate import load_extractor
from drifting.runs.folder import CONFIG, ENCODER_WEIGHTS, METRICS, WEIGHTS, newest_checkpoint, read_config
from drifting.runs.run import load_run
from drifting.runs.train import build_encoder, build_positives, train, with_network
from drifting.training.encoder import learner_of
from drifting.training.loop import train as training_steps
from drifting.training.state import DivergenceError, TrainingState

TABLE, PICTURE, FIGURES = "fields.md", "fields.png", "fields.json"
_PLAN, _SPEED, _FAILURE, _ENCODER = "plan.json", "speed.json", "failure.json", "encoder"
# Steps before and while the time of a step is measured, and processor seconds after which the measurement may end.
_WARM_UP, _LEAST_TIMED, _TIMED_SECONDS = 3, 5, 2.0
_DISTANCES = ("frechet_distance", "energy_distance")


class Problem(NamedTuple):
    """A configuration on which fields are compared, and the factor of the temperatures of each of them."""

    config: RunConfig
    factor: float

    def with_field(self, name: str, encoded: RunConfig) -> RunConfig:
        """Return the configuration, with its encoder trained, for a field of `presets.fields.FIELDS` and its temperatures."""
        chosen = field_choice(name).apply(encoded)
        return presets.adjust(chosen, temperatures=tuple(self.factor * value for value in chosen.loss.temperatures))


@dataclass(frozen=True, kw_only=True)
class FieldComparison:
    """What to compare, and for how long.

    Attributes:
        presets: names of presets and of toys.
        fields: names of `presets.fields.FIELDS`.
        seeds: number of seeds, from 0.
        minutes: processor minutes of each training.
        group_sizes: numbers of generated samples, and of positives, of each label in a step; empty for those of the presets.
        temperature_factors: factors of the temperatures of the presets; empty for 1.
        num_samples: number of samples of an evaluation; for digits it is fixed.
        data: data of the only preset, as in `drifting train`; None for its own.
        extractor: what compares images, as in `drifting evaluate`; None for the classifier in runs/NAME-classifier.
    """

    presets: Sequence[str]
    fields: Sequence[str]
    seeds: int = 3
    minutes: float = 1.0
    group_sizes: Sequence[int] = ()
    temperature_factors: Sequence[float] = ()
    num_samples: int = 5000
    data: str | None = None
    extractor: str | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value that is out of range."""
        check_counts({"seeds": self.seeds})
        for name, least in (("num_samples", self.num_samples), ("group_sizes", min(self.group_sizes, default=2))):
            if least < 2:
                raise InputError(f"{name} is {least}: pass at least 2")
        check_positive("minutes", self.minutes, 5.0)
        for factor in self.temperature_factors:
            check_positive("temperature_factors", factor, 0.5)
        for name, values in (("presets", self.presets), ("fields", self.fields)):
            if not values:
                raise InputError(f"{name} is empty: name at least one")
        factors = [f"{factor:g}" for factor in self.temperature_factors]
        sizes = [str(size) for size in self.group_sizes]
        every = {"presets": self.presets, "fields": self.fields, "group_sizes": sizes, "temperature_factors": factors}
        for name, values in every.items():
            if len(set(values)) < len(values):
                raise InputError(f"{name} is {' '.join(values)}: name each once")
        for name in self.fields:
            field_choice(name)
        if self.data is not None and len(self.presets) > 1:
            raise InputError(f"data is '{self.data}', but presets is {' '.join(self.presets)}: name the one that takes it")

    def problems(self) -> dict[str, Problem]:
        """Return the problems on which the fields are compared, by name."""
        found: dict[str, Problem] = {}
        given, known = {} if self.data is None else {"data": self.data}, (*TOYS, *presets.PRESETS)
        for preset, size, factor in itertools.product(
            self.presets, self.group_sizes or (None,), self.temperature_factors or (None,)
        ):
            if preset not in known:
                nearest = nearest_name(preset, known)
                raise InputError(f"presets has '{preset}': did you mean '{nearest}'? `drifting presets` lists them")
            config = presets.preset("toy", dataset=preset, **given) if preset in TOYS else presets.preset(preset, **given)
            if config.noun != "generator":
                raise InputError(f"presets has '{preset}', which trains no generator: name a preset that does")
            name = preset
            if size is not None:
                config = presets.adjust(config, **{"schedule.generated": size, "schedule.positives": size})
                name += f"-of-{size}"
            if factor is not None:
                name += f"-at-{factor:g}"
            found[name] = Problem(config, factor or 1.0)
        return found


@dataclass(frozen=True)
class Row:
    """One field on one problem.

    Attributes:
        problem, field: their names.
        figures: of each seed, a mapping of figures by name; empty for a training that failed.
        failures: number of trainings that failed.
        seconds_per_step: processor time of a step.
        steps: number of steps of each training.
    """

    problem: str
    field: str
    figures: Sequence[dict[str, Any]]
    failures: int
    seconds_per_step: float
    steps: int

    @property
    def distance(self) -> str:
        """Name of the figure that measures the distance from the data."""
        return next((name for name in _DISTANCES if any(name in one for one in self.figures)), _DISTANCES[0])

    def values(self, name: str) -> list[float]:
        """Return a figure of all seeds that have it; the distance in floors for "floors"."""
        if name == "floors":
            pairs = [(one.get(self.distance), one.get(f"{self.distance}_floor")) for one in self.figures]
            return [distance / floor for distance, floor in pairs if distance is not None and floor]
        return [float(one[name]) for one in self.figures if name in one]


def compare_fields(request: FieldComparison, out: str | Path, *, on_run: Callable[[str], None] = print) -> list[Row]:
    """Train and evaluate every field on every problem, and write fields.md, fields.png and fields.json into a folder.

    Args:
        request: what to compare.
        out: folder of the comparison. One that was stopped is continued; it must have the same time, samples, data and extractor.
        on_run: called with a line before each training.

    Returns:
        A row for each field on each problem.

    Raises:
        InputError: for anything that cannot work, before the first training.
    """
    folder, problems = Path(out), request.problems()
    check_writable(folder, "out")
    of_images = [problem.config for problem in problems.values() if problem.config.data.makes_images]
    if request.extractor is not None and not of_images:
        raise InputError(f"extractor is '{request.extractor}', but no preset makes images: leave it out")
    for config in of_images:
        extractor_path(request.extractor, config.data)
    for config in of_images:
        load_extractor(request.extractor, with_network(config, folder, join(), overwrite=False)[0])
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder, "out"):
        _check_plan(folder, request)
        total, done = len(problems) * len(request.fields) * request.seeds, itertools.count(1)
        rows = []
        for title, problem in problems.items():
            encoded = _with_trained_encoder(problem.config, folder / title / _ENCODER)
            for name in request.fields:
                place, chosen = folder / title / name, problem.with_field(name, encoded)
                seconds = _seconds_per_step(chosen, place)
                timed = _of_length(chosen, 60 * request.minutes / seconds)
                found: list[dict[str, Any]] = []
                for seed in range(request.seeds):
                    on_run(f"{next(done)} of {total}: {title}, {name}, seed {seed}, {timed.schedule.steps} steps")
                    found.append(_figures_of(dataclasses.replace(timed, seed=seed), place / f"seed-{seed}", request))
                kept = [figures for figures in found if figures]
                rows.append(Row(title, name, kept, len(found) - len(kept), seconds, timed.schedule.steps))
                _write(folder, rows, request)
    return rows


def _check_plan(folder: Path, request: FieldComparison) -> None:
    """Note the terms of a comparison, or raise InputError if the one in the folder has others."""
    plan = {name: getattr(request, name) for name in ("minutes", "num_samples", "data", "extractor")}
    path = folder / _PLAN
    if not path.exists():
        save_json(path, plan)
    saved = load_json(path, fix="name another folder")
    for name, value in plan.items():
        if not isinstance(saved, dict) or saved.get(name) != value:
            before = saved.get(name) if isinstance(saved, dict) else saved
            raise InputError(f"{name} is {value}, but the comparison in '{folder}' has {before}: pass that, or another --out")


def _with_trained_encoder(config: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration with an encoder that is trained; it is trained by a run of one step, unless it is there."""
    if not config.trains_encoder:
        return config
    if not (folder / ENCODER_WEIGHTS).exists() or not (folder / WEIGHTS).exists():
        train(_of_length(config, 1), folder, resume=newest_checkpoint(folder) is not None)
    trained: Any = with_encoder(config, str(folder))
    return trained


def _of_length(config: RunConfig, steps: float) -> RunConfig:
    """Return a run of another number of steps, in which the learning rate falls at the same share of them."""
    whole, before = max(1, round(steps)), config.schedule
    after = None if before.decay_after is None else max(1, round(before.decay_after * whole / before.steps))
    warm_up = min(before.warmup_steps, whole // 10)
    schedule = dataclasses.replace(before, steps=whole, decay_after=after, warmup_steps=warm_up)
    return dataclasses.replace(config, schedule=schedule, snapshots=1)


def _seconds_per_step(config: RunConfig, folder: Path) -> float:
    """Return the processor seconds of a step, measured once and kept in the folder."""
    path = folder / _SPEED
    if not path.exists():
        found, network = with_network(config, folder, join(), overwrite=False)
        encoder = build_encoder(found, network)
        positives = build_positives(found, encoder)
        endless = dataclasses.replace(found.schedule, steps=10**9)
        state = TrainingState(found.build_generator(), endless, found.seed, encoder=learner_of(network, found.encoder))
        started, begun = time.process_time(), 0.0
        for step in training_steps(state, positives, encoder, found.loss.build(), endless):
            passed = time.process_time() - started
            if step.number <= _WARM_UP:
                begun = passed
            elif step.number >= _WARM_UP + _LEAST_TIMED and passed - begun > _TIMED_SECONDS:
                save_json(path, {"seconds_per_step": (passed - begun) / (step.number - _WARM_UP)})
                break
    seconds = read_figures(path, "delete it").get("seconds_per_step")
    if not isinstance(seconds, float) or seconds <= 0:
        raise InputError(f"file is '{path}', which holds no time of a step: delete it")
    return seconds


def _figures_of(config: RunConfig, folder: Path, request: FieldComparison) -> dict[str, Any]:
    """Return the figures of a run, trained and evaluated unless it was before; none if its training fails."""
    if (folder / _FAILURE).exists():
        return {}
    if (folder / METRICS).exists():
        return dict(read_figures(folder / METRICS, "delete the folder"))
    if not (folder / WEIGHTS).exists():
        # A run that has begun keeps its number of steps, which is that of an earlier measurement only if that was deleted.
        resume = newest_checkpoint(folder) is not None
        try:
            train(read_config(folder / CONFIG) if resume else config, folder, resume=resume, overwrite=not resume)
        except DivergenceError as error:
            save_json(folder / _FAILURE, {"failure": str(error)})
            return {}
    extractor = request.extractor if config.data.makes_images else None
    return dict(load_run(folder).evaluate(extractor=extractor, count=request.num_samples))


# Figure of a row -> heading of its column.
_COLUMNS = {"floors": "floors (less is better)", "recall": "recall (more is better)", "coverage": "coverage (more is better)"}


def table(rows: Sequence[Row], *, spread: bool = True) -> list[tuple[str, ...]]:
    """Return the lines of the table, heading first: medians over seeds and, with `spread`, the smallest and the largest value."""
    lines: list[tuple[str, ...]] = [("problem", "field", *_COLUMNS.values(), "ms per step", "steps", "failed")]
    for row in rows:
        cells = [_cell(row.values(name), spread) for name in _COLUMNS]
        lines.append((row.problem, row.field, *cells, f"{1e3 * row.seconds_per_step:.3g}", str(row.steps), str(row.failures)))
    return lines


def _cell(values: Sequence[float], spread: bool) -> str:
    if not values:
        return "-"
    middle = f"{statistics.median(values):.3g}"
    return f"{middle} ({min(values):.3g} to {max(values):.3g})" if spread and len(values) > 1 else middle


def _write(folder: Path, rows: Sequence[Row], request: FieldComparison) -> None:
    """Write the table, the figures and the picture of all rows so far."""
    counts = f"{request.seeds} seed{'s' * (request.seeds > 1)}, {request.minutes:g} processor minutes each"
    meaning = "Floors: the distance of samples from the data, divided by that of real data."
    text = f"Medians over {counts}, with the smallest and the largest value. {meaning}\n\n" + markdown(table(rows))
    with atomic_path(folder / TABLE) as scratch:
        scratch.write_text(text)
    save_json(folder / FIGURES, {"rows": [dataclasses.asdict(row) for row in rows]})
    measured = [Measured(row.problem, row.field, row.values("floors"), row.values("recall")) for row in rows]
    draw_fields(folder / PICTURE, measured, f"Drift fields on equal terms: {counts}")
