"""How a training ends that does not reach its last step: with a sentence that says what is safe and how to go on.

One that ends before its first checkpoint leaves nothing that would be in the way of starting again.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from drifting._files import remedy, storage_fault
from drifting.config import AnyConfig
from drifting.distributed import LostProcessError, Processes, is_lost_process
from drifting.errors import InputError, StorageError
from drifting.runs.folder import clear_unstarted, newest_checkpoint
from drifting.training.signals import Interrupted
from drifting.training.state import DivergenceError

LESS_MEMORY = (
    "pass a smaller --batch-size or, for a generator, --microbatch-size, --labels-per-microbatch or --gradient-checkpointing True"
)


class Stopped(Interrupted, KeyboardInterrupt):
    """Training was stopped in the middle of a step or of other work; what the last checkpoint holds is saved."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


class OutOfMemoryError(MemoryError):
    """The memory does not suffice. The message says what lowers the need, and how to go on."""


@contextmanager
def ending(folder: Path, config: AnyConfig, processes: Processes, *, command: str, resume: bool) -> Iterator[None]:
    """Turn whatever ends a training into an error that says what is safe and how to go on.

    Args:
        folder: of the run.
        config: of the run.
        processes: those that train it, the first of which clears up.
        command: that goes on with it from its newest checkpoint.
        resume: whether it had been begun before.

    Raises:
        Interrupted: if it is stopped by Ctrl-C while nothing waits for that.
        StorageError: if a file cannot be written or read.
        OutOfMemoryError: if the memory does not suffice.
        DivergenceError: if the loss becomes NaN or infinite.
        LostProcessError: if another process is gone.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if processes.is_main_process and not resume:
            _clear(folder, config)
        told = _told(error, folder, command)
        if told is None:
            raise
        raise told from error


def _clear(folder: Path, config: AnyConfig) -> None:
    with suppress(OSError, InputError):  # the disk that made it end
        clear_unstarted(folder, config)


def _told(error: BaseException, folder: Path, command: str) -> BaseException | None:
    """Return the error to raise in place of another, None for one that stays as it is."""
    if isinstance(error, Interrupted | InputError | StorageError | OutOfMemoryError):
        return None
    newest = newest_checkpoint(folder)
    if newest is None:
        safe, go_on = "nothing is saved before the first checkpoint", "start the same command again"
    else:
        safe, go_on = f"its checkpoint {newest.name} is whole", f"go on with: {command}"
    following = f"{go_on[0].upper()}{go_on[1:]}"
    told: BaseException | None = None
    if isinstance(error, KeyboardInterrupt):
        told = Stopped(f"Stopped; {safe}. {following}")
    elif (lack := out_of_memory(error)) is not None:
        told = OutOfMemoryError(f"{lack}: {LESS_MEMORY}" + ("" if newest is None else f"; {safe}, {go_on}"))
    elif isinstance(error, DivergenceError):
        again = "start again" if newest is None else f"start again with --overwrite or in another --save-dir; {safe}"
        told = DivergenceError(f"{error}, and {again}")
    elif is_lost_process(error):
        told = LostProcessError(f"a process of this run was lost; {safe}. {following}")
    elif (fault := storage_fault(error)) is not None:
        told = StorageError(f"{fault}; {safe}. {remedy(error)}, then {go_on}")
        if not folder.is_dir():
            told = StorageError(f"the run folder '{folder}' is gone, with all that was in it: start again")
    return told


def out_of_memory(error: BaseException) -> str | None:
    """Return what to say of a memory that does not suffice, None for an error of another kind."""
    # On a CPU torch has no class of its own for it.
    if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)):
        return None
    return f"out of memory ({' '.join(str(error).partition(chr(10))[0].split())[:90]})"
