"""The process of a command: how it is stopped, and its streams, which may be closed, full, gone or unable to show a letter.

Ctrl-C, a termination and a hang-up act alike; a second one ends the process at once.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STOPPED = 130


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn the first signal to stop into KeyboardInterrupt, so that what is half-written is cleared away; a second ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        if received:
            os._exit(STOPPED)
        received.append(number)
        raise KeyboardInterrupt

    # What is ignored stays so, as nohup asks for; what somebody else handles is theirs.
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    replaced = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


class SteadyStream:
    """A stream whose faults end no work: what cannot be written is dropped, and the first fault is kept in `fault`.

    Args:
        stream: to write to; None for one that was closed before the process began.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115 - open as long as the process
        self.fault: OSError | None = None
        if hasattr(self._stream, "reconfigure"):
            # A name that the terminal has no letters for is shown in escapes.
            self._stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
        except ValueError:  # closed meanwhile
            pass
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)
        except ValueError:
            pass

    def _drop(self, error: OSError) -> None:
        self.fault = self.fault or error
        with suppress(OSError, ValueError):  # it may have no descriptor of its own
            # What the stream still holds would be tried again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def complaint(self) -> str | None:
        """Return what to say of text that was lost, None if none was, or if whoever read it has left, as `head` does."""
        self.flush()
        if self.fault is None or self.fault.errno == errno.EPIPE:
            return None
        return f"the output could not be written ({self.fault.strerror}): files are whole, send the output elsewhere"


@contextmanager
def steady_output() -> Iterator[SteadyStream]:
    """Make both streams of the process steady while a block runs, and give the one for output."""
    # The lowest descriptors that are free: no file of ours may take the place of a stream that is closed.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    output, errors = SteadyStream(sys.stdout), SteadyStream(sys.stderr)
    sys.stdout, sys.stderr = output, errors  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield output
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
