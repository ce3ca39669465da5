"""From a configuration to a trained run in a folder: what is shown, logged, set aside and saved, and how it stops."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import overload

from rich.console import Console
from torch import nn

from drifting import config as configuration
from drifting._files import check_space, check_writable, hold
from drifting._progress import TrainingProgress, tell_stage
from drifting.checkpoint import load_weights, save_json, save_tensors
from drifting.config import AnyConfig, ClassifierConfig, EncoderRunConfig, RunConfig
from drifting.data import forget_data
from drifting.data.dataset import reference_samples
from drifting.distributed import Processes, check_device, is_sharded, join, whole
from drifting.encoders.base import FeatureEncoder
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.runs import pictures as drawing
from drifting.runs import pretrain
from drifting.runs.assemble import build_encoder, build_positives, with_network
from drifting.runs.endings import ending
from drifting.runs.folder import CONFIG, ENCODER_WEIGHTS, RECONSTRUCTION, WEIGHTS, claim
from drifting.runs.run import Run, TrainedNetwork
from drifting.training.loop import check_shares
from drifting.training.loop import train as training_steps
from drifting.training.positives import Positives
from drifting.training.recorder import Recorder, Resources, snapshot_steps
from drifting.training.signals import Interrupted, command_to_go_on, polite_stop
from drifting.training.state import TrainingState

# Real samples that the snapshots of a run are compared with: not those drawn in the pictures or in an evaluation.
_REFERENCE_SEED = 1


@overload
def train(config: RunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run: ...


@overload
def train(
    config: ClassifierConfig | EncoderRunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False
) -> TrainedNetwork: ...


def train(config: AnyConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run | TrainedNetwork:
    """Train whatever the configuration is of: a generator, and the encoder that it needs, or an encoder or a classifier alone.

    Args:
        config: from a preset, or written by hand.
        save_dir: the folder of the run.
        resume: continue from the newest checkpoint of the folder; only what changes no figure may differ.
        overwrite: delete the run that is there first.

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
    if isinstance(config, RunConfig):
        return _train_generator(config, Path(save_dir), join(), resume=resume, overwrite=overwrite)
    if (size := join().size) > 1:
        raise InputError(f"world size is {size}, but '{config.preset}' is trained by one process: start it without torchrun")
    return _train_network(config, Path(save_dir), resume=resume, overwrite=overwrite)


def _train_network(config: ClassifierConfig | EncoderRunConfig, folder: Path, *, resume: bool, overwrite: bool) -> TrainedNetwork:
    """Train an encoder for generators to drift in its features, or a classifier for their evaluation, into a folder."""
    config, network = with_network(config, folder, join(), overwrite=overwrite)
    check_writable(folder, "save_dir")
    with hold(folder, "save_dir"):
        claim(folder, config, resume=resume, overwrite=overwrite)
        _tell_found(config)
        with ending(folder, config, join(), command=pretrain.command_of(config, folder), resume=resume):
            return pretrain.train_alone(config, network, folder)


def _tell_found(config: AnyConfig) -> None:
    if lines := config.data.report():
        print(*lines, sep="\n", flush=True)


def _train_generator(config: RunConfig, folder: Path, processes: Processes, *, resume: bool, overwrite: bool) -> Run:
    """Train a generator, and the encoder that it needs, together with all processes that were started to do so.

    A resumed run may have another number of processes.
    """
    check_device(config.device, processes)
    config, network = with_network(config, folder, processes, overwrite=overwrite)
    source, generator = config.data.source(config.seed), config.build_generator()
    check_shares(config.schedule, source.num_classes, processes)
    # What freezes a network comes after its training.
    encoder = None if config.trains_encoder else build_encoder(config, network)
    config.data.exporter()
    command = command_to_go_on(config.preset, folder, processes.size)
    with ExitStack() as held:
        with processes.main_process_first():
            if processes.is_main_process:
                check_writable(folder, "save_dir")
                _check_space(folder, config, generator, resume=resume, overwrite=overwrite)
                held.enter_context(hold(folder, "save_dir"))
                claim(folder, config, resume=resume, overwrite=overwrite)
            held.enter_context(ending(folder, config, processes, command=command, resume=resume))
            encoder = _prepare(config, folder, network, encoder)
            positives = build_positives(config, encoder, folder / "features")
        shared = {"processes": processes, "sharded": config.parallel == "fsdp"}
        state = TrainingState(generator.to(config.device), config.schedule, config.seed, **shared)
        recorder = Recorder(
            folder,
            state,
            positives,
            facts=configuration.to_json(config),
            reference=reference_samples(source, config.snapshot_samples, seed=_REFERENCE_SEED, limit=True),
            snapshot_samples=config.snapshot_samples,
            keep=config.keep,
            guidance_scale=config.schedule.scale_of_samples(),
        )
        if config.trains_encoder and processes.is_main_process:
            tell_stage(2, 2, "generator", config.schedule.steps)
        if resume:
            # Stopped in the training of its encoder, or soon after, a run has no checkpoint of its generator yet.
            recorder.resume(config.schedule.steps, may_begin=config.trains_encoder)
        if state.step == config.schedule.steps and processes.is_main_process:
            print(f"{folder} is finished, with all {state.step} steps: pass a higher --steps to train it further", flush=True)
        follow(recorder, config, positives, encoder)
        return _finish(recorder, config)


def _prepare(config: RunConfig, folder: Path, network: nn.Module | None, encoder: FeatureEncoder | None) -> FeatureEncoder:
    """Tell what was found, return the encoder, trained if it is not yet, and write the configuration."""
    # An encoder that is there may turn out not to fit; one that is not is trained first.
    has_encoder, is_main = (folder / ENCODER_WEIGHTS).exists(), join().is_main_process
    if is_main and not has_encoder:
        _tell_found(config)
    pretrain.prepare_encoder(config, folder, network)
    encoder = build_encoder(config, network) if encoder is None else encoder
    if is_main and has_encoder:
        _tell_found(config)
    if is_main:
        save_json(folder / CONFIG, configuration.to_json(config))
    return encoder


def _check_space(folder: Path, config: RunConfig, generator: Generator, *, resume: bool, overwrite: bool) -> None:
    """Raise StorageError unless two checkpoints fit on the disk, or one more where the run is resumed."""
    weights = sum(value.numel() * value.element_size() for value in generator.state_dict().values())
    # The weights, their averages, and two moments of each.
    checkpoint = weights * (2 + len(config.schedule.other_ema_decays) + 2)
    deleted = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if overwrite else []
    check_space(folder, checkpoint * (1 if resume else 2) - sum(deleted), "save_dir")


def _finish(recorder: Recorder, config: RunConfig) -> Run:
    """Write the weights of the generator and the pictures."""
    folder, state = recorder.folder, recorder.state
    generator, pictures = state.averaged, []
    weights = {name: whole(value).cpu() for name, value in generator.state_dict().items()}
    if is_sharded(generator):  # for good
        generator = config.build_generator()
        load_weights(generator, weights, str(folder))
    if state.processes.is_main_process:
        save_tensors(folder / WEIGHTS, weights)
        pictures = drawing.build_pictures(config)(folder, snapshots=recorder.snapshots, log=recorder.log.read())
        reconstruction = folder / RECONSTRUCTION
        pictures += [reconstruction] if reconstruction.exists() else []
    state.processes.barrier()
    return Run(folder, config, generator.cpu().requires_grad_().eval(), tuple(pictures))


def follow(recorder: Recorder, config: RunConfig, positives: Positives, encoder: FeatureEncoder) -> None:
    """Run the loop: log, set snapshots aside, save, and stop where asked to, or where another process is.

    Raises:
        DivergenceError: if the loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop.
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
                with progress.apart(choices + sum(at > step.number for at in snapshots_at)):
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
