"""How a run shows that it is alive: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drifting.training.network import EncoderStep

# Seconds between lines where there is no terminal.
_QUIET_SECONDS = 20.0
# Steps between two looks at a loss; looking waits for the device.
_LOOK_EVERY = 50


class TrainingProgress:
    """A context that shows steps/s, samples/s, time left and the raw drift norm.

    Args:
        steps: the last step of the run.
        done: steps already behind it.
        samples_per_step: generated samples in one step.
        what: is trained: a generator, whose raw drift norm is shown, or another network, whose loss is.
        console: where to write; the terminal by default.
    """

    def __init__(
        self, steps: int, done: int, samples_per_step: int, *, what: str = "generator", console: Console | None = None
    ) -> None:
        self._steps, self._first, self._samples_per_step = steps, done, samples_per_step
        self._console = console or Console()
        self._started = self._spoken = time.perf_counter()
        self._figure_name = "raw drift norm" if what == "generator" else f"loss of the {what}"
        self._figure = "not read yet"
        columns = (
            TextColumn(f"training the {what}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("training", total=steps, completed=done, speed="")

    def __enter__(self) -> "TrainingProgress":
        """Start to show."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop showing."""
        self._bar.stop()

    def advance(self, step: int, figure: float | None = None) -> None:
        """Tell that a step is done; `figure` (raw drift norm or loss) is given when it was read from the device."""
        self._figure = self._figure if figure is None else f"{figure:.3g}"
        now = time.perf_counter()
        rate = (step - self._first) / max(now - self._started, 1e-9)
        speed = f"{rate:.1f} steps/s  {rate * self._samples_per_step:,.0f} samples/s  {self._figure_name} {self._figure}"
        self._bar.update(self._task, completed=step, speed=speed)
        if not self._console.is_terminal and (now - self._spoken > _QUIET_SECONDS or step == self._steps):
            self._spoken = now
            left = (self._steps - step) / rate
            self._console.print(f"step {step}/{self._steps}  {speed}  {left:.0f} s left", highlight=False, soft_wrap=True)


def show_steps(steps: Iterable[EncoderStep], total: int, batch_size: int, *, what: str, done: int = 0) -> None:
    """Go through the steps of a network's training, and show them.

    Args:
        steps: of `training.encoder` or `training.self_supervised`.
        total: how many there are.
        batch_size: images of a step.
        what: is trained.
        done: how many are behind it.
    """
    with TrainingProgress(total, done, batch_size, what=what) as progress:
        for step in steps:
            seen = step.number % _LOOK_EVERY == 0 or step.number == total
            progress.advance(step.number, float(step.loss) if seen else None)
