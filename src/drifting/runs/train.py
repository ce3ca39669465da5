"""From a configuration to a trained run in a folder: what is shown, logged, set aside and saved, and how it stops.

`try_preset` does all of this in seconds with the tiny version of a preset, on data that it makes itself.
"""

import copy
import dataclasses
import inspect
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

import torch
from rich.console import Console
from torch import nn

from drifting import config as configuration
from drifting import presets
from drifting._checks import check_device as check_own_device
from drifting._files import check_space, check_writable, hold
from drifting._progress import TrainingProgress, print_stage
from drifting.checkpoint import save_json, save_tensors
from drifting.config import AnyConfig, ClassifierConfig, EncoderRunConfig, RunConfig
from drifting.data import ImagesData, Source, forget_data
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.sources import reference_samples
from drifting.data.synthetic import write_convnext, write_images, write_vae
from drifting.distributed import Processes, check_device, is_sharded, join, whole
from drifting.encoders.base import FeatureEncoder
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.presets.imagenet256 import RECIPES, mae
from drifting.presets.settings import LATENT_IMAGE_SIZE, smoke
from drifting.runs import pictures as drawing
from drifting.runs import pretrain
from drifting.runs.assemble import build_encoder, build_positives, with_network
from drifting.runs.folder import CONFIG, ENCODER_WEIGHTS, RECONSTRUCTION, WEIGHTS, claim, ending, make_room
from drifting.runs.run import Run, TrainedNetwork, load_run
from drifting.training.loop import Interrupted, check_shares, command_to_go_on, polite_stop
from drifting.training.loop import train as training_steps
from drifting.training.positives import Positives
from drifting.training.recorder import Recorder, Resources, snapshot_steps
from drifting.training.state import TrainingState

# Seed of the real samples that snapshots are compared with; pictures and evaluations draw others.
_REFERENCE_SEED = 1


@overload
def train(config: RunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run: ...


@overload
def train(
    config: ClassifierConfig | EncoderRunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False
) -> TrainedNetwork: ...


def train(config: AnyConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run | TrainedNetwork:
    """Train a generator, with its encoder if it needs one, or an encoder or a classifier alone, as configured.

    Args:
        config: configuration from a preset, or written by hand.
        save_dir: folder of the run.
        resume: continue from the newest checkpoint in the folder; settings that change the result must be the same.
        overwrite: delete the run in the folder first.

    Returns:
        The run of a generator, ready to sample; the weights and figures of another network.

    Raises:
        InputError: for anything that cannot work, before anything is written.
        DivergenceError: if the loss becomes NaN or infinite; the last good checkpoint is kept.
        Interrupted: if the process was asked to stop; the state is saved.
        LostProcessError: if another process died; the last checkpoint is kept.
    """
    if resume and overwrite:
        raise InputError("resume and overwrite are both given: pass one of them")
    forget_data()
    processes = join()
    if isinstance(config, RunConfig):
        return _train_generator(config, Path(save_dir), processes, resume=resume, overwrite=overwrite)
    if processes.size > 1:
        size = processes.size
        raise InputError(f"world size is {size}, but '{config.preset}' is trained by one process: start it without torchrun")
    return _train_network(config, Path(save_dir), processes, resume=resume, overwrite=overwrite)


def _train_network(
    config: ClassifierConfig | EncoderRunConfig, folder: Path, processes: Processes, *, resume: bool, overwrite: bool
) -> TrainedNetwork:
    """Train a feature encoder, or a classifier for evaluations, into a folder."""
    config, network = with_network(config, folder, processes, overwrite=overwrite)
    check_writable(folder, "save_dir")
    with hold(folder, "save_dir"):
        claim(folder, config, resume=resume, overwrite=overwrite)
        _print_lines(config.data.report())
        with ending(folder, config, processes, command=pretrain.command_of(config, folder), resume=resume):
            return pretrain.train_alone(config, network, folder)


def _print_lines(lines: list[str]) -> None:
    if lines:
        print(*lines, sep="\n", flush=True)


def _train_generator(config: RunConfig, folder: Path, processes: Processes, *, resume: bool, overwrite: bool) -> Run:
    """Train a generator, with its encoder if it needs one, together with all processes of the launch.

    A resumed run may have another number of processes.
    """
    check_device(config.device, processes)
    config, network = with_network(config, folder, processes, overwrite=overwrite)
    source, generator = config.data.source(config.seed), config.build_generator()
    check_shares(config.schedule, source.num_classes, processes)
    trains_encoder, is_main = config.trains_encoder, processes.is_main_process
    # The feature encoder freezes its network, so it is built after the network is trained.
    encoder = None if trains_encoder else build_encoder(config, network)
    config.data.exporter()
    facts, command = configuration.to_json(config), command_to_go_on(config.preset, folder, processes.size)
    with ExitStack() as held:
        with processes.main_process_first():
            if is_main:
                check_writable(folder, "save_dir")
                _check_space(folder, config, generator, resume=resume, overwrite=overwrite)
                held.enter_context(hold(folder, "save_dir"))
                claim(folder, config, resume=resume, overwrite=overwrite)
            held.enter_context(ending(folder, config, processes, command=command, resume=resume))
            encoder = _prepare(config, folder, network, encoder, is_main=is_main)
            if is_main:
                save_json(folder / CONFIG, facts)
            positives = build_positives(config, encoder, folder / "features", source=source)
        sharded = config.parallel == "fsdp"
        result = _without_weights(generator) if sharded else None
        generator = generator.to(config.device)
        state = TrainingState(generator, config.schedule, config.seed, processes=processes, sharded=sharded)
        recorder = Recorder(
            folder,
            state,
            positives,
            facts=facts,
            reference=reference_samples(source, config.snapshot_samples, seed=_REFERENCE_SEED, limit=True),
            snapshot_samples=config.snapshot_samples,
            keep=config.keep,
            guidance_scale=config.schedule.scale_of_samples(),
        )
        if trains_encoder and is_main:
            print_stage(2, 2, "generator", config.schedule.steps)
        if resume:
            # A run that was stopped while its encoder was trained, or soon after, has no checkpoint of its generator yet.
            recorder.resume(config.schedule.steps, may_begin=trains_encoder)
        if state.step == config.schedule.steps and is_main:
            print(f"{folder} is finished, with all {state.step} steps: pass a higher --steps to train it further", flush=True)
        follow(recorder, config, positives, encoder)
        return _finish(recorder, config, source, result)


def _prepare(
    config: RunConfig, folder: Path, network: nn.Module | None, encoder: FeatureEncoder | None, *, is_main: bool
) -> FeatureEncoder:
    """Print the facts about the data, and return the encoder, trained if it is not yet."""
    lines = config.data.report() if is_main else []
    # The facts come before the training of an encoder, which takes long, but after a saved one is checked.
    saved = (folder / ENCODER_WEIGHTS).exists()
    if not saved:
        _print_lines(lines)
    if network is not None:
        pretrain.prepare_encoder(config, folder, network)
    encoder = build_encoder(config, network) if encoder is None else encoder
    if saved:
        _print_lines(lines)
    return encoder


def _without_weights(generator: Generator) -> Generator:
    """Return a copy of a generator whose weights take no memory, to be loaded later."""
    weights = {id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in generator.parameters()}
    return copy.deepcopy(generator, weights)


def _check_space(folder: Path, config: RunConfig, generator: Generator, *, resume: bool, overwrite: bool) -> None:
    """Raise StorageError unless two checkpoints fit on the disk, or one more if the run is resumed."""
    weights = sum(value.numel() * value.element_size() for value in generator.state_dict().values())
    # The weights, their averages, and two moments of each.
    checkpoint = weights * (2 + len(config.schedule.other_ema_decays) + 2)
    deleted = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if overwrite else []
    check_space(folder, checkpoint * (1 if resume else 2) - sum(deleted), "save_dir")


def _finish(recorder: Recorder, config: RunConfig, source: Source, unsharded: Generator | None) -> Run:
    """Write the weights of the generator and the pictures.

    Args:
        recorder: recorder of the run.
        config: configuration of the run.
        source: source of real samples.
        unsharded: generator that takes the whole weights if each process has a share of them; None otherwise.
    """
    folder, state = recorder.folder, recorder.state
    generator, pictures = state.averaged, []
    weights = {name: whole(value).cpu() for name, value in generator.state_dict().items()}
    if unsharded is not None and is_sharded(generator):
        generator = unsharded
        generator.load_state_dict(weights, assign=True)
    if state.processes.is_main_process:
        save_tensors(folder / WEIGHTS, weights)
        draw = drawing.build_pictures(config)
        pictures = draw(folder, snapshots=recorder.snapshots, log=recorder.log.read(), source=source)
        reconstruction = folder / RECONSTRUCTION
        pictures += [reconstruction] if reconstruction.exists() else []
    state.processes.barrier()
    return Run(folder, config, generator.cpu().requires_grad_().eval(), tuple(pictures))


def follow(recorder: Recorder, config: RunConfig, positives: Positives, encoder: FeatureEncoder) -> None:
    """Run the training loop: log, take snapshots, save, and stop when this or another process is stopped.

    Raises:
        DivergenceError: if the loss becomes NaN or infinite.
        Interrupted: if a signal stopped the process.
    """
    state, schedule, processes = recorder.state, config.schedule, recorder.state.processes
    snapshots_at = snapshot_steps(schedule.steps, config.snapshots)
    choices = len(state.averages) + 1 if len(state.averages) > 1 else 0  # snapshots of `choose_average`
    loss = config.loss.build()
    if state.step == 0:
        recorder.take_snapshot()
    last_time, last_step = time.perf_counter(), state.step
    samples_per_step = min(schedule.labels_per_step, positives.num_classes or 1) * schedule.generated
    resources = Resources(state.device, state.step, samples_per_step)
    console = Console(quiet=not processes.is_main_process)
    progress = TrainingProgress(schedule.steps, state.step, samples_per_step, console=console)
    with progress, polite_stop() as stop:
        for step in training_steps(state, positives, encoder, loss, schedule):
            recorder.observe(step)
            more: dict[str, int | float] = {}
            if step.number in snapshots_at:
                with progress.pause(choices + sum(at > step.number for at in snapshots_at)):
                    more["energy_distance"] = recorder.take_snapshot()
            if step.number == schedule.steps:
                more |= recorder.choose_average() | resources.used(step)
            drift_norm = None
            if more or step.number % config.log_every == 0 or step.number == schedule.steps:
                more["steps_per_second"] = (step.number - last_step) / (time.perf_counter() - last_time)
                last_time, last_step = time.perf_counter(), step.number
                values = recorder.write_metrics(step, **more)
                drift_norm = sum(value for name, value in values.items() if name.startswith("drift_norm/"))
            progress.advance(step.number, drift_norm)
            stopped = processes.any(bool(stop))
            if stopped or step.number % config.checkpoint_every == 0 or step.number == schedule.steps:
                recorder.save()
            if stopped and step.number < schedule.steps:
                raise Interrupted(step.number, schedule.steps, command_to_go_on(config.preset, recorder.folder, processes.size))


# Folder inside that of a tiny run for the inputs that are made for it. Version 0.1 called the extractor a judge.
_INPUTS = "smoke"
_PARTS = {"images", "vae", "latents", "encoder", "convnext", "extractor", "judge"}
_SAMPLES = 16

# Name of a data set -> side of its images in pixels.
_SIDES = {"mnist": 28, "cifar10": 32}


def try_preset(
    name: str,
    save_dir: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    **choices: Any,
) -> Run | TrainedNetwork:
    """Train the tiny version of a preset, evaluate it and return it.

    Args:
        name: name of the preset.
        save_dir: folder of the run; by default runs/smoke/NAME, whose content is replaced.
        overwrite: replace a run in `save_dir`.
        settings: changes of the tiny version, see `presets.adjust`.
        choices: arguments of the preset; data and encoder are made unless they are among them.

    Raises:
        InputError: as the full preset does.
    """
    folder, processes = Path("runs") / "smoke" / name if save_dir is None else Path(save_dir), join()
    inputs = folder / _INPUTS
    if _needs_data(name) and "data" not in choices:
        choices = {**choices, "data": str(inputs / "images")}
    tiny = presets.adjust(smoke(presets.preset(name, **choices)), **(settings or {}))
    config = _with_paths(tiny, inputs)
    check_own_device(tiny.device)
    check_writable(folder, "save_dir")
    with processes.main_process_first():
        if processes.is_main_process:
            replace = overwrite or save_dir is None
            _check_inputs(inputs, overwrite=replace)
            make_room(folder, overwrite=replace)
            shutil.rmtree(inputs, ignore_errors=True)
            _make_inputs(tiny, config, inputs)
    trained = train(config, folder, overwrite=True)
    if isinstance(trained, Run) and processes.is_main_process:
        with warnings.catch_warnings():
            # Figures of so few samples are not reliable.
            warnings.simplefilter("ignore", UserWarning)
            load_run(folder).evaluate(count=_SAMPLES, **_evaluation_options(trained.config, inputs))
    processes.barrier()
    return trained


def _needs_data(name: str) -> bool:
    """Return whether a preset has a required argument `data`."""
    parameters = inspect.signature(presets.PRESETS[name].make).parameters if name in presets.PRESETS else {}
    return "data" in parameters and parameters["data"].default is inspect.Parameter.empty


def _check_inputs(inputs: Path, *, overwrite: bool) -> None:
    """Raise InputError unless the inputs of a quick try may replace what is there."""
    found = {path.name for path in inputs.iterdir()} if inputs.is_dir() else set()
    if found - _PARTS:
        raise InputError(f"save_dir is '{inputs.parent}', whose folder '{inputs.name}' is not of a quick try: name another")
    if found and not overwrite:
        raise InputError(f"save_dir is '{inputs.parent}', which already holds a run: pass --overwrite, or choose another folder")


def _with_paths(config: Any, inputs: Path) -> Any:
    """Return a configuration with paths of the data and of what its encoder needs, where it names none; see `_make_inputs`."""
    if getattr(config.data, "path", "") is None:
        place = inputs / ("latents" if config.data.latent else "images")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(place)))
    if _has_masked_features(config):
        weights = config.encoder.weights or str(inputs / "encoder" / ENCODER_WEIGHTS)
        convnext = None if config.encoder.convnext is None else str(inputs / "convnext")
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights=weights, convnext=convnext))
    return config


def _make_inputs(tiny: Any, config: Any, inputs: Path) -> None:
    """Make what the configuration with paths names and the tiny one does not."""
    images, own = inputs / "images", getattr(config.data, "path", None) in (str(inputs / "images"), str(inputs / "latents"))
    data = config.data
    if own and data.latent:
        write_images(images, image_size=LATENT_IMAGE_SIZE, channels=3)
        write_latents(images, write_vae(inputs / "vae"), inputs / "latents", CacheSettings(image_size=LATENT_IMAGE_SIZE))
    elif own and data.on_disk:
        write_images(images, image_size=data.image_size, channels=3)
    elif own:
        write_images(images, image_size=_SIDES.get(data.name, 16), channels=3 if data.color else 1)
    if _has_masked_features(config):
        if tiny.encoder.weights is None:
            kind = RECIPES[config.preset.removeprefix("imagenet256-")].encoder
            train(dataclasses.replace(smoke(mae(kind)), data=config.data), inputs / "encoder")
        if config.encoder.convnext is not None:
            write_convnext(Path(config.encoder.convnext))


def _has_masked_features(config: Any) -> bool:
    return config.noun == "generator" and config.encoder.published is not None


def _evaluation_options(config: RunConfig, inputs: Path) -> dict[str, Any]:
    """Return the arguments of the evaluation: the extractor and, unless they are the run's own data, the real images."""
    images = inputs / "images"
    if not (config.data.loads_images or config.data.on_disk):
        return {}
    if not images.is_dir():
        return {"extractor": "pixels"}
    # A classifier, because a covariance of all pixels would take minutes.
    data = ImagesData(name="smoke", path=str(images))
    extractor = train(smoke(ClassifierConfig(preset="smoke", data=data)), inputs / "extractor").folder
    return {"extractor": str(extractor)} | ({"real": str(images)} if config.data.latent else {})
