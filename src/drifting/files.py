"""Files appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drifting.errors import InputError

# What the names of temporary folders begin with.
SCRATCH = ".writing-"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` to write a file or folder to; it takes the target's place when the block succeeds.

    The temporary name keeps the suffix, by which writers choose their format. A folder replaces only a missing target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=target.parent))
    try:
        yield scratch / target.name
        os.replace(scratch / target.name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_writable(folder: Path, argument: str) -> None:
    """Raise InputError unless `folder` can be made and written to; leaves nothing behind."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{argument} is '{folder}', where nothing can be written: choose a folder you may write to")
