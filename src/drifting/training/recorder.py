"""Records of a run while it trains: means of what the steps report, snapshots of samples for pictures, and checkpoints.

The run folder holds metrics.jsonl, snapshots.safetensors and checkpoints/. This file writes them and, when a run is resumed,
removes what comes after the checkpoint. All processes do the same work, but only the main process writes.
"""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._files import atomic_path
from drifting._json import parse_json
from drifting.checkpoint import (
    check_state,
    checkpoints,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
    steps_done,
)
from drifting.errors import InputError, reason
from drifting.history import DRIFT_NORM, NOISE_FLOOR, batch_figures, drift_norms
from drifting.metrics.distances import energy_distance, mean_distance
from drifting.sampling import sample
from drifting.training.loop import Step
from drifting.training.positives import Positives
from drifting.training.state import TrainingState
from drifting.training.tracking import Tracking

# What a user's functions are called with: a step; the number of a step, and samples.
OnStep = Callable[[Step], object]
OnSnapshot = Callable[[int, Tensor], object]


class MetricsLog:
    """A log of JSON lines, to which steps are appended and from which a resumed run removes the last ones.

    Args:
        path: path of the file, which is created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, **values: Any) -> None:
        """Write one line of values, one of which is `step`."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all lines except a last one that a crash cut off; raises InputError if another line is damaged."""
        if not self.path.exists():
            return []
        try:
            *lines, _ = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"log is '{self.path}', which cannot be read ({reason(error)}): delete it") from None
        return [self._parsed(line, number) for number, line in enumerate(lines, 1)]

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = parse_json(line.decode(), finite=False)
            if not isinstance(values, dict) or type(values.get("step")) is not int:
                raise ValueError("it has no step")
            for name, value in values.items():
                has_temperature = name.startswith((f"{DRIFT_NORM}/", f"{NOISE_FLOOR}/"))
                if type(value) not in (int, float) or (has_temperature and name.count("/") < 2):
                    raise ValueError(f"{name} is not a number of a known name")
        except ValueError as error:
            raise InputError(f"log is '{self.path}', whose line {number} is damaged ({reason(error)}): delete that line") from None
        return values

    def wind_back(self, step: int) -> None:
        """Remove every line after `step`, as if the run had been stopped there."""
        kept = [line for line in self.read() if line["step"] <= step]
        with atomic_path(self.path) as scratch:
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))


SNAPSHOTS, CHECKPOINTS = "snapshots.safetensors", "checkpoints"
# Name of the file of snapshots in version 0.1.
EARLIER_SNAPSHOTS = "frames.safetensors"

# All snapshots are samples of the same seed, so they show how the same samples change.
SNAPSHOT_SEED = 0


class RunningMean:
    """Means of named values since they were last taken. They are summed on the device, without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._origin: str | None = None

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one observation of every value; raises InputError if the restored means have other names."""
        if self._origin is not None and self._count and self._sums.keys() != values.keys():
            other = sorted(self._sums.keys() ^ values.keys())[0]
            raise InputError(f"checkpoint is '{self._origin}', whose means do not fit this run ('{other}'): delete it and resume")
        self._origin = None
        self._sums = {name: self._sums[name] + value if self._count else value.clone() for name, value in values.items()}
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the means, and forget all observations."""
        totals = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        means = {name: total / self._count for name, total in zip(self._sums, totals, strict=True)}
        self._sums, self._count = {}, 0
        return means

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums since the means were last taken, for a checkpoint."""
        return {"means.count": torch.tensor(self._count), **{f"means.sum.{name}": value for name, value in self._sums.items()}}

    def check(self, tensors: Mapping[str, Tensor], origin: str, step: int) -> None:
        """Raise InputError unless this is a result of `tensors` at a step. Names of values are checked when the next are added."""
        sums = {name: torch.zeros(()) for name in tensors if name.startswith("means.sum.")}
        check_state(tensors, {"means.count": torch.tensor(0), **sums}, origin)
        count = int(tensors["means.count"])
        if count > step or (count > 0) != bool(sums):
            raise InputError(f"checkpoint is '{origin}', with means of {count} steps at step {step}: delete it and resume")

    def restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Restore a result of `tensors` that passed `check`."""
        self._count, self._origin = int(tensors["means.count"]), origin
        sums = {name: value for name, value in tensors.items() if name.startswith("means.sum.")}
        self._sums = {name.removeprefix("means.sum."): value for name, value in sums.items()}


class Resources:
    """Speed and memory of a training, measured from here on.

    Args:
        device: device of the training.
        done: number of steps that are done already.
        samples_per_step: number of generated samples in a step.
    """

    def __init__(self, device: torch.device, done: int, samples_per_step: int) -> None:
        self._device, self._done, self._samples_per_step = device, done, samples_per_step
        self._started = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def used(self, step: Step) -> dict[str, int | float]:
        """Return mean rates up to a step, and the peak memory in bytes: of a CUDA device, or else of the whole process."""
        rate = (step.number - self._done) / max(time.perf_counter() - self._started, 1e-9)
        values: dict[str, int | float] = {"mean_steps_per_second": rate, "samples_per_second": rate * self._samples_per_step}
        if step.stored_bytes:
            values["stored_feature_bytes"] = step.stored_bytes
        if self._device.type == "cuda":
            values["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
        elif sys.platform != "win32":
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            values["peak_memory_bytes"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return values


class Recorder:
    """Write the log, the snapshots and the checkpoints of a run.

    Args:
        folder: the run folder.
        state: training state.
        positives: features of real samples; checkpoints contain the state of their source.
        facts: configuration as JSON, written into every checkpoint.
        reference: real samples to compare the snapshots with.
        snapshot_samples: number of samples in a snapshot.
        keep: number of checkpoints to keep.
        guidance_scale: guidance scale of the samples in a snapshot, for a generator that takes one.

    Attributes:
        tracking: where lines and snapshots are sent too; None to keep them in the folder alone.
        on_step, on_snapshot: functions to call with every step, and with the samples of every snapshot; None for none, see `call`.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        positives: Positives,
        *,
        facts: Any,
        reference: Float[Tensor, "r *sample"],
        snapshot_samples: int,
        keep: int,
        guidance_scale: float | None = None,
    ) -> None:
        self.folder, self.state, self.facts, self.keep = folder, state, facts, keep
        self._positives = positives
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.snapshots: dict[int, Float[Tensor, "s *sample"]] = {}
        self._real, self._reference, self._snapshot_samples = reference, reference.flatten(1), snapshot_samples
        self._within_reference: float | None = None
        self._guidance_scale = guidance_scale
        self._means = RunningMean()
        self.tracking: Tracking | None = None
        self.on_step: OnStep | None = None
        self.on_snapshot: OnSnapshot | None = None

    def call(self, on_step: OnStep | None, on_snapshot: OnSnapshot | None, export: Callable[[Tensor], Tensor]) -> None:
        """Call functions of the user from now on; samples are passed to `export` first."""
        self.on_step = on_step
        if on_snapshot is not None:
            self.on_snapshot = lambda step, samples: on_snapshot(step, export(samples))

    def real(self, count: int) -> Float[Tensor, "r *sample"]:
        """Return at most `count` of the real samples that snapshots are compared with."""
        return self._real[:count]

    def observe(self, step: Step) -> None:
        """Add one step to the means, and pass it on."""
        self._means.add({"loss": step.report.loss.detach(), **drift_norms(step.report.features)})
        if self.on_step is not None:
            self.on_step(step)

    def write_metrics(self, step: Step, **more: int | float) -> dict[str, Any]:
        """Write and return the means since the last line, the figures of the step's batch, and the further values."""
        self.state.check_faults()
        learned = {"temperature_factor": step.temperature_factor, "encoder_loss": step.encoder_loss}
        changes = {name: float(value) for name, value in {**step.changes, **learned}.items() if value is not None}
        values = {"step": step.number, **self._means.take(), **batch_figures(step.report.features), **changes, **more}
        if self.state.processes.is_main_process:
            self.log.append(**values)
            if self.tracking is not None:
                self.tracking.record(values, self.snapshots)
        return values

    def take_snapshot(self, *, show: bool = True) -> float:
        """Add a snapshot of samples, pass it on if it is to `show`, and return its squared energy distance to the reference.

        The distance is NaN if a sample is not finite.
        """
        options = {"seed": SNAPSHOT_SEED, "guidance_scale": self._guidance_scale, "processes": self.state.processes}
        snapshot = sample(self.state.averaged, self._snapshot_samples, **options)
        self.snapshots[self.state.step] = snapshot
        if show and self.on_snapshot is not None:
            self.on_snapshot(self.state.step, snapshot)
        if not bool(snapshot.isfinite().all()):
            return math.nan  # the next line of the log tells the fault
        if self._within_reference is None:
            self._within_reference = mean_distance(self._reference, self._reference)
        return energy_distance(snapshot.flatten(1), self._reference, within_y=self._within_reference)

    def choose_average(self) -> dict[str, float]:
        """Choose the average of weights whose snapshot is nearest to the reference, and keep that snapshot.

        Returns its `ema_decay`, its squared energy distance and those of all averages; an empty dict if there is only one.
        """
        if len(self.state.averages) == 1:
            return {}
        distances = {}
        for decay in self.state.averages:
            self.state.chosen = decay
            distances[decay] = self.take_snapshot(show=False)
        best = self.state.chosen = min(distances, key=lambda decay: distances[decay])
        self.take_snapshot()
        by_name = {f"energy_distance/ema-{decay}": distance for decay, distance in distances.items()}
        return {"ema_decay": best, "energy_distance": distances[best], **by_name}

    def save(self) -> Path:
        """Write the snapshots and a checkpoint; raises DivergenceError if the state is not finite."""
        self.state.check_faults()
        self._write_snapshots()
        positives = {f"positives.{name}": value for name, value in self._positives.tensors().items()}
        tensors = {**self.state.tensors(), **self._means.tensors(), **positives}
        options = {"keep": self.keep, "processes": self.state.processes}
        return save_checkpoint(self.folder / CHECKPOINTS, self.state.step, tensors, self.facts, **options)

    def _write_snapshots(self) -> None:
        if self.state.processes.is_main_process:
            save_tensors(self.folder / SNAPSHOTS, {str(step): snapshot for step, snapshot in self.snapshots.items()})

    def resume(self, steps: int, *, may_begin: bool = False) -> None:
        """Restore the newest checkpoint of a run.

        Args:
            steps: number of steps of the whole run.
            may_begin: whether the run may begin at its start if there is no checkpoint.

        Raises:
            InputError: if there is no checkpoint, it is damaged, or it belongs to another run.
        """
        found = checkpoints(self.folder / CHECKPOINTS)
        if not found and may_begin:
            if self.state.processes.is_main_process:
                self.log.wind_back(0)
            return
        if not found:
            raise InputError(f"save_dir is '{self.folder}', which holds no checkpoint to resume: start again with --overwrite")
        done = steps_done(found[-1], steps)
        self._restore(found[-1], done)
        stored = read_snapshots(self.folder, self.state.generator.sample_shape)
        if self.state.processes.is_main_process:
            self.log.wind_back(done)
        self.snapshots = {step: snapshot for step, snapshot in stored.items() if step <= done}
        # The last step of a shorter run may lack the snapshot that every run has of its last step.
        if not self.snapshots or (done == steps and done not in self.snapshots):
            self.take_snapshot()
        if done == steps:
            self.choose_average()
            self._write_snapshots()

    def _restore(self, checkpoint: Path, step: int) -> None:
        """Restore the checkpoint of a step, after all of it was checked."""
        tensors, _ = load_checkpoint(checkpoint, self.state.layout)
        origin, parts = str(checkpoint), dict[str, dict[str, Tensor]]()
        for name, value in tensors.items():
            kind = name.partition(".")[0]
            parts.setdefault(kind if kind in ("means", "positives") else "state", {})[name] = value
        means = parts.get("means", {})
        self._means.check(means, origin, step)
        self.state.check(parts.get("state", {}), step, origin)
        positives = {name.removeprefix("positives."): value for name, value in parts.get("positives", {}).items()}
        self._positives.restore(positives, origin)
        self.state.restore(parts["state"], step, origin)
        self._means.restore(means, origin)


def read_snapshots(folder: Path, shape: Sequence[int]) -> dict[int, Float[Tensor, "s *sample"]]:
    """Return the snapshots of a run folder, step -> samples of this shape; an empty dict if there is no file.

    Raises:
        InputError: if the file is damaged.
    """
    path = next((path for name in (SNAPSHOTS, EARLIER_SNAPSHOTS) if (path := folder / name).exists()), None)
    if path is None:
        return {}
    snapshots = load_tensors(path)
    counts = {len(snapshot) for snapshot in snapshots.values() if snapshot.ndim}
    for name, snapshot in snapshots.items():
        if not re.fullmatch("0|[1-9][0-9]{0,17}", name):
            raise InputError(f"file is '{path}', with samples of step '{name}', which is not a number: delete the file")
        if (
            snapshot.shape[1:] != tuple(shape)
            or len(counts) != 1
            or snapshot.numel() == 0
            or snapshot.dtype != torch.float32
            or not bool(snapshot.isfinite().all())
        ):
            found = f"{tuple(snapshot.shape)} of {str(snapshot.dtype).removeprefix('torch.')}"
            wanted = f"samples {tuple(shape)} of float32, all finite and as many as at other steps"
            raise InputError(f"file is '{path}', whose samples of step {name} are {found}, not {wanted}: delete the file")
    return {int(name): snapshot for name, snapshot in snapshots.items()}


def snapshot_steps(steps: int, count: int) -> set[int]:
    """Return the steps of snapshots: dense at the start, where samples change most, and including the last step."""
    return {max(1, round(steps * (index / count) ** 2)) for index in range(1, count + 1)}
