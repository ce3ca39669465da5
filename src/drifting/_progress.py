"""Progress of long work: a bar on a terminal, or a line from time to time elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

# Seconds between two lines without a terminal.
_QUIET_SECONDS = 20.0

# Seconds before the progress of work that is usually short is shown.
_SHORT = 3.0

Shown = TypeVar("Shown", bound="CountProgress")
Batch = TypeVar("Batch", bound=tuple)


class CountProgress:
    """A context that shows the progress of long work, its speed and the time left.

    Args:
        title: name of the work.
        total: number of items.
        unit: name of the items, plural.
        done: number of items that are done already.
        word: beginning of a line without a terminal; the title by default.
        console: where to write; the terminal by default.
        patience: seconds before anything is shown; shorter work shows nothing.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str = "images",
        done: int = 0,
        word: str | None = None,
        console: Console | None = None,
        patience: float = 0.0,
    ) -> None:
        self._patience = patience
        self._total, self._first, self._unit, self._word = total, done, unit, word or title
        self._console = console or Console()
        self._started = self._printed = time.perf_counter()
        # Seconds of other work between items, and the number of such pauses so far and to come.
        self._paused, self._pauses, self._pauses_left = 0.0, 0, 0
        columns = (
            # Titles contain names of users, so they are not parsed as markup.
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[speed]}", markup=False),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done, speed="", left="")

    def __enter__(self: Shown) -> Shown:
        """Start to show the progress."""
        if not self._patience:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop showing the progress."""
        if self._bar.live.is_started:
            self._bar.stop()

    @contextmanager
    def pause(self, left: int) -> Iterator[None]:
        """Return a context for other work between items, which does not count in the speed; `left` more pauses are to come."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started
        self._pauses, self._pauses_left = self._pauses + 1, left

    def advance(self, done: int) -> None:
        """Set the number of items that are done."""
        now = time.perf_counter()
        if now - self._started < self._patience:
            return
        self._bar.start()
        rate = (done - self._first) / max(now - self._started - self._paused, 1e-9)
        left = (self._total - done) / max(rate, 1e-9) + self._pauses_left * self._paused / max(1, self._pauses)
        speed = self._speed(rate)
        # Before the first item the estimate is meaningless.
        clock = f"{timedelta(seconds=round(left))}" if left < 1e9 else ""
        self._bar.update(self._task, completed=done, speed=speed, left=clock)
        if not self._console.is_terminal and (now - self._printed > _QUIET_SECONDS or done == self._total):
            self._printed = now
            line = f"{self._word} {done}/{self._total}  {speed}  {left:.0f} s left"
            self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _speed(self, rate: float) -> str:
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self._unit}/s"


class TrainingProgress(CountProgress):
    """The progress of a training: steps/s, samples/s, time left and the raw drift norm.

    Args:
        steps: number of steps of the whole run.
        done: number of steps that are done already.
        samples_per_step: number of generated samples in a step.
        what: name of the network; for a generator the raw drift norm is shown, for others the loss.
        console: where to write; the terminal by default.

    Attributes:
        noise: noise floor of the raw drift norm, shown beside it; None until it is known.
    """

    def __init__(
        self, steps: int, done: int, samples_per_step: int, *, what: str = "generator", console: Console | None = None
    ) -> None:
        super().__init__(f"training the {what}", steps, unit="steps", done=done, word="step", console=console)
        self._samples_per_step = samples_per_step
        self._figure_name = "raw drift norm" if what == "generator" else f"loss of the {what}"
        self._figure = "not read yet"
        self.noise: float | None = None

    def advance(self, done: int, figure: float | None = None) -> None:
        """Set the number of steps that are done, and the raw drift norm or loss, if it was read from the device."""
        noise = "" if self.noise is None else f" (noise {self.noise:.3g})"
        self._figure = self._figure if figure is None else f"{figure:.3g}{noise}"
        super().advance(done)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _speed(self, rate: float) -> str:
        return f"{rate:.1f} steps/s  {rate * self._samples_per_step:,.0f} samples/s  {self._figure_name} {self._figure}"


def print_stage(number: int, total: int, what: str, steps: int) -> None:
    """Print which part of a run begins, such as "Stage 1 of 2: the auto-encoder, 2000 steps"."""
    Console().print(f"Stage {number} of {total}: the {what}, {steps} steps", highlight=False, markup=False, soft_wrap=True)


def print_compiling() -> None:
    """Print on stderr why the first step takes longer than all others."""
    line = "Compiling the field for this processor, which takes about 20 seconds and is done once ..."
    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def show_sampling(count: int, *, quiet: bool = False) -> CountProgress:
    """Return a context that shows the progress of sampling on stderr, if it takes long."""
    return CountProgress("sampling", count, unit="samples", console=Console(stderr=True, quiet=quiet), patience=_SHORT)


def show_encoding(count: int, *, quiet: bool = False) -> CountProgress:
    """Return a context that shows the progress of encoding real images, if it takes long."""
    return CountProgress("encoding real images", count, console=Console(quiet=quiet), patience=_SHORT)


def print_lines(title: str, *, unit: str = "images") -> Callable[[int, int], None]:
    """Return a function of (items done, items in total) that prints a line from time to time, also on a terminal."""
    shown: list[CountProgress] = []

    def print_line(done: int, total: int) -> None:
        if not shown:
            shown.append(CountProgress(title, total, unit=unit, console=Console(force_terminal=False)))
        shown[0].advance(done)

    return print_line


def show_images(batches: Iterable[Batch], total: int, *, what: str, console: Console | None = None) -> Iterator[Batch]:
    """Yield batches of images and show how many are done. A batch is released before the next one is read.

    Args:
        batches: tuples that begin with the images.
        total: number of images.
        what: name of the work.
        console: where to write; the terminal by default.
    """
    done = 0
    with CountProgress(what, total, console=console) as progress:
        for batch in batches:
            done += len(batch[0])
            yield batch
            del batch
            progress.advance(done)
