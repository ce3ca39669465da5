"""What the figures of a training mean: rules from numbers to sentences, each with a measured cause and a fix.

The rules read lines of figures, as in metrics.jsonl: KIND/FEATURE/TEMPERATURE or KIND/FEATURE -> number, with the `step`. A line
without a figure is left out of the rules that need it. Figures of the batch are noisy, so the rules use medians over the last third
of the lines, and a finding during training needs `FEWEST_LINES` of them.

The thresholds below were set with short runs that were made to have one fault each; docs/doctor.md shows how often they are right.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from drifting._checks import check_counts
from drifting.history import DRIFT_NORM, FEWEST_LINES, History, Line, batch_figures, drift_norms, number
from drifting.loss import DriftLoss, FeatureLoss

# Share of the rows of the kernel that must be one-hot at the largest temperature, or flat at the smallest one.
MOST_ROWS = 0.8
# A kernel that is flat by its temperature is flat for the negatives too: their effective number is at least this share of them.
EVEN = 0.75
# Samples that are so many times as far from the data as these are from each other have escaped; those of a start are below 10.
ESCAPED = 20.0
# A part whose gradient is below this, or below this share of its highest, is dead, where the drift has so much signal.
DEAD, DEAD_SHARE, SIGNAL = 1e-9, 1e-3, 0.5
# Relative change of a part's weights in one step, from which on the next step does not correct the last one. 0.1 to 4 % is usual.
LARGE_CHANGE = 0.1
# Samples with so small a share of the distances between positives are copies of each other; those of a start have 4 % and more.
COPIES = 0.02
# A diversity below this, after it was twice as large, falls because the samples collapse.
LOW_DIVERSITY = 0.5
# Samples that are still so alike after so many steps, and do not spread by this factor from one third to the next, stay alike.
RISING, MANY_STEPS = 1.1, 1000
# Samples of a good training are at most so many times as far from each other as real ones; a field may spread them too far.
FAR_APART = 1.1
# With fewer positives or generated samples in a group, a sample has hardly a neighbor. The paper's FID is 20.4 with 1 positive,
# 10.4 with 16 and 8.5 with 64.
FEWEST_SAMPLES = 16
# Features that move less than this share of the distance between images do not see a change.
BLIND = 0.1
_SEEING = "choose features that see them, such as --encoder.features with image or maps, or another --encoder-weights"
# Samples that are so many times as far from the data as these from each other show that these are equal.
EQUAL = 1e20
# A mean square of the drift up to this is that of samples without neighbors.
NO_DRIFT = 1e-20
# The energy distance at the end, as a share of its highest, from which on a training of so many steps made no progress.
NO_PROGRESS, FEWEST_STEPS = 0.9, 100
# A drift norm up to so many times the noise floor, of which the halves of a batch agree by less than this, is noise.
AT_THE_FLOOR, NO_SIGNAL = 2.0, 0.25
# Factor by which the drift norm, relative to its floor, falls from one third of a training to the next while it still improves.
IMPROVING = 0.9


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
        floor_flag: flag of the affinity floor of the field; None if it has none, or it is 0.
        spread_flag: flag of the setting by which the field spreads samples; None if it has none.
    """

    steps: int | None = None
    rate_falls: bool = False
    learning_rate: float | None = None
    floor_flag: str | None = "--loss.field.affinity-floor"
    spread_flag: str | None = None


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


def diagnose(reports: Sequence[FeatureLoss | DriftLoss], settings: Settings | None = None, *, every: int = 1) -> Diagnosis:
    """Return the verdict on a training of your own, from its reports.

    Args:
        reports: results of `DriftingLoss` or `drifting_loss` with statistics=True, in the order of the steps; at least 3.
        settings: what is known about the run.
        every: number of steps from one report to the next; some causes are sought only after many steps.

    Example:
        lines = drifting.diagnose(reports, every=50).lines()    # of loss(generated, positives, statistics=True) every 50 steps
    """
    check_counts({"every": every})
    lines = []
    for index, report in enumerate(reports, 1):
        features = report.features if isinstance(report, FeatureLoss) else {"sample": report}
        norms = {name: float(norm) for name, norm in drift_norms(features).items()}
        lines.append({"step": index * every, "loss": float(report.loss.detach().mean()), **norms, **batch_figures(features)})
    return judge(lines, settings or Settings())


def judge(lines: Sequence[Line], settings: Settings) -> Diagnosis:
    """Return the verdict on lines of figures."""
    history = History(lines)
    if (broken := _broken(history, settings)) is not None:
        return Diagnosis((broken,))
    unknown = _unknown(history)
    findings = [finding for rule in (_blind, _few_samples) if (finding := rule(history)) is not None]
    # An escape explains everything after it, and so on: only the first of these causes is named.
    causes: Sequence[_Rule] = (_no_neighbors, _high_rate, _small, _large, _collapse, _no_drift, _no_progress)
    cause = next((finding for rule in causes if (finding := rule(history, settings)) is not None), None)
    findings += [cause] if cause is not None else []
    if not findings and (note := _spread(history, settings) or _note(history, settings)) is not None:
        findings = [note]
    return Diagnosis(tuple(findings), tuple(unknown))


_Rule = Callable[[History, Settings], Finding | None]


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}" + ("s" if len(things) > 1 else "")


def _unknown(history: History) -> list[str]:
    """Return what cannot be judged, and why."""
    if not history.lines:
        return ["anything: the log is empty"]
    if history.names("diversity"):
        reason = "a group has too few positives to be halved, or each sample has its own scale (--loss.scale-per-row)"
        return [] if history.names("noise_floor") else [f"noise against signal: {reason}"]
    if history.names("positive_count"):
        return ["temperatures, noise and diversity: a group has fewer than 4 generated samples or positives"]
    few = "log fewer steps apart (--log-every and --schedule.statistics-every), or train longer"
    if any(history.series(f"diversity/{name}") for name in _features(history)):
        return [f"whether it works: there are fewer than {FEWEST_LINES} lines with figures of the batch; {few}"]
    return [
        "temperatures, noise and diversity: the log has no figures of the batch, as logs of earlier versions and of runs "
        f"of fewer than {FEWEST_LINES} such lines have none; {few}"
    ]


def _features(history: History) -> set[str]:
    norms = (name.removeprefix(f"{DRIFT_NORM}/") for line in history.lines for name in line if name.startswith(f"{DRIFT_NORM}/"))
    return {name.rpartition("/")[0] for name in norms}


def _broken(history: History, settings: Settings) -> Finding | None:
    if (found := history.broken("loss", DRIFT_NORM)) is None:
        return None
    return Finding("not finite", f"'{found[0]}' is NaN or infinite since step {found[1]}", _lower_rate(settings))


def _lower_rate(settings: Settings) -> str:
    rate = settings.learning_rate
    return "lower --learning-rate" + ("" if rate is None else f", from {rate:g} to {rate / 10:g} or less")


def _few_samples(history: History) -> Finding | None:
    sets = {"positives": "positive_count", "generated samples": "generated_count"}
    # One positive is that of a condition: its samples have no others.
    paired = {name for name in history.names("positive_count") if history.recent("positive_count", name) == 1}
    counts = {what: history.recent(kind, name) for what, kind in sets.items() for name in history.names(kind) if name not in paired}
    what = next((what for what, count in counts.items() if count < FEWEST_SAMPLES), None)
    if what is None:
        return None
    cosines = [history.recent("half_cosine", name) for name in history.names("half_cosine")]
    noise = f", and halves of a batch agree by {statistics.median(cosines):.2f} (1 is signal, 0 is noise)" if cosines else ""
    return Finding(
        f"too few {what}",
        f"a group has {counts[what]:.0f}{noise}",
        f"raise --schedule.{what.split()[0]} to {FEWEST_SAMPLES} or more, 64 if they fit, or --batch-size",
    )


def _blind(history: History) -> Finding | None:
    for change in ("shuffled", "recolored"):
        found = [max(values) for name, values in history.values.items() if name.startswith(f"response/{change}/")]
        if found and max(found) < BLIND:
            what = "images with shuffled pixels" if change == "shuffled" else "recolored images"
            return Finding(
                "encoder is blind",
                f"{what} move its features by {max(found):.2g} of the distance between images",
                _SEEING,
            )
    return None


def _no_neighbors(history: History, settings: Settings) -> Finding | None:
    """Return why not even real samples have neighbors among real samples, wherever the generated ones are."""
    del settings
    features = history.by_feature("noise_floor")
    floors = [history.recent("noise_floor", f"{name}/{temperatures[-1]}") for name, temperatures in features.items()]
    if not floors or statistics.median(floors) > NO_DRIFT:
        return None
    remote = [history.recent("remoteness", name) for name in history.names("remoteness")]
    if min(remote, default=EQUAL) >= EQUAL:
        return Finding("encoder is blind", "the features of real samples differ by 0", _SEEING)
    highest = max((temperatures[-1] for temperatures in features.values()), key=number)
    return Finding(
        "temperatures too small",
        f"at the largest one, {highest}, real samples drift among real samples by 0: none has a neighbor",
        "raise --temperatures, such as 0.02 0.05 0.2",
    )


def _high_rate(history: History, settings: Settings) -> Finding | None:
    remote = [history.recent("remoteness", name) for name in history.names("remoteness")]
    changes = [history.recent("weight_change", name) for name in history.names("weight_change")]
    escaped, jumps = bool(remote) and max(remote) >= ESCAPED, bool(changes) and max(changes) >= LARGE_CHANGE
    dead, flung = _dead_parts(history), _flung(history)
    if not escaped and not jumps and not dead and not flung:
        return None
    causes = [f"samples are {max(remote):.3g} times as far from the data as these from each other"] if escaped else []
    causes += [f"samples were {flung:.3g} times as far from each other as real ones, before they collapsed"] if flung else []
    causes += [f"a step changes a part of the weights by {max(changes):.0%}"] if jumps else []
    causes += [f"the drift has signal, but '{dead[0]}' of the network has a gradient of {dead[1]:.1g}"] if dead else []
    return Finding("learning rate too high", " and ".join(causes), _lower_rate(settings))


def _flung(history: History) -> float:
    """Return the highest diversity of samples that escaped from the data and collapsed after that; 0 if they did not."""
    peaks = {name: max(history.series(f"diversity/{name}")) for name in history.names("diversity")}
    fallen = [peak for name, peak in peaks.items() if peak >= ESCAPED and history.recent("diversity", name) < LOW_DIVERSITY]
    return max(fallen, default=0.0)


def _dead_parts(history: History) -> tuple[str, float] | None:
    """Return the part of the network whose gradient vanished although the drift has signal, and its gradient norm."""
    cosines = [history.recent("half_cosine", name) for name in history.names("half_cosine")]
    gradients = {name: history.recent("gradient_norm", name) for name in history.names("gradient_norm")}
    if not gradients or not cosines or max(cosines) < SIGNAL:
        return None
    name = min(gradients, key=lambda part: gradients[part])
    highest = max(history.series(f"gradient_norm/{name}"))
    return (name, gradients[name]) if gradients[name] <= max(DEAD, DEAD_SHARE * highest) else None


def _small(history: History, settings: Settings) -> Finding | None:
    del settings
    features = history.by_feature("one_hot_share")
    rows = [history.recent("one_hot_share", f"{name}/{temperatures[-1]}") for name, temperatures in features.items()]
    if not rows or statistics.median(rows) < MOST_ROWS:
        return None
    highest = max((temperatures[-1] for temperatures in features.values()), key=number)
    return Finding(
        "temperatures too small",
        f"at the largest one, {highest}, {statistics.median(rows):.0%} of the samples follow a single positive or none",
        "raise --temperatures, such as 0.02 0.05 0.2, or raise --schedule.positives",
    )


def _large(history: History, settings: Settings) -> Finding | None:
    features = history.by_feature("flat_share")
    rows = [history.recent("flat_share", f"{name}/{temperatures[0]}") for name, temperatures in features.items()]
    if not rows or statistics.median(rows) < MOST_ROWS:
        return None
    lowest = min((temperatures[0] for temperatures in features.values()), key=number)
    uneven = [_share_of_negatives(history, name, temperatures[0]) for name, temperatures in features.items()]
    if statistics.median(uneven) < EVEN:
        if settings.floor_flag is None:
            return None
        return Finding(
            "affinity floor too high",
            f"at the smallest one, {lowest}, {statistics.median(rows):.0%} of the samples follow the mean of all positives, but "
            f"{statistics.median(uneven):.0%} of the negatives repel them: a floor of the affinity hides the nearest positives",
            f"lower {settings.floor_flag}, such as 0",
        )
    return Finding(
        "temperatures too large",
        f"at the smallest one, {lowest}, {statistics.median(rows):.0%} of the samples follow the mean of all positives",
        "lower --temperatures, such as 0.02 0.05 0.2",
    )


def _share_of_negatives(history: History, feature: str, temperature: str) -> float:
    """Return the effective number of negatives as a share of all other generated samples; 1 if it is not known."""
    name = f"{feature}/{temperature}"
    if not history.series(f"negative_neighbors/{name}") or not history.series(f"generated_count/{feature}"):
        return 1.0
    count = history.recent("generated_count", feature)
    return history.recent("negative_neighbors", name) / max(1.0, count - 1)


def _collapse(history: History, settings: Settings) -> Finding | None:
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
        f"lower --learning-rate, {'' if settings.floor_flag is None else f'set {settings.floor_flag} 0, '}or widen --temperatures",
    )


def _no_drift(history: History, settings: Settings) -> Finding | None:
    del settings
    names = history.names(DRIFT_NORM)
    if not names or history.lines[-1]["step"] < FEWEST_STEPS or max(history.recent(DRIFT_NORM, name) for name in names) > NO_DRIFT:
        return None
    return Finding(
        "no drift",
        "the drift norm is 0 at every temperature, so the weights do not learn from the data",
        "raise --temperatures, such as 0.02 0.05 0.2; if the samples are far from the data, lower --learning-rate",
    )


def _no_progress(history: History, settings: Settings) -> Finding | None:
    del settings
    distances = history.series("energy_distance")
    if len(distances) < FEWEST_LINES or history.lines[-1]["step"] < FEWEST_STEPS or distances[-1] < NO_PROGRESS * max(distances):
        return None
    return Finding(
        "no progress",
        f"the energy distance of the samples to the data went from {distances[0]:.3g} to {distances[-1]:.3g}",
        "try another --learning-rate, ten times lower or higher",
    )


def _spread(history: History, settings: Settings) -> Finding | None:
    """Return a note on samples that are too close to each other, or too far apart."""
    names = history.names("diversity")
    if not names:
        return None
    spread = statistics.median([history.recent("diversity", name) for name in names])
    measured = f"samples are {spread:.3g} times as far from each other as real ones"
    if spread < LOW_DIVERSITY:
        return Finding("samples still alike", measured, "raise --steps or, if they do not spread, --learning-rate", fault=False)
    if spread > FAR_APART:
        flags = settings.spread_flag or "--learning-rate, or --schedule.guidance-scale if it is above 1"
        return Finding("samples too far apart", measured, f"lower {flags}", fault=False)
    return None


def _note(history: History, settings: Settings) -> Finding | None:
    """Return how far a training without a fault is."""
    names = [name for name in history.names("noise_floor") if history.recent("noise_floor", name) > 0]
    if not names:
        return None
    # Of several temperatures, the one whose drift is farthest above its noise is the one that still teaches.
    excess = {name: history.recent(DRIFT_NORM, name) / history.recent("noise_floor", name) for name in names}
    cosines = {name: history.recent("half_cosine", name) for name in names}
    ratio, cosine = max(excess.values()), max(cosines.values())
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
