"""The process of a command: its signals, and its output streams, which may be closed, full or unable to encode a character.

Ctrl-C, termination and hang-up have the same effect; a second one ends the process at once.
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
    """Turn the first signal to stop into KeyboardInterrupt, so that cleanup runs; a second signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        if received:
            os._exit(STOPPED)
        received.append(number)
        raise KeyboardInterrupt

    # Ignored signals stay ignored, as nohup requires; handlers set by others stay too.
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
    """A stream whose errors do not stop the command: failed output is dropped, and the first error is kept in `fault`.

    Args:
        stream: stream to write to; None if it was closed before the process began.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115 - open as long as the process
        self.fault: OSError | None = None
        if hasattr(self._stream, "reconfigure"):
            # Characters that the terminal cannot encode are escaped.
            self._stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
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
        """Write the buffered text, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)
        except ValueError:
            pass

    def _drop(self, error: OSError) -> None:
        self.fault = self.fault or error
        with suppress(OSError, ValueError):  # it may have no descriptor of its own
            # The interpreter would try to write the rest of the buffer again when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def complaint(self) -> str | None:
        """Return a message about lost output; None if nothing was lost, or if the reader closed the pipe, as `head` does."""
        self.flush()
        if self.fault is None or self.fault.errno == errno.EPIPE:
            return None
        return f"the output could not be written ({self.fault.strerror}): files are whole, send the output elsewhere"


@contextmanager
def steady_output() -> Iterator[SteadyStream]:
    """Replace both output streams of the process by `SteadyStream` while a block runs, and give the one for output."""
    # Occupy the descriptors of closed streams, so that no opened file can take their place.
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
