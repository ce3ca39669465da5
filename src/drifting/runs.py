"""A run and its folder: train it, resume it, load it, sample from it, evaluate it.

The folder holds config.json, metrics.jsonl, generator.safetensors (averaged weights), checkpoints/, frames.safetensors and the
pictures; `load(folder)` needs the first and third alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from drifting import config as configuration
from drifting import pretraining
from drifting.checkpoint import load_tensors, load_weights, save_json, save_tensors
from drifting.config import AnyConfig, ClassifierConfig, EncoderRunConfig, ImagesData, RunConfig
from drifting.data.source import reference_samples
from drifting.encoders.base import FeatureEncoder
from drifting.errors import InputError
from drifting.evaluation import Metrics
from drifting.files import atomic_path, check_writable
from drifting.generators.base import Generator
from drifting.judges import train_classifier
from drifting.plotting import image_grid, points_figure, save_image
from drifting.run_evaluation import Asked, evaluate_run
from drifting.run_folder import (
    CLASSIFIER_WEIGHTS,
    CONFIG,
    ENCODER_WEIGHTS,
    METRICS,
    RECONSTRUCTION,
    WEIGHTS,
    claim,
    make_room,
    read_config,
)
from drifting.sampling import sample
from drifting.training.interruption import Interrupted, polite_stop
from drifting.training.loop import TrainingState
from drifting.training.loop import train as training_steps
from drifting.training.positives import Positives
from drifting.training.progress import TrainingProgress
from drifting.training.recorder import FRAMES, Recorder, Resources, frame_steps

# Real samples that the frames of a run are compared with: not those drawn in the pictures or in an evaluation.
_REFERENCE_SEED = 1


@dataclass(frozen=True)
class Run:
    """A trained run."""

    folder: Path
    config: RunConfig
    generator: Generator
    pictures: tuple[Path, ...] = ()

    def sample(
        self, count: int, *, seed: int = 0, labels: Sequence[int] | None = None, guidance_scale: float | None = None
    ) -> Tensor:
        """Return samples in the user's form: points in their own coordinates, images as uint8 [n, h, w, c]. One pass each."""
        scale = self.config.schedule.scale_of_samples(guidance_scale)
        export = configuration.build_export(self.config)
        return export(sample(self.generator, count, seed=seed, labels=labels, guidance_scale=scale))

    def frames(self) -> dict[int, Tensor]:
        """Return the samples that were set aside during training, step -> samples; none where they were not kept."""
        path = self.folder / FRAMES
        return {int(step): frame for step, frame in load_tensors(path).items()} if path.exists() else {}

    def summary(self) -> list[str]:
        """Return the paths of its pictures."""
        return [str(picture) for picture in self.pictures]

    def evaluate(
        self,
        *,
        judge: str | None = None,
        real: str | None = None,
        count: int | None = None,
        seed: int = 0,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
    ) -> Metrics:
        """Measure the run against real data and keep the figures in metrics.json; arguments as of `run_evaluation.Asked`."""
        told = {"seed": seed, "guidance_scale": guidance_scale, "batch_size": batch_size, "device": device}
        asked = Asked(judge=judge, real=real, count=count, **told)
        metrics = evaluate_run(self.config, self.generator, asked, folder=self.folder, frames=self.frames)
        save_json(self.folder / METRICS, metrics)
        return metrics


@dataclass(frozen=True)
class TrainedNetwork:
    """A network trained on its own: a judge or an encoder.

    Attributes:
        weights: their file.
        figures: name -> share of images that are named right, or the error of what is filled in; empty where there is neither.
    """

    weights: Path
    figures: Mapping[str, float]

    @property
    def folder(self) -> Path:
        """Where the weights lie."""
        return self.weights.parent

    def summary(self) -> list[str]:
        """Return what the training leaves, a line each."""
        lines = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.figures.items()]
        return [*(lines or ["no accuracy, for the images are not of two classes or more"]), str(self.weights)]


def start(config: AnyConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run | TrainedNetwork:
    """Train whatever the configuration is of, by `train`, `train_judge` or `train_encoder`."""
    if isinstance(config, RunConfig):
        return train(config, save_dir, resume=resume, overwrite=overwrite)
    if isinstance(config, EncoderRunConfig):
        return train_encoder(config, save_dir, resume=resume, overwrite=overwrite)
    if resume:
        raise InputError(f"resume is given, but '{config.preset}' trains in one go: pass --overwrite")
    return train_judge(config, save_dir, overwrite=overwrite)


def train_judge(config: ClassifierConfig, save_dir: str | Path, *, overwrite: bool = False) -> TrainedNetwork:
    """Train a classifier into a folder, for the evaluation of generators; errors as in `train`."""
    folder, config = Path(save_dir), configuration.resolve(config)
    pretraining.check_networks(config)
    check_writable(folder, "save_dir")
    make_room(folder, overwrite=overwrite)
    return TrainedNetwork(folder / CLASSIFIER_WEIGHTS, {"test_accuracy": train_classifier(config, folder)})


def train_encoder(
    config: EncoderRunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False
) -> TrainedNetwork:
    """Train a feature encoder into a folder, for generators to drift in its features; arguments and errors as in `train`.

    One of images in memory is trained in one go; one of data that stay on disk is saved now and then, and can be resumed.
    """
    folder = Path(save_dir)
    if resume and isinstance(config.data, ImagesData):
        raise InputError(f"resume is given, but '{config.preset}' trains in one go: pass --overwrite")
    _check_once(resume=resume, overwrite=overwrite)
    config = configuration.resolve(config)
    pretraining.check_networks(config)
    check_writable(folder, "save_dir")
    claim(folder, config, resume=resume, overwrite=overwrite)
    figures = pretraining.train_encoder(config, folder)
    shown = {name: value for name, value in figures.items() if name.endswith(("accuracy", "error"))}
    return TrainedNetwork(folder / ENCODER_WEIGHTS, shown)


def _check_once(*, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("resume and overwrite are both given: pass one of them")


def train(config: RunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run:
    """Train a run into a folder and return it.

    Args:
        config: from a preset, or written by hand.
        save_dir: the run folder.
        resume: go on from the newest checkpoint of the folder; only steps, micro_batch, device and keep may differ.
        overwrite: delete the run that is there first.

    Raises:
        InputError: for anything that cannot work, before anything is written.
        DivergenceError: if the loss becomes NaN or infinite; the last good checkpoint is kept.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    folder = Path(save_dir)
    _check_once(resume=resume, overwrite=overwrite)
    config = configuration.resolve(config)
    source, generator = configuration.build_source(config), configuration.build_generator(config)
    pretraining.check_networks(config)
    check_writable(folder, "save_dir")
    claim(folder, config, resume=resume, overwrite=overwrite)
    # Stopped before its encoder is trained, a run leaves nothing that would be in the way of starting again.
    encoder = configuration.build_encoder(config, pretraining.prepare_encoder(config, folder))
    save_json(folder / CONFIG, configuration.to_json(config))
    positives = configuration.build_positives(config, encoder, folder / "features")
    state = TrainingState(generator.to(config.device), config.schedule, config.seed)
    recorder = Recorder(
        folder,
        state,
        positives,
        facts=configuration.to_json(config),
        reference=reference_samples(source, config.frame_samples, seed=_REFERENCE_SEED, limit=True),
        frame_samples=config.frame_samples,
        keep=config.keep,
        guidance_scale=config.schedule.scale_of_samples(),
    )
    if resume:
        recorder.resume(config.schedule.steps)
    _train(recorder, config, positives, encoder)
    save_tensors(folder / WEIGHTS, state.averaged.state_dict())
    pictures = configuration.build_pictures(config)(folder, frames=recorder.frames, log=recorder.log.read())
    reconstruction = folder / RECONSTRUCTION
    pictures += [reconstruction] if reconstruction.exists() else []
    return Run(folder, config, state.averaged.cpu().eval(), tuple(pictures))


def load(folder: str | Path) -> Run:
    """Return a trained run, ready to sample on the CPU, or raise InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run is '{folder}', which is not a folder: name the --save-dir of a training")
    config = read_config(folder / CONFIG)
    generator = configuration.build_generator(config)
    load_weights(generator, load_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return Run(folder, config, generator.eval())


def write_samples(
    run: Run,
    out: Path,
    count: int,
    *,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write samples of a run as a picture (.png) or as numbers (.npy), or raise InputError."""
    if out.suffix not in (".png", ".npy"):
        raise InputError(f"out is '{out}': name a .png picture or a .npy array")
    if out.is_dir() or (out.exists() and not overwrite):
        raise InputError(f"out is '{out}', which exists: pass --overwrite or name another file")
    check_writable(out.parent, "out")
    samples = run.sample(count, seed=seed, labels=labels, guidance_scale=guidance_scale)
    if out.suffix == ".npy":
        with atomic_path(out) as scratch:
            np.save(scratch, samples.numpy())
    elif samples.ndim == 2:
        save_image(points_figure(samples), out)
    else:
        save_image(image_grid(samples, columns=len(labels or ()) or run.generator.num_classes or 10), out)


def _train(recorder: Recorder, config: RunConfig, positives: Positives, encoder: FeatureEncoder) -> None:
    """Run the loop: log, set frames aside, save, and stop where asked to."""
    state, schedule = recorder.state, config.schedule
    frames_at = frame_steps(schedule.steps, config.frames)
    loss = configuration.build_loss(config)
    if state.step == 0:
        recorder.take_frame()
    last_time, last_step = time.perf_counter(), state.step
    samples_per_step = min(schedule.labels_per_step, positives.num_classes or 1) * schedule.generated
    resources = Resources(state.device, state.step, samples_per_step)
    progress = TrainingProgress(schedule.steps, state.step, samples_per_step)
    with progress, polite_stop() as stop:
        for step in training_steps(state, positives, encoder, loss, schedule):
            recorder.observe(step)
            more: dict[str, int | float] = {}
            if step.number in frames_at:
                more["energy_distance"] = recorder.take_frame()
            if step.number == schedule.steps:
                more |= recorder.choose_average() | resources.used(step)
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
                raise Interrupted(step.number, schedule.steps, preset=config.preset, folder=recorder.folder)
