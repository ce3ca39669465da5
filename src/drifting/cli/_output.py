"""The streams that a command writes to: they may be closed, full, gone half-way, or unable to show a letter."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


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
