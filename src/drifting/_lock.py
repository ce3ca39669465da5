"""One process at a time works in a folder: it holds a lock, which the system releases when the process ends, however it ends."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drifting.errors import InputError

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
