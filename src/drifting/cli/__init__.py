"""The command line: drifting {train, train-encoder, latents, sample, convert, evaluate, compare, presets}.

It parses, calls and prints, no more.
"""

import os
import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING

import tyro

from drifting.cli import commands
from drifting.errors import InputError

if TYPE_CHECKING:
    from drifting.distributed import Processes

# Commands whose work several processes can share.
_SHARED = ("train", "sample")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 2 on bad input, 130 if it was stopped, 1 if training diverged or ran out of memory.

    Started by torchrun it does its share of the work; the first process alone prints, and a process that is lost ends all with 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    app = tyro.extras.SubcommandApp()
    for command in commands.ALL:
        app.command(command)
    processes = None
    try:
        processes = _join(arguments)
        with nullcontext() if processes is None or processes.leads else redirect_stdout(open(os.devnull, "w")):
            app.cli(prog="drifting", args=arguments)
        if processes is not None:
            processes.leave()
    except (Exception, KeyboardInterrupt) as error:
        reason, status = _told(error)
        if reason is None:
            raise
        if processes is None or processes.is_first_to_say(reason):
            print(f"drifting: {reason}", file=sys.stderr)
        if processes is not None:
            # Whoever still waits for another process in a collective would not leave by itself.
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)


def _join(arguments: list[str]) -> "Processes | None":
    """Return the processes that share the command, or raise InputError if it is one that cannot be shared; None for one alone."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return None
    from drifting.distributed import join

    processes = join()
    if arguments and arguments[0] not in _SHARED:
        raise InputError(f"world size is {size}, but '{arguments[0]}' is done by one process: start it without torchrun")
    return processes


def _told(error: BaseException) -> tuple[str | None, int]:
    """Return what to say of an error and the status to leave with, or None for one that is not foreseen."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "Stopped; nothing of this step is kept. Start the same command again.", 130
    from drifting.distributed import LostProcessError, is_loss
    from drifting.runs import Interrupted
    from drifting.training.state import DivergenceError

    if _out_of_memory(error):
        mend = "pass a smaller --batch-size or, for a generator, --micro-batch, also with --resume from the last checkpoint"
        return f"out of memory ({str(error).partition(chr(10))[0]}): {mend}", 1
    if isinstance(error, Interrupted):
        return str(error), 130
    if isinstance(error, DivergenceError | LostProcessError):
        return str(error), 1
    return ("a process was lost: start the same command again", 1) if is_loss(error) else (None, 1)


def _out_of_memory(error: BaseException) -> bool:
    import torch

    # On a CPU torch has no class of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
