"""How a training is asked to stop: between two steps, with everything saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def polite_stop() -> Iterator[list[int]]:
    """Turn the first Ctrl-C (or termination) into a filled list that the loop looks at between steps; the second acts as usual."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals belong to somebody else
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
