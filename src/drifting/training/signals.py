"""How a training is asked to stop: between two steps, with everything saved."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Interrupted(Exception):
    """Training was stopped from outside; the state is saved. The message says how to go on.

    Args:
        step: that it stopped after.
        steps: that there were to be.
        command: by which it goes on.
    """

    def __init__(self, step: int, steps: int, command: str) -> None:
        super().__init__(f"Stopped at step {step} of {steps}; everything is saved. Go on with: {command}")


def command_to_go_on(preset: str, folder: Path, processes: int = 1, *, verb: str = "train") -> str:
    """Return the command by which a run of so many processes goes on; `preset` is the kind of an encoder for train-encoder."""
    launched = f"torchrun --nproc-per-node {processes} -m " if processes > 1 else ""
    return f"{launched}drifting {verb} {preset} --save-dir {shlex.quote(str(folder))} --resume"


def stopping_signals() -> list[int]:
    """Return the signals by which a process is asked to stop."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return [int(number) for number in numbers]


@contextmanager
def polite_stop() -> Iterator[list[int]]:
    """Turn the first Ctrl-C (or termination, or hang-up) into a filled list that the loop looks at between steps.

    The second acts as usual. A hang-up that is ignored, as nohup asks for, stays so.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in stopping_signals():
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals belong to somebody else
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
