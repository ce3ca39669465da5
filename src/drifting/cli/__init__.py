"""The command line: drifting {train, train-encoder, latents, sample, convert, evaluate, compare, presets}.

It parses, calls and prints, no more.
"""

import os
import sys
import traceback
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
        processes = _join()
        if processes is not None and arguments and arguments[0] not in _SHARED:
            size = processes.size
            raise InputError(f"world size is {size}, but '{arguments[0]}' is done by one process: start it without torchrun")
        with nullcontext() if processes is None or processes.leads else redirect_stdout(open(os.devnull, "w")):
            app.cli(prog="drifting", args=arguments)
        if processes is not None:
            processes.wait()
    except (Exception, KeyboardInterrupt) as error:
        _end(error, processes)
    if processes is not None:
        _part(0)


def _end(error: BaseException, processes: "Processes | None") -> None:
    """Say what went wrong, once for all processes, and leave with the status of it; raise an error that is not foreseen."""
    reason, status = _told(error)
    if reason is None and processes is None:
        raise error
    if reason is None:
        traceback.print_exception(error)
    elif processes is None or processes.is_first_to_say(reason):
        print(f"drifting: {reason}", file=sys.stderr)
    if processes is not None:
        _part(status)
    sys.exit(status)


def _part(status: int) -> None:
    """Leave at once: the engine's own threads may still wait for another process, or for one that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join() -> "Processes | None":
    """Return the processes that share the command, None for one alone, which need not wait for torch."""
    if (os.environ.get("WORLD_SIZE") or "1") == "1":
        return None
    from drifting.distributed import join

    return join()


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
        bounds = "--micro-batch, --labels-per-pass or --checkpointing True, also with --resume from the last checkpoint"
        mend = f"pass a smaller --batch-size or, for a generator, {bounds}"
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
