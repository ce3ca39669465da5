"""Counts how a command walks through the files of the package, from its start to its first optimizer step.

    python -m tests.support.life_of_a_run            one line of figures, as JSON
    python -m tests.support.life_of_a_run --calls    every change of file as well

A *change* is a call of a function in another file than its caller's. Calls while modules are imported are no part of the life of a
run, and a generator is called once however often it goes on; `all_changes` and `all_files` count these too.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import drifting
from drifting.fields import compiled_drifts

SOURCE = f"{Path(drifting.__file__).parent}/"
COMMAND = ("train", "toy", "--steps", "1", "--save-dir")
# Flags of code objects: those of functions, in contrast to bodies of modules and classes; those of generators.
_FUNCTION, _GENERATOR = 0x1, 0x20


class _FirstStep(BaseException):
    """Ends the command."""


class Walk:
    """Follows the calls of a process, as a function for `sys.setprofile`."""

    def __init__(self) -> None:
        self.files, self.changes = set[str](), Counter[tuple[str, str, str]]()
        self.all_files, self.all_changes = set[str](), 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call."""
        code, caller = frame.f_code, frame.f_back
        if event != "call" or not code.co_filename.startswith(SOURCE) or not code.co_flags & _FUNCTION:
            return
        changes = caller is None or caller.f_code.co_filename != code.co_filename
        self.all_files.add(code.co_filename)
        self.all_changes += changes
        # Functions there run in Python only while numba compiles them, which it does once.
        compiles = code.co_filename.startswith(f"{SOURCE}fields/loops/")
        # Attributes of the output stream are read by whatever library prints, as often as it likes.
        if _goes_on(frame) or _is_imported(frame) or compiles or code.co_name == "__getattr__":
            return
        self.files.add(code.co_filename)
        if changes:
            origin = "" if caller is None else caller.f_code.co_filename
            self.changes[origin.removeprefix(SOURCE), code.co_filename.removeprefix(SOURCE), code.co_name] += 1

    def figures(self) -> dict[str, int]:
        """Return the numbers of files and of changes."""
        counts = {"files": len(self.files), "changes": self.changes.total()}
        return counts | {"all_files": len(self.all_files), "all_changes": self.all_changes}


def _goes_on(frame: FrameType) -> bool:
    """Return whether a generator goes on after a yield."""
    code = frame.f_code
    if not code.co_flags & _GENERATOR or frame.f_lasti < 0:
        return False
    # From Python 3.11 on, an argument tells the start of a function from what follows a yield.
    return sys.version_info < (3, 11) or code.co_code[frame.f_lasti + 1] != 0


def _is_imported(frame: FrameType | None) -> bool:
    """Return whether a call is made by the body of a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(SOURCE) and frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


def walk() -> Walk:
    """Follow the training of a toy up to its first optimizer step."""
    from drifting.cli import main

    def stop(*_: object) -> None:
        sys.setprofile(None)
        raise _FirstStep

    followed, handle = Walk(), register_optimizer_step_pre_hook(stop)
    # What is printed before numba compiles, once on a machine, is no part of the life of a run.
    cached = mock.patch.object(compiled_drifts, "must_compile", return_value=False)
    with cached, tempfile.TemporaryDirectory() as folder:
        sys.setprofile(followed)
        try:
            main([*COMMAND, f"{folder}/run"])
        except _FirstStep:
            return followed
        finally:
            sys.setprofile(None)
            handle.remove()
    raise AssertionError("the command ended without an optimizer step")


if __name__ == "__main__":
    torch.set_num_threads(1)
    followed = walk()
    print(json.dumps(followed.figures()))
    if "--calls" in sys.argv:
        for (origin, file, name), count in followed.changes.most_common():
            print(count, origin, file, name)
