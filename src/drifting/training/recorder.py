"""What is kept of a run while it trains: averages of what each step reports, samples set aside for pictures, and checkpoints.

The run folder holds metrics.jsonl, frames.safetensors and checkpoints/; this file writes them and winds them back on resume.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.checkpoint import checkpoints, load_checkpoint, load_tensors, save_checkpoint, save_tensors
from drifting.errors import InputError
from drifting.loss import DriftLoss
from drifting.metrics.two_sample import energy_distance
from drifting.sampling import sample
from drifting.tracking import MetricsLog
from drifting.training.loop import Step, TrainingState
from drifting.training.positives import Positives

# Frames show the same samples, of this seed, all through training.
FRAME_SEED = 0


class RunningMean:
    """Means of named values since they were last taken, summed on the device: nothing is read back before."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one observation of every value."""
        self._sums = {name: self._sums[name] + value if self._count else value.clone() for name, value in values.items()}
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the means and start afresh."""
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def tensors(self) -> dict[str, Tensor]:
        """Return what was added since the means were last taken, for a checkpoint."""
        return {"means.count": torch.tensor(self._count), **{f"means.sum.{name}": value for name, value in self._sums.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        self._count = int(tensors["means.count"])
        sums = {name: value for name, value in tensors.items() if name.startswith("means.sum.")}
        self._sums = {name.removeprefix("means.sum."): value for name, value in sums.items()}


class Recorder:
    """Keeps what a run leaves behind.

    Args:
        folder: the run folder.
        state: what is trained.
        positives: where real samples come from; a state of theirs is kept in the checkpoints.
        facts: the configuration as JSON, written into every checkpoint.
        reference: real samples that the frames are compared with.
        frame_samples: how many samples a frame holds.
        keep: how many checkpoints to keep.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        positives: Positives,
        *,
        facts: Any,
        reference: Float[Tensor, "r *sample"],
        frame_samples: int,
        keep: int,
    ) -> None:
        self.folder, self.state, self.facts, self.keep = folder, state, facts, keep
        self._positives = positives
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.frames: dict[int, Float[Tensor, "n *sample"]] = {}
        self._reference, self._frame_samples = reference, frame_samples
        self._means = RunningMean()

    def observe(self, step: Step) -> None:
        """Add one step to the averages."""
        self._means.add({"loss": step.report.loss.detach(), **_drift_norms(step.report.features)})

    def write_metrics(self, step: Step, **more: float) -> dict[str, Any]:
        """Write and return the averages since the last line, the spread of the kernels, and whatever else is given."""
        self.state.check_faults()
        values = {"step": step.number, **self._means.take(), **_statistics(step.report.features), **more}
        self.log.append(**values)
        return values

    def take_frame(self) -> float:
        """Set samples aside and return their squared energy distance to the reference."""
        self.frames[self.state.step] = sample(self.state.averaged, self._frame_samples, seed=FRAME_SEED)
        return energy_distance(self.frames[self.state.step].flatten(1), self._reference.flatten(1))

    def save(self) -> Path:
        """Write frames and checkpoint; refuses a state that is not finite."""
        self.state.check_faults()
        save_tensors(self.folder / "frames.safetensors", {str(step): frame for step, frame in self.frames.items()})
        positives = {f"positives.{name}": value for name, value in self._positives.tensors().items()}
        tensors = {**self.state.tensors(), **self._means.tensors(), **positives}
        return save_checkpoint(self.folder / "checkpoints", self.state.step, tensors, self.facts, keep=self.keep)

    def resume(self, steps: int) -> None:
        """Go back to the newest checkpoint, of a run that is to have `steps` steps in all."""
        found = checkpoints(self.folder / "checkpoints")
        if not found:
            raise InputError(f"save_dir is '{self.folder}', which holds no checkpoint to resume: start again with --overwrite")
        done = int(found[-1].name.removeprefix("step-"))
        if steps < done:
            raise InputError(f"steps is {steps}, but the run to resume has done {done}: pass at least as many")
        tensors, _ = load_checkpoint(found[-1])
        self.state.restore(tensors, done, str(found[-1]))
        self._means.restore(tensors)
        positives = {name: value for name, value in tensors.items() if name.startswith("positives.")}
        self._positives.restore({name.removeprefix("positives."): value for name, value in positives.items()}, str(found[-1]))
        self.log.wind_back(done)
        frames = self.folder / "frames.safetensors"
        stored = load_tensors(frames) if frames.exists() else {}
        self.frames = {int(step): frame for step, frame in stored.items() if int(step) <= done}
        if not self.frames:
            self.take_frame()


def frame_steps(steps: int, count: int) -> set[int]:
    """Return the steps at which frames are taken: dense at the start, where most happens, and the last step among them."""
    return {max(1, round(steps * (index / count) ** 2)) for index in range(1, count + 1)}


def _drift_norms(features: dict[str, DriftLoss]) -> dict[str, Tensor]:
    return {
        f"drift_norm/{name}/{temperature:g}": norm
        for name, report in features.items()
        for temperature, norm in report.drift_norms.items()
    }


def _statistics(features: dict[str, DriftLoss]) -> dict[str, float]:
    values = {}
    for name, report in features.items():
        if report.statistics is None:
            continue
        for kind, per_temperature in report.statistics._asdict().items():
            for temperature, value in zip(report.drift_norms, per_temperature.tolist(), strict=True):
                values[f"{kind}/{name}/{temperature:g}"] = value
    return values
