"""The verdict on a run, during its training and from its folder; the rules are in `diagnosis`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifting._progress import TrainingProgress
from drifting.config import RunConfig
from drifting.diagnosis import Diagnosis, Settings, judge
from drifting.encoders.base import FeatureEncoder
from drifting.encoders.response import MOST_IMAGES, responses
from drifting.errors import InputError
from drifting.fields import Lookahead
from drifting.history import DRIFT_NORM, NOISE_FLOOR
from drifting.runs.folder import CONFIG, LOG, WEIGHTS, read_config
from drifting.training.loop import Step
from drifting.training.recorder import MetricsLog, Recorder


def examine(folder: str | Path) -> Diagnosis:
    """Return the verdict on the run in a folder, finished or not.

    Raises:
        InputError: if the folder holds no run of a generator, or its log is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run is '{folder}', which is not a folder: name the --save-dir of a training")
    if not (folder / CONFIG).is_file():
        raise InputError(f"run is '{folder}', which holds no {CONFIG}: name the --save-dir of a training")
    config = read_config(folder / CONFIG)
    lines = MetricsLog(folder / LOG).read()
    found = judge(lines, settings_of(config))
    unfinished = [] if (folder / WEIGHTS).exists() else [_unfinished(lines, config.schedule.steps)]
    return Diagnosis(found.findings, (*found.unknown, *unfinished))


def _unfinished(lines: list[dict[str, Any]], steps: int) -> str:
    done = max((line["step"] for line in lines), default=0)
    return f"the end: the run is unfinished, its log ends at step {done} of {steps}; this is the verdict so far"


def settings_of(config: RunConfig) -> Settings:
    """Return what the rules know about a configuration."""
    schedule, name = config.schedule, "--loss.field"
    field: Any = config.loss.field
    while (inner := getattr(field, "field", None)) is not None:  # that of a lookahead
        field, name = inner, f"{name}.field"
    falls = schedule.cooldown > 0 or (schedule.decay_after is not None and schedule.decay_after < schedule.steps)
    return Settings(
        steps=schedule.steps,
        rate_falls=falls,
        learning_rate=schedule.learning_rate,
        floor_flag=f"{name}.affinity-floor" if getattr(field, "affinity_floor", 0) > 0 else None,
        spread_flag=_spread_flag(config.loss.field),
    )


def _spread_flag(field: Any) -> str | None:
    """Return the flag of the setting by which a field spreads samples, if it does."""
    if isinstance(field, Lookahead):
        return "--loss.field.weight"
    if getattr(field, "balance", 0) > 0:
        return "--loss.field.balance"
    return "--loss.field.repulsion" if getattr(field, "repulsion", 1) > 1 else None


class Watch:
    """Writes the lines of a training's log and says what they mean, as soon as it is known.

    Args:
        recorder: recorder of the run.
        config: configuration of the run.
        encoder: feature encoder of the run.
        progress: where the noise floor is shown, and sentences are printed.
    """

    def __init__(self, recorder: Recorder, config: RunConfig, encoder: FeatureEncoder, progress: TrainingProgress) -> None:
        self._recorder, self._config, self._encoder, self._progress = recorder, config, encoder, progress
        self._lines: list[Mapping[str, Any]] = list(recorder.log.read())
        self._said = {finding.name for finding in self._judged().faults}

    def _judged(self) -> Diagnosis:
        return judge(self._lines, settings_of(self._config))

    def write(self, step: Step, **more: int | float) -> float:
        """Write a line with the figures of a step and further ones; return the sum of its drift norms."""
        # It is measured once, on real images, before the training has changed anything it depends on.
        response = {} if self._lines else self._responses()
        line = self._recorder.write_metrics(step, **more, **response)
        self._lines.append(line)
        for finding in self._judged().faults if step.changes else ():
            if finding.name not in self._said:
                self._said.add(finding.name)
                self._progress.say(f"step {step.number}: {finding}")
        self._progress.noise = _total(line, NOISE_FLOOR) or self._progress.noise
        return _total(line, DRIFT_NORM) or 0.0

    def _responses(self) -> dict[str, float]:
        """Return how the encoder responds to changes of real images; nothing for other data."""
        images = self._recorder.real(MOST_IMAGES)
        # A compiled encoder would be compiled again for this number of images.
        if images.ndim != 4 or len(images) < 2 or self._config.schedule.compile:
            return {}
        return responses(self._encoder, images.to(self._config.device), colors=not self._config.data.latent)

    def conclude(self) -> None:
        """Say the verdict on the whole training, unless it is too short for one."""
        found = self._judged()
        for line in found.lines() if found.findings else ():
            self._progress.say(line)


def _total(line: Mapping[str, Any], kind: str) -> float | None:
    """Return the sum of the figures of a kind; None if there is none."""
    values = [value for name, value in line.items() if name.startswith(f"{kind}/")]
    return sum(values) if values else None
