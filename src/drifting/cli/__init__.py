"""The command line: drifting {train, train-encoder, latents, sample, export, convert, calibrate, evaluate, report,
compare, compare-fields, doctor, serve, share, presets}.

It only parses, calls and prints. Whatever ends a command is reported in one sentence; heavy imports wait until that works. The
output streams may be closed, full or unable to encode a character. Ctrl-C, termination and hang-up have the same effect; a second
one ends the process at once.
"""

import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO

from drifting import __version__
from drifting._extras import missing_extra
from drifting._files import remedy, storage_fault
from drifting.errors import InputError, StorageError

if TYPE_CHECKING:
    from drifting.distributed import Processes

# Exit status of a command that was stopped.
_STOPPED = 130
# Commands whose work several processes can share.
_SHARED = ("train", "sample")
# How to reduce the memory of a command.
_SMALLER = {
    "sample": "pass a smaller --num-samples",
    "evaluate": "pass a smaller --batch-size or --num-samples",
    "latents": "pass a smaller --batch-size",
    "convert": "use a machine with more of it",
    "export": "use a machine with more of it",
    "compare": "use a machine with more of it",
    "compare-fields": "pass smaller --group-sizes or --num-samples",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 2 on bad input, 130 if it was stopped, 1 if training diverged or the machine cannot continue.

    `drifting doctor` exits with 1 if it finds a fault.

    Under torchrun it does its share of the work. Only the first process prints; a lost process ends all others with status 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with _stopped_by_signals(), _steady_output() as output:
        status, shared = _run(arguments)
        if (lost := output.complaint()) is not None:
            _say(lost)
            status = status or 1
        if shared:
            # Exit at once: threads of torch may still wait for another process, even for one that is lost.
            sys.stderr.flush()
            os._exit(status)
    if status:
        sys.exit(status)


def _run(arguments: list[str]) -> tuple[int, bool]:
    """Run the command and return its status, and whether several processes share it."""
    processes = None
    try:
        if arguments in (["--version"], ["-V"]):
            print(f"drifting {__version__}")
            return 0, False
        from drifting.cli import commands
        from drifting.cli._parse import parse

        processes = _join()
        prints = processes is None or processes.is_main_process
        with nullcontext() if prints else redirect_stdout(open(os.devnull, "w")), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command = parse(commands.ALL, arguments, commands.READERS, commands.FORMER)
            if processes is not None and arguments[0] not in _SHARED:
                size = processes.size
                raise InputError(f"world size is {size}, but '{arguments[0]}' is done by one process: start it without torchrun")
            status = command() or 0
        if processes is not None:
            processes.barrier()
        return status, processes is not None
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, processes, arguments), processes is not None


def _report(error: BaseException, processes: "Processes | None", arguments: list[str]) -> int:
    """Print an error once for all processes and return its status; raise an unexpected error."""
    reason, status = _message_and_status(error, arguments)
    if reason is None and processes is None:
        raise error
    if reason is None:
        traceback.print_exception(error)
    else:
        # The launcher also stops a process because another one has failed and said why.
        told = processes is not None and type(error) is KeyboardInterrupt and processes.something_said()
        if processes is None or (not told and processes.is_first_to_say(reason)):
            _say(reason)
    return status


def _say(reason: str) -> None:
    print(f"drifting: {reason}", file=sys.stderr)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
    """Show a warning of this library as a sentence, and any other one as usual."""
    if f"{os.sep}drifting{os.sep}" in filename:
        _say(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _join() -> "Processes | None":
    """Return the processes that share the command; None for a single process, which then need not import torch."""
    if (os.environ.get("WORLD_SIZE") or "1") == "1":
        return None
    from drifting.distributed import join

    return join()


def _message_and_status(error: BaseException, arguments: list[str]) -> tuple[str | None, int]:
    """Return the message of an error and the exit status; the message is None for an unexpected error."""
    if type(error) is KeyboardInterrupt:
        return "Stopped; nothing of this step is kept. Start the same command again.", _STOPPED
    if isinstance(error, InputError | StorageError):
        return str(error), 2 if isinstance(error, InputError) else 1
    if (lacking := missing_extra(error)) is not None:
        return lacking, 2
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the name '{error.filename}' is too long for the file system: choose a shorter one", 2
    from drifting.distributed import LostProcessError, is_lost_process
    from drifting.runs.folder import LESS_MEMORY, OutOfMemoryError, out_of_memory
    from drifting.training.loop import Interrupted
    from drifting.training.state import DivergenceError

    message: str | None = None
    if isinstance(error, Interrupted | DivergenceError | LostProcessError | OutOfMemoryError):
        message = str(error)
    elif (shortage := out_of_memory(error)) is not None:
        message = f"{shortage}: {_SMALLER.get(arguments[0], LESS_MEMORY)}"
    elif is_lost_process(error):
        message = "a process was lost: start the same command again"
    elif (fault := storage_fault(error)) is not None:
        message = f"{fault}; what was there before is whole. {remedy(error)}, then start the same command again"
    return message, _STOPPED if isinstance(error, Interrupted) else 1


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turn the first signal to stop into KeyboardInterrupt, so that cleanup runs; a second signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        if received:
            os._exit(_STOPPED)
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
        self.encoding, self.isatty = self._stream.encoding, self._stream.isatty
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
def _steady_output() -> Iterator[SteadyStream]:
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
