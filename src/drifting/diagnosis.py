"""What the figures of a training mean: rules from numbers to sentences, each with a measured cause and a fix.

The rules read lines of figures, as in metrics.jsonl: KIND/FEATURE/TEMPERATURE or KIND/FEATURE -> number, with the `step`. A line
without a figure is left out of the rules that need it. Figures of the batch are noisy, so the rules use medians over the last third
of the lines, and a finding during training needs `FEWEST_LINES` of them.

The thresholds below were set with short runs that were made to have one fault each; docs/doctor.md shows how often they are right.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from drifting.loss import DriftLoss, FeatureLoss

# A drift norm has the name DRIFT_NORM/feature/temperature.
DRIFT_NORM = "drift_norm"

# Lines with figures of the batch that a verdict needs.
FEWEST_LINES = 3
# Share of the rows of the kernel that must be one-hot at the largest temperature, or flat at the smallest one.
MOST_ROWS = 0.8
# A kernel that is flatter at its smallest temperature than at its largest one, by this share of the rows, is flat by its floor.
FLATTER = 0.05
# Samples that are so many times as far from the data as these are from each other have escaped; those of a start are below 10.
ESCAPED = 20.0
# A gradient is dead if its norm falls below this: no weight of the part can move back.
DEAD = 1e-9
# Relative change of a part's weights in one step, from which on the next step does not correct the last one. 0.1 to 4 % is usual.
LARGE_CHANGE = 0.1
# Samples with so small a share of the distances between positives are copies of each other; those of a start have 4 % and more.
COPIES = 0.02
# A diversity below this, after it was twice as large, falls because the samples collapse.
LOW_DIVERSITY = 0.5
# Samples that are still so alike after so many steps, and do not spread by this factor from one third to the next, stay alike.
RISING, MANY_STEPS = 1.1, 1000
# With fewer positives or generated samples in a group, a sample has hardly a neighbor. The paper's FID is 20.4 with 1 positive,
# 10.4 with 16 and 8.5 with 64.
FEWEST_SAMPLES = 16
# Features that move less than this share of the distance between images do not see a change.
BLIND = 0.1
# A mean square of the drift up to this is that of samples without neighbors.
NO_DRIFT = 1e-20
# The energy distance at the end, as a share of its highest, from which on a training of so many steps made no progress.
NO_PROGRESS, FEWEST_STEPS = 0.9, 100
# A drift norm up to so many times the noise floor, of which the halves of a batch agree by less than this, is noise.
AT_THE_FLOOR, NO_SIGNAL = 2.0, 0.25
# Factor by which the drift norm, relative to its floor, falls from one third of a training to the next while it still improves.
IMPROVING = 0.9

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One sentence about a training.

    Attributes:
        name: what it is, such as "samples collapse".
        cause: what was measured.
        fix: what to do about it, with the flag of `drifting train`; "" for nothing.
        fault: whether the training does not work; otherwise it is only a note.
    """

    name: str
    cause: str
    fix: str = ""
    fault: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}" + (f"; {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Settings:
    """What the rules know about a run besides its figures.

    Attributes:
        steps: steps of the whole training; None if they are not known.
        rate_falls: whether the learning rate falls at the end.
        learning_rate: highest learning rate.
    """

    steps: int | None = None
    rate_falls: bool = False
    learning_rate: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a training.

    Attributes:
        findings: faults first, then notes.
        unknown: what cannot be judged, and why.
    """

    findings: tuple[Finding, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that mean that the training does not work."""
        return tuple(finding for finding in self.findings if finding.fault)

    def lines(self) -> list[str]:
        """Return the verdict in plain sentences, one a line."""
        verdict = "The training is healthy." if not self.faults else f"The training has {_count(self.faults, 'fault')}."
        if not self.findings and self.unknown:
            verdict = "Nothing is wrong in what can be judged."
        return [verdict, *(f"- {finding}" for finding in self.findings), *(f"- not judged: {reason}" for reason in self.unknown)]


def drift_norms(features: Mapping[str, DriftLoss]) -> dict[str, Tensor]:
    """Return drift_norm/FEATURE/TEMPERATURE -> raw drift norm, on the device."""
    return {
        f"{DRIFT_NORM}/{name}/{temperature:g}": norm
        for name, report in features.items()
        for temperature, norm in report.drift_norms.items()
    }


def batch_figures(features: Mapping[str, DriftLoss]) -> dict[str, float]:
    """Return the statistics of field and batch by name: KIND/FEATURE/TEMPERATURE or KIND/FEATURE. NaN is left out."""
    return {name: value for name, value in _figures(features) if not math.isnan(value)}


def _figures(features: Mapping[str, DriftLoss]) -> Iterator[tuple[str, float]]:
    for feature, report in features.items():
        measured: list[Any] = [values for values in (report.statistics, report.batch) if values is not None]
        for kind, value in (item for values in measured for item in values._asdict().items()):
            if value.ndim == 0:
                yield f"{kind}/{feature}", float(value)
                continue
            for temperature, number in zip(report.drift_norms, value.tolist(), strict=True):
                yield f"{kind}/{feature}/{temperature:g}", number


def diagnose(reports: Sequence[FeatureLoss | DriftLoss], settings: Settings | None = None) -> Diagnosis:
    """Return the verdict on a training of your own, from its reports.

    Args:
        reports: results of `DriftingLoss` or `drifting_loss` with statistics=True, in the order of the steps; at least 3.
        settings: what is known about the run.

    Example:
        reports.append(loss(generated, positives, statistics=True))    # every 50 steps
        for line in drifting.diagnose(reports).lines(): print(line)
    """
    lines = []
    for number, report in enumerate(reports, 1):
        features = report.features if isinstance(report, FeatureLoss) else {"sample": report}
        norms = {name: float(norm) for name, norm in drift_norms(features).items()}
        lines.append({"step": number, **norms, **batch_figures(features)})
    return judge(lines, settings or Settings())


def judge(lines: Sequence[Line], settings: Settings) -> Diagnosis:
    """Return the verdict on lines of figures."""
    history = _History(lines)
    unknown = _unknown(history)
    findings = [finding for rule in (_blind, _few_samples) if (finding := rule(history)) is not None]
    # An escape explains everything after it, and so on: only the first of these causes is named.
    causes: Sequence[_Rule] = (_high_rate, _small, _large, _collapse, _no_drift, _no_progress)
    cause = next((finding for rule in causes if (finding := rule(history, settings)) is not None), None)
    findings += [cause] if cause is not None else []
    findings += [] if findings else [note for note in [_note(history, settings)] if note is not None]
    return Diagnosis(tuple(findings), tuple(unknown))


@dataclass
class _History:
    """Lines of figures, and medians over thirds of them."""

    lines: Sequence[Line]
    _series: dict[str, list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.lines:
            for name, value in line.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._series.setdefault(name, []).append(float(value))

    def names(self, kind: str) -> list[str]:
        """Return FEATURE or FEATURE/TEMPERATURE of the figures of a kind that occur often enough."""
        names = [name.partition("/")[2] for name in self._series if name.startswith(f"{kind}/")]
        return [name for name in names if len(self._series[f"{kind}/{name}"]) >= FEWEST_LINES]

    def series(self, name: str) -> list[float]:
        """Return all values of a figure."""
        return self._series.get(name, [])

    def recent(self, kind: str, name: str, *, third: int = 0) -> float:
        """Return the median of a figure over the last third of its values, or over the one before it by `third` thirds."""
        values = self.series(f"{kind}/{name}")
        size = max(1, len(values) // 3)
        end = len(values) - third * size
        return statistics.median(values[max(0, end - size) : end] or values[:1])

    def by_feature(self, kind: str) -> dict[str, list[str]]:
        """Return feature -> its temperatures in the figures of a kind, the smallest first."""
        found: dict[str, list[str]] = {}
        for name in self.names(kind):
            feature, _, temperature = name.rpartition("/")
            found.setdefault(feature, []).append(temperature)
        return {feature: sorted(temperatures, key=_number) for feature, temperatures in found.items()}


_Rule = Callable[[_History, Settings], Finding | None]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}" + ("s" if len(things) > 1 else "")


def _unknown(history: _History) -> list[str]:
    """Return what cannot be judged, and why."""
    if not history.lines:
        return ["anything: the log is empty"]
    if history.names("diversity"):
        return [] if history.names("noise_floor") else ["noise against signal: a group has too few positives to be halved"]
    few = "log fewer steps apart (--log-every and --schedule.statistics-every), or train longer"
    if any(history.series(f"diversity/{name}") for name in _features(history)):
        return [f"whether it works: there are fewer than {FEWEST_LINES} lines with figures of the batch; {few}"]
    return [
        "temperatures, noise and diversity: the log has no figures of the batch, as logs of earlier versions and of runs "
        f"of fewer than {FEWEST_LINES} such lines have none; {few}"
    ]


def _features(history: _History) -> set[str]:
    norms = (name.split("/") for line in history.lines for name in line if name.startswith(f"{DRIFT_NORM}/"))
    return {parts[1] for parts in norms}


def _few_samples(history: _History) -> Finding | None:
    sets = {"positives": "positive_count", "generated samples": "generated_count"}
    counts = {what: history.recent(kind, name) for what, kind in sets.items() for name in history.names(kind)}
    what = next((what for what, count in counts.items() if count < FEWEST_SAMPLES), None)
    if what is None:
        return None
    cosines = [history.recent("half_cosine", name) for name in history.names("half_cosine")]
    noise = f", and halves of a batch agree by {statistics.median(cosines):.2f} (1 is signal, 0 is noise)" if cosines else ""
    return Finding(
        f"too few {what}",
        f"a group has {counts[what]:.0f}{noise}",
        f"raise --{what.split()[0]} to {FEWEST_SAMPLES} or more, 64 if they fit, or --batch-size",
    )


def _blind(history: _History) -> Finding | None:
    for change in ("shuffled", "recolored"):
        found = [max(values) for name, values in history._series.items() if name.startswith(f"response/{change}/")]
        if found and max(found) < BLIND:
            what = "images with shuffled pixels" if change == "shuffled" else "recolored images"
            return Finding(
                "encoder is blind",
                f"{what} move its features by {max(found):.2g} of the distance between images",
                "choose features that see them, such as --encoder.features with image or maps, or another --encoder-weights",
            )
    return None


def _high_rate(history: _History, settings: Settings) -> Finding | None:
    remote = [history.recent("remoteness", name) for name in history.names("remoteness")]
    changes = [history.recent("weight_change", name) for name in history.names("weight_change")]
    spread = [history.recent("diversity", name) for name in history.names("diversity")]
    gradients = [history.recent("gradient_norm", name) for name in history.names("gradient_norm")]
    escaped, jumps = bool(remote) and max(remote) >= ESCAPED, bool(changes) and max(changes) >= LARGE_CHANGE
    dead = bool(spread and gradients) and max(spread) < COPIES and min(gradients) < DEAD
    if not escaped and not jumps and not dead:
        return None
    causes = [f"samples are {max(remote):.3g} times as far from the data as these from each other"] if escaped else []
    causes += [f"a step changes a part of the weights by {max(changes):.0%}"] if jumps else []
    causes += ["all samples of a group are alike, and a part of the network has no gradient any more"] if dead else []
    rate = "" if settings.learning_rate is None else f", from {settings.learning_rate:g} to {settings.learning_rate / 10:g} or less"
    return Finding("learning rate too high", " and ".join(causes), f"lower --learning-rate{rate}")


def _small(history: _History, settings: Settings) -> Finding | None:
    del settings
    features = history.by_feature("one_hot_share")
    rows = [history.recent("one_hot_share", f"{name}/{temperatures[-1]}") for name, temperatures in features.items()]
    if not rows or statistics.median(rows) < MOST_ROWS:
        return None
    highest = max((temperatures[-1] for temperatures in features.values()), key=_number)
    return Finding(
        "temperatures too small",
        f"at the largest one, {highest}, {statistics.median(rows):.0%} of the samples follow a single positive or none",
        "raise --temperatures, such as 0.02 0.05 0.2, or raise --positives",
    )


def _large(history: _History, settings: Settings) -> Finding | None:
    del settings
    features = history.by_feature("flat_share")
    rows = [history.recent("flat_share", f"{name}/{temperatures[0]}") for name, temperatures in features.items()]
    if not rows or statistics.median(rows) < MOST_ROWS:
        return None
    lowest = min((temperatures[0] for temperatures in features.values()), key=_number)
    flattest = [history.recent("flat_share", f"{name}/{temperatures[-1]}") for name, temperatures in features.items()]
    if statistics.median(flattest) < statistics.median(rows) - FLATTER:
        return Finding(
            "affinity floor too high",
            f"{statistics.median(rows):.0%} of the samples follow the mean of all positives at the smallest temperature, {lowest}, "
            f"and {statistics.median(flattest):.0%} at the largest: the floor hides the nearest ones",
            "lower --loss.field.affinity-floor, such as 0",
        )
    return Finding(
        "temperatures too large",
        f"at the smallest one, {lowest}, {statistics.median(rows):.0%} of the samples follow the mean of all positives",
        "lower --temperatures, such as 0.02 0.05 0.2",
    )


def _collapse(history: _History, settings: Settings) -> Finding | None:
    del settings
    names = history.names("diversity")
    if not names:
        return None
    lowest = min(names, key=lambda name: history.recent("diversity", name))
    now, peak = history.recent("diversity", lowest), max(history.series(f"diversity/{lowest}"))
    rising = now > RISING * history.recent("diversity", lowest, third=1)
    stays = not rising and now < LOW_DIVERSITY and history.lines[-1]["step"] >= MANY_STEPS
    if now >= COPIES and not stays and (now >= LOW_DIVERSITY or now > peak / 2):
        return None
    return Finding(
        "samples collapse",
        f"samples of a group are {now:.2g} times as far from each other as real ones in '{lowest}', after at most {peak:.2g}",
        "lower --learning-rate, set --loss.field.affinity-floor 0, or widen --temperatures",
    )


def _no_drift(history: _History, settings: Settings) -> Finding | None:
    del settings
    names = history.names(DRIFT_NORM)
    if not names or history.lines[-1]["step"] < FEWEST_STEPS or max(history.recent(DRIFT_NORM, name) for name in names) > NO_DRIFT:
        return None
    return Finding(
        "no drift",
        "the drift norm is 0 at every temperature, so the weights do not learn from the data",
        "raise --temperatures, such as 0.02 0.05 0.2; if the samples are far from the data, lower --learning-rate",
    )


def _no_progress(history: _History, settings: Settings) -> Finding | None:
    del settings
    distances = history.series("energy_distance")
    if len(distances) < FEWEST_LINES or history.lines[-1]["step"] < FEWEST_STEPS or distances[-1] < NO_PROGRESS * max(distances):
        return None
    return Finding(
        "no progress",
        f"the energy distance of the samples to the data went from {distances[0]:.3g} to {distances[-1]:.3g}",
        "try another --learning-rate, ten times lower or higher",
    )


def _note(history: _History, settings: Settings) -> Finding | None:
    """Return how far a training without a fault is."""
    names = [name for name in history.names("noise_floor") if history.recent("noise_floor", name) > 0]
    if not names:
        return None
    # Of several temperatures, the one whose drift is farthest above its noise is the one that still teaches.
    excess = {name: history.recent(DRIFT_NORM, name) / history.recent("noise_floor", name) for name in names}
    cosines = {name: history.recent("half_cosine", name) for name in names}
    ratio, cosine = max(excess.values()), max(cosines.values())
    spread = statistics.median([history.recent("diversity", name) for name in history.names("diversity")])
    if spread < LOW_DIVERSITY:
        measured = f"samples are {spread:.2g} times as far from each other as real ones"
        return Finding("samples still alike", measured, "raise --steps or, if they do not spread, --learning-rate", fault=False)
    measured = f"the drift norm is {ratio:.2g} times its noise floor, and halves of a batch agree by {cosine:.2f}"
    if ratio <= AT_THE_FLOOR and cosine <= NO_SIGNAL:
        if settings.rate_falls:
            return Finding("converged", f"{measured}: what is left is noise", fault=False)
        return Finding("converged", f"{measured}: what is left is noise", "let the rate fall: --schedule.cooldown 0.3", fault=False)
    before = max(history.recent(DRIFT_NORM, name, third=1) / history.recent("noise_floor", name) for name in names)
    if ratio < IMPROVING * before:
        return Finding("still improving", f"{measured}, after {before:.2g}", "raise --steps for better samples", fault=False)
    return Finding(
        "standing",
        f"{measured}, and the norm does not fall",
        "if the samples are not good enough, try a larger generator, another --learning-rate or more --steps",
        fault=False,
    )
