"""Write files atomically, lock folders for one process at a time, and describe errors of the disk in one sentence.

The system releases the lock of a folder when the process ends, even if it is killed.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drifting.errors import InputError, StorageError

# What the names of temporary folders begin with, and of a folder that is whole, and whose place another is about to take.
SCRATCH, REPLACED = ".writing-", ".replaced-"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path next to `target` for a file or folder, which replaces the target when the block succeeds.

    The temporary name keeps the suffix, by which writers choose their format. The new file is flushed to the disk before it
    replaces the old one, so after a power failure one of them is complete. An old folder is renamed first, see `current`. A link
    to a folder stays, and its folder is replaced; a link to a file is replaced, and its file stays.
    """
    target = target.resolve() if os.path.isdir(target) else target
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
    """Return the folders that match a pattern, including the complete old folder if a writer was killed while replacing it."""
    renamed = [path for path in folder.glob(f"{REPLACED}{pattern}") if not path.with_name(named(path)).exists()]
    return [path for path in (*folder.glob(pattern), *renamed) if path.is_dir()]


def named(path: Path) -> str:
    """Return the name of a folder of `current` without the mark of an old one."""
    return path.name.removeprefix(REPLACED)


def discard(folder: Path) -> None:
    """Delete a folder atomically: at every moment it is complete or gone."""
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder.parent))
    try:
        for path in (_replaced(folder), folder):
            _set_aside(path, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _set_aside(path: Path, scratch: Path) -> None:
    """Move a path that is to be deleted into a scratch folder, if it exists."""
    if os.path.exists(path):  # in contrast to Path.exists, without an error for a name that is too long
        os.replace(path, Path(tempfile.mkdtemp(dir=scratch)) / path.name)


def _open_to_others(scratch: Path, name: str) -> None:
    """Give new files the permissions of the umask, because some libraries write files only for the owner."""
    plain = Path(tempfile.mkdtemp(dir=scratch)) / "mode"
    plain.touch()
    mode = stat.S_IMODE(plain.stat().st_mode)
    for path in (scratch / name, *(scratch / name).rglob("*")):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def _flush(path: Path) -> None:
    """Flush a file, or a folder with its content, to the disk."""
    if path.is_dir():
        for below in path.iterdir():
            _flush(below)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    if os.name != "posix":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def clear_scratch(*folders: Path) -> None:
    """Remove the temporary files of killed writers; the caller must hold the folders."""
    for scratch in (path for folder in folders for path in folder.glob(f"{SCRATCH}*")):
        shutil.rmtree(scratch, ignore_errors=True)
    for old in (path for folder in folders for path in folder.glob(f"{REPLACED}*")):
        if old.with_name(named(old)).exists():
            discard(old)
        else:
            os.replace(old, old.with_name(named(old)))


def check_exists(path: Path, fix: str) -> None:
    """Raise InputError unless data are at a path, which may be an address as `Path` shortens it; `fix` ends the message."""
    if os.path.exists(path):  # in contrast to Path.exists, without an error for a name that is too long
        return
    if address := re.match(r"(\w{2,}):/+(.+)", str(path)):
        raise InputError(f"data is '{address[1]}://{address[2]}', an address: download it, and pass its path")
    raise InputError(f"data is '{path}', which does not exist: {fix}")


def check_writable(folder: Path, argument: str) -> None:
    """Raise InputError unless `folder` can be created and written to, with the usual file names; nothing is left behind.

    Raises:
        StorageError: if the disk is full.
    """
    where = f"{argument} is '{folder}', where nothing can be written"
    try:
        # A link to a place that is gone is in the way of a folder.
        existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
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
    """Raise StorageError unless the disk of a folder has enough free bytes."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        sizes = f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB free"
        raise StorageError(f"{argument} is '{folder}', where {sizes}: make room, or name another disk")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _number(error: BaseException) -> int | None:
    """Return the error number of the system, which some libraries only put into the message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))
    return int(found[1] or found[2]) if found else None


def storage_fault(error: BaseException) -> str | None:
    """Return a message about an error of the file system; None for any other error."""
    number = _number(error)
    written_in_part = isinstance(error, OSError) and number is None
    if (number is None and not written_in_part) or isinstance(error, ConnectionError | TimeoutError):
        return None
    said = str(error) if number is None else os.strerror(number)
    name = getattr(error, "filename", None)
    at = "" if not isinstance(name, str | Path) else f" at '{name}'"
    return f"a file cannot be written or read ({said.lower() if number else said}{at})"


def remedy(error: BaseException) -> str:
    """Return the remedy for an error of the file system, as the beginning of a sentence."""
    number = _number(error)
    if number in _FULL or number is None:
        return "Make room"
    return "Bring the folder back" if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR) else "Make it writable"


try:
    import fcntl
except ImportError:  # the system has no such locks
    fcntl = None
LOCK = ".lock"

# Resolved folder -> the thread of this process that holds it.
_HELD: dict[Path, int] = {}


@contextmanager
def hold(folder: Path, argument: str) -> Iterator[None]:
    """Lock a folder against other processes. A missing folder is created, and removed again if it stays empty.

    Without support of the file system there is no lock. A thread that holds the folder may lock it again.

    Args:
        folder: the folder.
        argument: name of the folder in errors.

    Raises:
        InputError: if the folder cannot be written to, see `check_writable`, or another process or thread holds it; the message
            says which one, and since when.
    """
    place = folder.resolve()
    if _HELD.get(place) == threading.get_ident():
        yield
        return
    check_writable(folder, argument)
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
    """Return the descriptor of a locked lock file; None if the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(_busy(path, what)) from None
        except OSError:  # the file system has no locks
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
            return None
        # The last holder may have deleted the file in between; others would then lock a new one.
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
