"""Code that needs a process of its own: one that has imported torch, and nothing of this package.

A server imports torch once and forks for every process, so that each is there at once.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    """How a process ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@cache
def with_torch() -> ForkServerContext:
    """Return the context of processes that begin with torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    return context


def run(code: str, *, seconds: float = 300, environment: Mapping[str, str] | None = None, folder: Path = ROOT) -> Done:
    """Run code in a new process, which writes no bytecode, and return how it ended.

    Args:
        code: Python code.
        seconds: The process may take so long.
        environment: Variables that it has besides those of this process.
        folder: The folder that it works in.
    """
    with TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("stdout", "stderr")]
        variables = {**os.environ, **(environment or {})}
        process = with_torch().Process(target=_execute, args=(code, variables, str(folder), [str(file) for file in files]))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"a process took more than {seconds} s")
        return Done(process.exitcode, *(file.read_text() for file in files))


def _execute(code: str, variables: Mapping[str, str], folder: str, files: list[str]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
