"""How a run shows that it is alive: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Protocol, SupportsFloat, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

# Seconds between lines where there is no terminal.
_QUIET_SECONDS = 20.0

# Seconds of work of which nothing need be shown.
_SHORT = 3.0

# Steps between two looks at a loss; looking waits for the device.
_LOOK_EVERY = 50
Shown = TypeVar("Shown", bound="CountProgress")
Batch = TypeVar("Batch", bound=tuple)


@runtime_checkable
class _Step(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def loss(self) -> SupportsFloat: ...


class CountProgress:
    """A context that shows how far a long work is, its speed and the time left.

    Args:
        title: what is done.
        total: how many items there are.
        unit: what they are.
        done: how many are behind it already.
        word: what a line begins with where there is no terminal; the title by default.
        console: where to write; the terminal by default.
        patience: seconds of which nothing is shown: what ends before is no long work.
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
        self._started = self._spoken = time.perf_counter()
        # Seconds of other work between items, how often there was some, and how often there will be.
        self._apart, self._pauses, self._pauses_left = 0.0, 0, 0
        columns = (
            # Titles are names too: nothing in them is markup, nor a place to fill.
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[speed]}", markup=False),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done, speed="", left="")

    def __enter__(self: Shown) -> Shown:
        """Start to show."""
        if not self._patience:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop showing."""
        if self._bar.live.is_started:
            self._bar.stop()

    @contextmanager
    def apart(self, left: int) -> Iterator[None]:
        """Give a block of other work between items: no part of the speed, but of the time left, where `left` more are to come."""
        started = time.perf_counter()
        yield
        self._apart += time.perf_counter() - started
        self._pauses, self._pauses_left = self._pauses + 1, left

    def advance(self, done: int) -> None:
        """Tell that so many items are done."""
        now = time.perf_counter()
        if now - self._started < self._patience:
            return
        self._bar.start()
        rate = (done - self._first) / max(now - self._started - self._apart, 1e-9)
        left = (self._total - done) / max(rate, 1e-9) + self._pauses_left * self._apart / max(1, self._pauses)
        speed = self._speed(rate)
        self._bar.update(self._task, completed=done, speed=speed, left=_clock(left))
        if not self._console.is_terminal and (now - self._spoken > _QUIET_SECONDS or done == self._total):
            self._spoken = now
            line = f"{self._word} {done}/{self._total}  {speed}  {left:.0f} s left"
            self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _speed(self, rate: float) -> str:
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self._unit}/s"


def _clock(seconds: float) -> str:
    """Return a time in hours, minutes and seconds; nothing where it is beyond all measure, since nothing is done yet."""
    return f"{timedelta(seconds=round(seconds))}" if seconds < 1e9 else ""


class TrainingProgress(CountProgress):
    """The same of a training: steps/s, samples/s, time left and the raw drift norm.

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
        super().__init__(f"training the {what}", steps, unit="steps", done=done, word="step", console=console)
        self._samples_per_step = samples_per_step
        self._figure_name = "raw drift norm" if what == "generator" else f"loss of the {what}"
        self._figure = "not read yet"

    def advance(self, done: int, figure: float | None = None) -> None:
        """Tell that a step is done; `figure` (raw drift norm or loss) is given when it was read from the device."""
        self._figure = self._figure if figure is None else f"{figure:.3g}"
        super().advance(done)

    def _speed(self, rate: float) -> str:
        return f"{rate:.1f} steps/s  {rate * self._samples_per_step:,.0f} samples/s  {self._figure_name} {self._figure}"


def tell_stage(number: int, total: int, what: str, steps: int) -> None:
    """Say which part of a long work begins: "Stage 1 of 2: the auto-encoder, 2000 steps"."""
    Console().print(f"Stage {number} of {total}: the {what}, {steps} steps", highlight=False, markup=False, soft_wrap=True)


def show_sampling(count: int, *, quiet: bool = False) -> CountProgress:
    """Return a context that shows how many samples there are, where that takes long; not where a command prints its results."""
    return CountProgress("sampling", count, unit="samples", console=Console(stderr=True, quiet=quiet), patience=_SHORT)


def show_encoding(count: int, *, quiet: bool = False) -> CountProgress:
    """Return a context that shows how many real images have their features, where that takes long."""
    return CountProgress("encoding real images", count, console=Console(quiet=quiet), patience=_SHORT)


def tell_lines(title: str, *, unit: str = "images") -> Callable[[int, int], None]:
    """Return a function of (items done, items to do) that tells of a long work by a line now and then, whatever else is shown."""
    shown: list[CountProgress] = []

    def tell(done: int, total: int) -> None:
        if not shown:
            shown.append(CountProgress(title, total, unit=unit, console=Console(force_terminal=False)))
        shown[0].advance(done)

    return tell


def show_steps(steps: Iterable[_Step], total: int, batch_size: int, *, what: str, done: int = 0) -> None:
    """Go through the steps of a network's training, and show them.

    Args:
        steps: of the loop, each with a number and a loss.
        total: how many there are.
        batch_size: images of a step.
        what: is trained.
        done: how many are behind it.
    """
    with TrainingProgress(total, done, batch_size, what=what) as progress:
        for step in steps:
            seen = step.number % _LOOK_EVERY == 0 or step.number == total
            progress.advance(step.number, float(step.loss) if seen else None)


def show_images(batches: Iterable[Batch], total: int, *, what: str, console: Console | None = None) -> Iterator[Batch]:
    """Pass batches of images on, and show how many are done; none is held once the next one is asked for.

    Args:
        batches: tuples that begin with the images.
        total: how many images there are.
        what: they are.
        console: where to write; the terminal by default.
    """
    done = 0
    with CountProgress(what, total, console=console) as progress:
        for batch in batches:
            done += len(batch[0])
            yield batch
            del batch
            progress.advance(done)
