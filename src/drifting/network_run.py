"""The training of a network that is no generator, as it runs: taken up again, shown, saved now and then, and how it stops."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifting._progress import show_steps
from drifting.checkpoint import checkpoints, load_checkpoint, save_checkpoint, save_json, steps_done
from drifting.run_folder import CONFIG
from drifting.training.interruption import Interrupted, polite_stop
from drifting.training.network import EncoderStep, NetworkTraining
from drifting.training.recorder import CHECKPOINTS


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Where the state of a training is saved, and how often.

    Attributes:
        folder: of the run; its configuration is written with the first checkpoint, so that a training that fails before that leaves
            nothing behind.
        facts: the configuration as JSON.
        command: by which a training that was stopped goes on.
        every: steps between checkpoints.
        keep: how many checkpoints to keep.
        checkpoints: name of their folder in that of the run.
    """

    folder: Path
    facts: dict[str, Any]
    command: str
    every: int
    keep: int
    checkpoints: str = CHECKPOINTS

    def save(self, training: NetworkTraining) -> None:
        """Write the configuration and a checkpoint; a state that is not finite takes the place of none."""
        training.state.check_faults()
        save_json(self.folder / CONFIG, self.facts)
        step, tensors = training.state.step, training.state.tensors()
        save_checkpoint(self.folder / self.checkpoints, step, tensors, self.facts, keep=self.keep)

    def restore(self, training: NetworkTraining) -> None:
        """Take a training back to its newest checkpoint, if there is one, or raise InputError if that is beyond its last step."""
        for newest in checkpoints(self.folder / self.checkpoints)[-1:]:
            done = steps_done(newest, training.steps)
            training.state.restore(load_checkpoint(newest)[0], done, str(newest))


def follow(training: NetworkTraining, saving: Saving, *, what: str, batch_size: int) -> None:
    """Take all steps of a training that are left after its newest checkpoint.

    Args:
        training: which; its state is advanced in place.
        saving: where its state is saved, and was before.
        what: is trained, as it is shown.
        batch_size: images of a step.

    Raises:
        InputError: if a checkpoint is damaged, or of another network or beyond the last step.
        DivergenceError: if the loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    saving.restore(training)
    show_steps(_saved(training, saving), training.steps, batch_size, what=what, done=training.state.step)


def _saved(training: NetworkTraining, saving: Saving) -> Iterator[EncoderStep]:
    """Pass steps on; save the state now and then, in the end, and where training is asked to stop, which it then does."""
    with polite_stop() as stop:
        for step in training:
            yield step
            if stop or step.number % saving.every == 0 or step.number == training.steps:
                saving.save(training)
            if stop and step.number < training.steps:
                raise Interrupted(step.number, training.steps, saving.command)
