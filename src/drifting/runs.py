"""A run and its folder: train it, resume it, load it, sample from it, evaluate it.

The folder holds config.json, metrics.jsonl, generator.safetensors (averaged weights), checkpoints/, frames.safetensors and the
pictures; `load(folder)` needs the first and third alone.
"""

import dataclasses
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from drifting import config as configuration
from drifting.checkpoint import load_json, load_tensors, load_weights, save_json, save_tensors
from drifting.config import RunConfig
from drifting.data.source import Source, reference_samples
from drifting.errors import InputError
from drifting.evaluation import Metrics
from drifting.files import atomic_path, check_writable
from drifting.generators.base import Generator
from drifting.plotting import image_grid, points_figure, save_image
from drifting.sampling import sample
from drifting.training.loop import TrainingState
from drifting.training.loop import train as training_steps
from drifting.training.progress import TrainingProgress
from drifting.training.recorder import Recorder, frame_steps

# Real samples that the frames of a run are compared with: not those drawn in the pictures or in an evaluation.
_REFERENCE_SEED = 1
_CONFIG, _WEIGHTS = "config.json", "generator.safetensors"
_OWN_FILES = (_CONFIG, _WEIGHTS, "metrics.jsonl", "metrics.json", "frames.safetensors", "checkpoints")
_OWN_PICTURES = ("samples.png", "progress.png", "drift_field.png", "losses.png", "training.gif")


class Interrupted(Exception):
    """Training was stopped from outside; the state is saved. The message says how to go on."""


@dataclass(frozen=True)
class Run:
    """A trained run."""

    folder: Path
    config: RunConfig
    generator: Generator
    pictures: tuple[Path, ...] = ()

    def sample(self, count: int, *, seed: int = 0, labels: Sequence[int] | None = None) -> Tensor:
        """Return samples in the user's form: points in their own coordinates, images as uint8 [n, h, w, c]. One pass each."""
        return configuration.build_export(self.config)(sample(self.generator, count, seed=seed, labels=labels))

    def evaluate(self) -> Metrics:
        """Measure the run against real data and keep the figures in metrics.json; see `evaluation`."""
        metrics = configuration.build_evaluation(self.config)(lambda count, seed: sample(self.generator, count, seed=seed))
        save_json(self.folder / "metrics.json", metrics)
        return metrics


def train(config: RunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run:
    """Train a run into a folder and return it.

    Args:
        config: from a preset, or written by hand.
        save_dir: the run folder.
        resume: go on from the newest checkpoint of the folder; only steps, device and keep may differ from its configuration.
        overwrite: delete the run that is there first.

    Raises:
        InputError: for anything that cannot work, before anything is written.
        DivergenceError: if the loss becomes NaN or infinite; the last good checkpoint is kept.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    folder = Path(save_dir)
    if resume and overwrite:
        raise InputError("resume and overwrite are both given: pass one of them")
    config = configuration.resolve(config)
    source = configuration.build_source(config)
    check_writable(folder, "save_dir")
    _claim(folder, config, resume=resume, overwrite=overwrite)
    state = TrainingState(configuration.build_generator(config).to(config.device), config.schedule, config.seed)
    recorder = Recorder(
        folder,
        state,
        facts=configuration.to_json(config),
        reference=reference_samples(source, config.frame_samples, seed=_REFERENCE_SEED),
        frame_samples=config.frame_samples,
        keep=config.keep,
    )
    if resume:
        recorder.resume(config.schedule.steps)
    save_json(folder / _CONFIG, configuration.to_json(config))
    _train(recorder, config, source)
    save_tensors(folder / _WEIGHTS, state.averaged.state_dict())
    pictures = configuration.build_pictures(config)(folder, frames=recorder.frames, log=recorder.log.read())
    return Run(folder, config, state.averaged.cpu().eval(), tuple(pictures))


def load(folder: str | Path) -> Run:
    """Return a trained run, ready to sample on the CPU, or raise InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run is '{folder}', which is not a folder: name the --save-dir of a training")
    config = configuration.from_json(load_json(folder / _CONFIG), str(folder / _CONFIG))
    generator = configuration.build_generator(config)
    load_weights(generator, load_tensors(folder / _WEIGHTS), str(folder / _WEIGHTS))
    return Run(folder, config, generator.eval())


def write_samples(
    run: Run, out: Path, count: int, *, seed: int = 0, labels: Sequence[int] | None = None, overwrite: bool = False
) -> None:
    """Write samples of a run as a picture (.png) or as numbers (.npy), or raise InputError."""
    if out.suffix not in (".png", ".npy"):
        raise InputError(f"out is '{out}': name a .png picture or a .npy array")
    if out.is_dir() or (out.exists() and not overwrite):
        raise InputError(f"out is '{out}', which exists: pass --overwrite or name another file")
    check_writable(out.parent, "out")
    samples = run.sample(count, seed=seed, labels=labels)
    if out.suffix == ".npy":
        with atomic_path(out) as scratch:
            np.save(scratch, samples.numpy())
    elif samples.ndim == 2:
        save_image(points_figure(samples), out)
    else:
        save_image(image_grid(samples, columns=len(labels or ()) or run.generator.num_classes or 10), out)


def saved_config(folder: str | Path) -> RunConfig:
    """Return the configuration of the run in a folder, finished or not, or raise InputError."""
    path = Path(folder) / _CONFIG
    if not path.exists():
        raise InputError(f"save_dir is '{folder}', which holds no run to resume: leave out --resume, or name another folder")
    return configuration.from_json(load_json(path), str(path))


def _claim(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder ready for the run, or raise InputError if another run is in it."""
    if resume:
        _check_same(saved_config(folder), config)
        return
    own = [folder / name for name in (*_OWN_FILES, *_OWN_PICTURES) if (folder / name).exists()]
    if own and not overwrite:
        raise InputError(
            f"save_dir is '{folder}', which already holds a run: pass --resume or --overwrite, or choose another folder"
        )
    for path in own:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _check_same(saved: RunConfig, asked: RunConfig) -> None:
    """Raise InputError naming the first setting in which a resumed run would differ from the saved one."""
    free = dataclasses.replace(saved.schedule, steps=asked.schedule.steps)
    saved = dataclasses.replace(saved, schedule=free, device=asked.device, keep=asked.keep)
    if saved == asked:
        return
    before, after = (_flat(configuration.to_json(config)) for config in (saved, asked))
    name = next(name for name in {**before, **after} if before.get(name) != after.get(name))
    raise InputError(
        f"{name} is {after.get(name)}, but the run to resume has {before.get(name)}: "
        "only steps, device and keep may change; use --overwrite or another --save-dir for a new run"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _train(recorder: Recorder, config: RunConfig, source: Source) -> None:
    """Run the loop: log, set frames aside, save, and stop where asked to."""
    state, schedule = recorder.state, config.schedule
    frames_at = frame_steps(schedule.steps, config.frames)
    encoder, loss = configuration.build_encoder(config), configuration.build_loss(config)
    if state.step == 0:
        recorder.take_frame()
    last_time, last_step = time.perf_counter(), state.step
    progress = TrainingProgress(schedule.steps, state.step, schedule.labels_per_step * schedule.generated)
    with progress, _polite_stop() as stop:
        for step in training_steps(state, source, encoder, loss, schedule):
            recorder.observe(step)
            more: dict[str, float] = {}
            if step.number in frames_at:
                more["energy_distance"] = recorder.take_frame()
            drift_norm = None
            if more or step.number % config.log_every == 0 or step.number == schedule.steps:
                more["steps_per_second"] = (step.number - last_step) / (time.perf_counter() - last_time)
                last_time, last_step = time.perf_counter(), step.number
                values = recorder.write_metrics(step, **more)
                drift_norm = sum(value for name, value in values.items() if name.startswith("drift_norm/"))
            progress.advance(step.number, drift_norm)
            if stop or step.number % config.checkpoint_every == 0 or step.number == schedule.steps:
                recorder.save()
            if stop and step.number < schedule.steps:
                raise Interrupted(
                    f"Stopped at step {step.number} of {schedule.steps}; everything is saved. "
                    f"Go on with: drifting train {config.preset} --save-dir {shlex.quote(str(recorder.folder))} --resume"
                )


@contextmanager
def _polite_stop() -> Iterator[list[int]]:
    """Turn the first Ctrl-C (or termination) into a filled list that the loop looks at between steps; the second acts as usual."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals belong to somebody else
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
