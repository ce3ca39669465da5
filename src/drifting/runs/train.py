"""From a configuration to a trained run in a folder: what is shown, logged, set aside and saved, and how it stops.

The parts of a run are assembled once and in this order: weights and data, networks, real samples. If the data of a recipe on
latents are images, their latents are written first, once, beside the folder of the run.
"""

import dataclasses
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import torch
from rich.console import Console
from torch import Tensor, nn

from drifting import config as configuration
from drifting._checks import check_device
from drifting._files import check_space, hold
from drifting._json import save_json
from drifting._progress import TrainingProgress, print_compiling, print_lines, print_stage, show_encoding
from drifting._torch import without_weights
from drifting.checkpoint import load_tensors, save_tensors
from drifting.config import AnyConfig, ClassifierConfig, EncoderRunConfig, RunConfig
from drifting.data import ImagesData, Source, forget_data
from drifting.data.pixels import to_signed
from drifting.data.sources import reference_samples
from drifting.distributed import Processes, check_devices, is_sharded, join, whole
from drifting.encoders.base import FeatureEncoder, identity
from drifting.errors import InputError
from drifting.fields.backends import must_compile
from drifting.generators.base import Generator
from drifting.presets.encoders import CONFIG, ENCODER_WEIGHTS, check_images
from drifting.runs import pictures as drawing
from drifting.runs import pretrain
from drifting.runs import report as reporting
from drifting.runs.doctor import Watch
from drifting.runs.folder import METRICS, RECONSTRUCTION, WEIGHTS, claim, command_to_go_on, ending, note_environment
from drifting.runs.latents import with_latents
from drifting.runs.run import Run, TrainedNetwork
from drifting.runs.track import check_track, tracking
from drifting.training.encoder import learner_of
from drifting.training.loop import Interrupted, check_shares, polite_stop
from drifting.training.loop import train as training_steps
from drifting.training.positives import FeatureCache, Positives
from drifting.training.recorder import OnSnapshot, OnStep, Recorder, Resources, snapshot_steps
from drifting.training.state import TrainingState
from drifting.training.step import computed_in

Config = TypeVar("Config", bound=AnyConfig)

# Seed of the real samples that snapshots are compared with; pictures and evaluations draw others.
_REFERENCE_SEED = 1


@overload
def train(
    config: RunConfig,
    save_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    track: str | None = None,
    on_step: OnStep | None = None,
    on_snapshot: OnSnapshot | None = None,
) -> Run: ...


@overload
def train(
    config: ClassifierConfig | EncoderRunConfig, save_dir: str | Path, *, resume: bool = False, overwrite: bool = False
) -> TrainedNetwork: ...


def train(
    config: AnyConfig,
    save_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    track: str | None = None,
    on_step: OnStep | None = None,
    on_snapshot: OnSnapshot | None = None,
) -> Run | TrainedNetwork:
    """Train a generator, with its encoder if it needs one, or an encoder or a classifier alone, as configured.

    Args:
        config: configuration from a preset, or written by hand.
        save_dir: folder of the run.
        resume: continue from the newest checkpoint in the folder; settings that change the result must be the same.
        overwrite: delete the run in the folder first.
        track: "tensorboard" or "wandb" to send figures, snapshots and the configuration of a generator there; changes no result.
        on_step: called with every `training.loop.Step` of a generator. Its values are on the device: reading them waits for it.
        on_snapshot: called with the step and the samples of every snapshot of a generator, in the form of `Run.sample`. Samples of
            the last step come twice if several averages of the weights are kept: at last, those of the best average.

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
    if track is not None:
        check_track(track, config)
    forget_data()
    processes = join()
    if isinstance(config, RunConfig):
        options: Any = {"track": track, "called": (on_step, on_snapshot)}
        return _train_generator(config, Path(save_dir), processes, resume=resume, overwrite=overwrite, **options)
    if on_step is not None or on_snapshot is not None:
        raise InputError(f"on_step or on_snapshot is given, but '{config.preset}' trains no generator: leave them out")
    if processes.size > 1:
        size = processes.size
        raise InputError(f"world size is {size}, but '{config.preset}' is trained by one process: start it without torchrun")
    return train_network(config, Path(save_dir), processes, resume=resume, overwrite=overwrite)


def train_network(
    config: ClassifierConfig | EncoderRunConfig, folder: Path, processes: Processes, *, resume: bool, overwrite: bool
) -> TrainedNetwork:
    """Train a feature encoder, or a classifier for evaluations, into a folder."""
    config, network = with_network(config, folder, processes, overwrite=overwrite)
    with hold(folder, "save_dir"):
        claim(folder, config, resume=resume, overwrite=overwrite)
        _print_lines(config.data.report())
        with ending(folder, config, processes, resume=resume):
            return pretrain.train_alone(config, network, folder)


def _print_lines(lines: list[str]) -> None:
    if lines:
        print(*lines, sep="\n", flush=True)


def _train_generator(
    config: RunConfig,
    folder: Path,
    processes: Processes,
    *,
    resume: bool,
    overwrite: bool,
    track: str | None,
    called: tuple[OnStep | None, OnSnapshot | None],
) -> Run:
    """Train a generator, with its encoder if it needs one, together with all processes of the launch.

    A resumed run may have another number of processes.
    """
    check_devices(config.device, processes)
    config, network = with_network(config, folder, processes, overwrite=overwrite)
    source, generator = config.data.source(config.seed), config.build_generator()
    check_shares(config.schedule, source.num_classes, processes, learns=config.encoder.learns)
    trains_encoder, is_main = config.trains_encoder, processes.is_main_process
    # The feature encoder freezes its network, so it is built after the network is trained.
    encoder = None if trains_encoder else build_encoder(config, network)
    export, facts = config.data.exporter(), configuration.to_json(config)
    with ExitStack() as held:
        with processes.main_process_first():
            if is_main:
                held.enter_context(hold(folder, "save_dir"))
                _check_space(folder, config, generator, resume=resume, overwrite=overwrite)
                claim(folder, config, resume=resume, overwrite=overwrite)
            held.enter_context(ending(folder, config, processes, resume=resume))
            tracker = None
            if track is not None and is_main:
                tracker = held.enter_context(tracking(track, folder, config, generator, resumed=resume))
            encoder = _prepare(config, folder, network, encoder, is_main=is_main)
            if is_main:
                save_json(folder / CONFIG, facts)
            positives = build_positives(config, encoder, folder / "features", source=source)
        result = without_weights(generator) if (sharded := config.parallel == "fsdp") else None
        generator = generator.to(config.device)
        learned = learner_of(network, config.encoder) if config.encoder.learns else None
        state = TrainingState(generator, config.schedule, config.seed, encoder=learned, processes=processes, sharded=sharded)
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
        recorder.tracking = tracker
        if is_main and any(called):
            recorder.call(*called, export)
        if trains_encoder and is_main:
            print_stage(2, 2, "generator", config.schedule.steps)
        if resume:
            # A run that was stopped while its encoder was trained, or soon after, has no checkpoint of its generator yet.
            recorder.resume(config.schedule.steps, may_begin=trains_encoder)
        if is_main and state.step < config.schedule.steps:
            note_environment(folder, config, state.step)
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


def _check_space(folder: Path, config: RunConfig, generator: Generator, *, resume: bool, overwrite: bool) -> None:
    """Raise StorageError unless two checkpoints fit on the disk, or one more if the run is resumed."""
    weights = sum(value.numel() * value.element_size() for value in generator.state_dict().values())
    # The weights, their averages, and two moments of each.
    checkpoint = weights * (2 + len(config.schedule.other_ema_decays) + 2)
    deleted = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if overwrite else []
    check_space(folder, checkpoint * (1 if resume else 2) - sum(deleted), "save_dir")


def _finish(recorder: Recorder, config: RunConfig, source: Source, unsharded: Generator | None) -> Run:
    """Write the weights of the generator, the pictures and the report.

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
        _forget_figures(folder, weights)
        save_tensors(folder / WEIGHTS, weights)
        pictures = drawing.draw_pictures(config, folder, snapshots=recorder.snapshots, log=recorder.log.read(), source=source)
        reconstruction = folder / RECONSTRUCTION
        pictures += [reconstruction] if reconstruction.exists() else []
        reporting.write_report([folder], source=source)
    state.processes.barrier()
    return Run(folder, config, generator.cpu().requires_grad_().eval(), tuple(pictures))


def _forget_figures(folder: Path, weights: dict[str, Tensor]) -> None:
    """Delete the figures of an evaluation in the folder of a run, unless they are of these weights."""
    if not (folder / METRICS).exists():
        return
    before: dict[str, Tensor] = {}
    with suppress(InputError):  # missing or damaged
        before = load_tensors(folder / WEIGHTS)
    if before.keys() != weights.keys() or not all(torch.equal(before[name], value) for name, value in weights.items()):
        (folder / METRICS).unlink()


def follow(recorder: Recorder, config: RunConfig, positives: Positives, encoder: FeatureEncoder) -> None:
    """Run the training loop: log, take snapshots, save, and stop when this or another process is stopped.

    Raises:
        DivergenceError: if the loss becomes NaN or infinite.
        Interrupted: if a signal stopped the process.
    """
    state, schedule, processes = recorder.state, config.schedule, recorder.state.processes
    is_main = processes.is_main_process
    snapshots_at = snapshot_steps(schedule.steps, config.snapshots)
    choices = len(state.averages) + 1 if len(state.averages) > 1 else 0  # snapshots of `choose_average`
    loss = config.loss.build()
    if state.step == 0:
        recorder.take_snapshot()
    if is_main and state.step < schedule.steps and must_compile(loss.field, state.device):
        print_compiling()
    last_time, last_step = time.perf_counter(), state.step
    samples_per_step = min(schedule.labels_per_step, positives.num_classes or 1) * schedule.generated
    resources = Resources(state.device, state.step, samples_per_step)
    console = Console(quiet=not is_main)
    progress = TrainingProgress(schedule.steps, state.step, samples_per_step, console=console)
    watch: Watch | None = None
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
                watch = watch or Watch(recorder, config, encoder, progress)
                drift_norm = watch.write(step, **more)
            progress.advance(step.number, drift_norm)
            stopped = processes.any(bool(stop))
            if stopped or step.number % config.checkpoint_every == 0 or step.number == schedule.steps:
                recorder.save()
            if stopped and step.number < schedule.steps:
                raise Interrupted(step.number, schedule.steps, command_to_go_on(config, recorder.folder, processes.size))
    if watch is not None:
        watch.conclude()


def with_network(config: Config, folder: Path, processes: Processes, *, overwrite: bool) -> tuple[Config, nn.Module | None]:
    """Return the complete configuration and the network that it builds, without writing into the folder.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        processes: the processes that train it.
        overwrite: whether a run in the folder would be deleted.

    Raises:
        InputError: if a part cannot be found, built or loaded, or lacks the images it needs.
    """
    config, network = find_weights(config), None
    if config.data.latent:
        config, network = with_latents(config, folder, processes, overwrite=overwrite)
    config = _with_data(config)
    network = config.build_network() if network is None else network
    if network is not None and config.data.loads_images:
        # The labels only measure an encoder that learns without them.
        only_probed = config.finds_labels and not config.learns_classes
        cast(ImagesData, config.data).load("test", labeled=only_probed)
    return config, network


def resolve(config: Config) -> Config:
    """Return the complete and checked configuration, with all facts about the data."""
    return _with_data(find_weights(config))


def _with_data(config: Config) -> Config:
    """Return the configuration with all facts about the data; the weights of its encoder are known already."""
    check_device(config.device)
    data = config.data.find(labeled=config.finds_labels)
    if data != config.data:
        config = dataclasses.replace(config, data=data)
        check_images(config)
    return config


def find_weights(config: Config) -> Config:
    """Return the configuration with the weights of its pretrained encoder: by default those of the authors.

    Raises:
        InputError: if they are not there, or cannot be downloaded.
    """
    encoder: Any = getattr(config, "encoder", None)
    return config if encoder is None or encoder.published is None else pretrain.with_published(config)


def build_encoder(config: RunConfig, network: nn.Module | None = None) -> FeatureEncoder:
    """Return the feature encoder of a run, around its trained network if it has one."""
    encoder = identity if config.encoder.plain else config.encoder.build_features(network, config.device)
    encoder = torch.compile(encoder) if config.schedule.compile else encoder
    return computed_in(config.schedule.precision, encoder, config.device)


def build_positives(
    config: RunConfig, encoder: FeatureEncoder, folder: Path | None = None, *, source: Source | None = None
) -> Positives:
    """Return the source of features of real samples: from the whole data set or a bank, encoded anew or from a cache.

    Args:
        config: configuration of the run.
        encoder: feature encoder of the run.
        folder: folder for a cache of features that is too large for memory.
        source: source of real samples, used unless they come from a bank or a cache; None to make it here.
    """
    cache, data, device = None, config.data, config.device
    if config.cache_features and config.encoder.objective is not None and data.loads_images:
        images = cast(ImagesData, data).load("train").images
        with show_encoding(len(images), quiet=not join().is_main_process) as progress:
            options = {"prepare": lambda rows: to_signed(rows.to(device)), "folder": folder}
            cache = FeatureCache(encoder, images, **options, on_progress=progress.advance)
    if source is None or config.bank is not None or cache is not None:
        on_progress = print_lines("reading real samples into the memory bank")
        source = data.source(config.seed, config.bank, device=device, indexed=cache is not None, on_progress=on_progress)
    schedule = config.schedule
    return Positives(source, encoder, cache, batch_size=schedule.microbatch_size, later=schedule.labels_per_microbatch is not None)
