"""Files appear whole or not at all, one process at a time works in a folder, and what a disk refuses is said in a sentence.

A folder is held by a lock, which the system releases when the process ends, however it ends.
"""

import errno
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
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


try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None
LOCK = ".lock"

# Resolved folder -> the thread of this process that holds it.
_HELD: dict[Path, int] = {}


@contextmanager
def hold(folder: Path, argument: str) -> Iterator[None]:
    """Keep every other process out of a folder, which is made where it is missing and goes again if nothing is put in it.

    Where the file system knows no locks, nothing is held. A thread that holds the folder may ask for it again.

    Args:
        folder: to work in.
        argument: what errors call it.

    Raises:
        InputError: if another process, or another thread of this one, holds the folder; the sentence says which, and since when.
        OSError: if the folder cannot be made or written to.
    """
    place = folder.resolve()
    if _HELD.get(place) == threading.get_ident():
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        descriptor = _locked(folder / LOCK, f"{argument} is '{folder}'") if place not in _HELD else _refuse(folder, argument)
        _HELD[place] = threading.get_ident()
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()
            os.close(descriptor)
        if _HELD.get(place) == threading.get_ident():
            del _HELD[place]
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _refuse(folder: Path, argument: str) -> int:
    raise InputError(_busy(folder / LOCK, f"{argument} is '{folder}'"))


def _locked(path: Path, what: str) -> int | None:
    """Return the descriptor of a lock file that is locked, None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(_busy(path, what)) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
            return None
        # Whoever held the lock may have deleted its file in between: then it is no longer what others will lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    with suppress(OSError):  # a full disk: the lock holds without words
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
    return descriptor


def _busy(path: Path, what: str) -> str:
    holder = ""
    with suppress(OSError):
        holder = path.read_text(errors="replace").strip()[:120]
    return f"{what}, in which {holder or 'another process'} is at work: wait until it has ended, or name another folder"
