"""Files appear whole or not at all."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from drifting.errors import InputError

T = TypeVar("T")

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
        _open_to_others(scratch, target.name)
        os.replace(scratch / target.name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _open_to_others(scratch: Path, name: str) -> None:
    """Give what was written the permissions of the umask: some libraries write for the owner alone."""
    plain = scratch / f"{name}.mode"
    plain.touch()
    mode = stat.S_IMODE(plain.stat().st_mode)
    for path in (scratch / name, *(scratch / name).rglob("*")):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def check_writable(folder: Path, argument: str) -> None:
    """Raise InputError unless `folder` can be made and written to; leaves nothing behind."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{argument} is '{folder}', where nothing can be written: choose a folder you may write to")


def cached(
    path: Path, fingerprint: str, compute: Callable[[], T], *, load: Callable[[Path], tuple[T, str]], save: Callable[..., None]
) -> T:
    """Return what is kept in a file, or compute it and have it saved if the file is missing, damaged or of another fingerprint.

    Args:
        path: of the file.
        fingerprint: everything that what is kept depends on.
        compute: makes it.
        load: path -> what is kept and its fingerprint; raises InputError where it cannot.
        save: (path, what is to be kept, fingerprint=) writes it.

    Raises:
        InputError: before it is computed, if it could not be written.
    """
    with suppress(InputError):
        kept, found = load(path)
        if found == fingerprint:
            return kept
    check_writable(path.parent, "path")
    if path.is_dir():
        raise InputError(f"path is '{path}', a folder where a file belongs: delete it")
    kept = compute()
    save(path, kept, fingerprint=fingerprint)
    return kept
