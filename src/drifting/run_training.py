"""A training as it runs: what is shown, logged, set aside and saved between its steps, and how it stops."""

import time

from rich.console import Console

from drifting import config as configuration
from drifting._progress import TrainingProgress
from drifting.config import RunConfig
from drifting.encoders.base import FeatureEncoder
from drifting.training.interruption import Interrupted, command_to_go_on, polite_stop
from drifting.training.loop import train as training_steps
from drifting.training.positives import Positives
from drifting.training.recorder import Recorder, Resources, frame_steps


def follow(recorder: Recorder, config: RunConfig, positives: Positives, encoder: FeatureEncoder) -> None:
    """Run the loop: log, set frames aside, save, and stop where asked to, or where another process is.

    Raises:
        DivergenceError: if the loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop.
    """
    state, schedule, processes = recorder.state, config.schedule, recorder.state.processes
    frames_at = frame_steps(schedule.steps, config.frames)
    choices = len(state.averages) + 1 if len(state.averages) > 1 else 0  # snapshots of `choose_average`
    loss = configuration.build_loss(config)
    if state.step == 0:
        recorder.take_frame()
    last_time, last_step = time.perf_counter(), state.step
    samples_per_step = min(schedule.labels_per_step, positives.num_classes or 1) * schedule.generated
    resources = Resources(state.device, state.step, samples_per_step)
    console = Console(quiet=not processes.leads)
    progress = TrainingProgress(schedule.steps, state.step, samples_per_step, console=console)
    with progress, polite_stop() as stop:
        for step in training_steps(state, positives, encoder, loss, schedule):
            recorder.observe(step)
            more: dict[str, int | float] = {}
            if step.number in frames_at:
                with progress.apart(choices + sum(at > step.number for at in frames_at)):
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
            stopped = processes.any(bool(stop))
            if stopped or step.number % config.checkpoint_every == 0 or step.number == schedule.steps:
                recorder.save()
            if stopped and step.number < schedule.steps:
                raise Interrupted(step.number, schedule.steps, command_to_go_on(config.preset, recorder.folder, processes.size))
