"""Files appear whole or not at all, and what a disk can refuse is said in a sentence."""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from drifting.errors import InputError, StorageError

T = TypeVar("T")

# What the names of temporary folders begin with, and of a folder that is whole, and whose place another is about to take.
SCRATCH, REPLACED = ".writing-", ".replaced-"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` to write a file or folder to; it takes the target's place when the block succeeds.

    The temporary name keeps the suffix, by which writers choose their format. What is written is on the disk before it takes the
    place, so that a machine that loses its power keeps the old or the new. An old folder is renamed first, see `current`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=target.parent))
    try:
        yield scratch / target.name
        _open_to_others(scratch, target.name)
        _flush(scratch / target.name)
        _take_place(scratch / target.name, target)
        _flush_one(target.parent)
        _set_aside(_replaced(target), scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _take_place(written: Path, target: Path) -> None:
    if written.is_dir() and target.is_dir():
        _set_aside(_replaced(target), written.parent)
        os.replace(target, _replaced(target))
    os.replace(written, target)


def _replaced(target: Path) -> Path:
    return target.with_name(f"{REPLACED}{target.name}")


def current(folder: Path, pattern: str) -> list[Path]:
    """Return the folders of a name in a folder; where a writer was killed while it replaced one, that is its whole old one."""
    renamed = [path for path in folder.glob(f"{REPLACED}{pattern}") if not path.with_name(named(path)).exists()]
    return [path for path in (*folder.glob(pattern), *renamed) if path.is_dir()]


def named(path: Path) -> str:
    """Return the name of a folder of `current` without what says that it is an old one."""
    return path.name.removeprefix(REPLACED)


def discard(folder: Path) -> None:
    """Delete a folder, which is whole or gone at every moment."""
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder.parent))
    try:
        for path in (_replaced(folder), folder):
            _set_aside(path, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _set_aside(path: Path, scratch: Path) -> None:
    """Move what is to be deleted into a scratch folder, if it is there."""
    if path.exists():
        os.replace(path, Path(tempfile.mkdtemp(dir=scratch)) / path.name)


def _open_to_others(scratch: Path, name: str) -> None:
    """Give what was written the permissions of the umask: some libraries write for the owner alone."""
    plain = scratch / f"{name}.mode"
    plain.touch()
    mode = stat.S_IMODE(plain.stat().st_mode)
    for path in (scratch / name, *(scratch / name).rglob("*")):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def _flush(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, onto the disk."""
    if path.is_dir():
        for below in path.iterdir():
            _flush(below)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    if os.name != "posix":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def clear_scratch(folder: Path) -> None:
    """Remove what writers that were killed left half-written in a folder; only for who alone works there."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
    for old in folder.glob(f"{REPLACED}*"):
        if old.with_name(named(old)).exists():
            discard(old)
        else:
            os.replace(old, old.with_name(named(old)))


def check_writable(folder: Path, argument: str) -> None:
    """Raise InputError unless `folder` can be made and written to, with files of the usual names; leaves nothing behind.

    Raises:
        StorageError: if the disk is full.
    """
    where = f"{argument} is '{folder}', where nothing can be written"
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            raise InputError(f"{where}: choose a folder you may write to")
        (folder / f"{SCRATCH}12345678" / "generator.safetensors").exists()
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=existing) as probe:
            os.access(probe, os.W_OK)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StorageError(f"{storage_fault(error)}: make room, or choose another {argument}") from None
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{where} ({reason}): choose a folder you may write to") from None


def check_space(folder: Path, needed: int, argument: str) -> None:
    """Raise StorageError unless so many bytes are free where a folder is or will be."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        sizes = f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB free"
        raise StorageError(f"{argument} is '{folder}', where {sizes}: make room, or name another disk")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _number(error: BaseException) -> int | None:
    """Return the number by which a system names its fault; some libraries hand it on in words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))
    return int(found[1] or found[2]) if found else None


def storage_fault(error: BaseException) -> str | None:
    """Return what to say of a file system that refuses, None for an error of another kind."""
    number = _number(error)
    written_in_part = isinstance(error, OSError) and number is None
    if (number is None and not written_in_part) or isinstance(error, ConnectionError | TimeoutError):
        return None
    said = str(error) if number is None else os.strerror(number)
    name = getattr(error, "filename", None)
    at = "" if not isinstance(name, str | Path) else f" at '{name}'"
    return f"a file cannot be written or read ({said.lower() if number else said}{at})"


def remedy(error: BaseException) -> str:
    """Return what helps where a file system refuses, as the beginning of a sentence."""
    number = _number(error)
    if number in _FULL or number is None:
        return "Make room"
    return "Bring the folder back" if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR) else "Make it writable"


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
