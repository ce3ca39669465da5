"""Find the reader of a folder or a file, and the data set inside it, or explain what the user can do."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from drifting._checks import nearest_name
from drifting.data.readers import archive, arrays, cifar, folder, hub, idx, listings, parquet, saved
from drifting.data.readers.base import Reader, folders_in
from drifting.errors import InputError

# Layouts that may lie a folder or two down, as in a clone of a Hub repository or in torchvision's folders.
_PACKED: tuple[Reader, ...] = (saved, parquet, idx, cifar, listings)
_FILES: tuple[Reader, ...] = (parquet, arrays, archive)
READERS: tuple[Reader, ...] = (*_PACKED, folder, arrays, archive, hub)
# Folders of more folders are image folders of as many classes.
_MOST_FOLDERS = 64
_SHOWN = 3
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}


def find_reader(path: Path) -> tuple[Reader, Path]:
    """Return the reader of a data set, and the path of its folder or file, which is the path itself or below it, or its Hub id.

    Raises:
        InputError: if there is no readable data set, or more than one.
    """
    if path.is_file():
        return _reader_of_file(path), path
    if path.is_dir():
        # Loose images come after the other layouts, next to which they can occur; arrays come last, as they can be next to images.
        return _packed(path, _PACKED) or _loose(path) or _packed(path, (arrays,)) or _refuse(path)
    if hub.matches(path):
        return hub, path
    if path.exists():
        raise InputError(f"data is '{path}', which is neither a folder nor a regular file: pass a folder of images")
    beside = [place.name for place in folders_in(path.parent)]
    meant = f"; did you mean '{path.parent / nearest_name(path.name, beside)}'?" if beside else ""
    raise InputError(f"data is '{path}', which does not exist: pass a folder, or a Hub id like ylecun/mnist{meant}")


def _packed(path: Path, readers: Iterable[Reader]) -> tuple[Reader, Path] | None:
    """Return the one data set in a folder or in the folders below it; a folder "data" is that of a Hub repository."""
    found: list[tuple[Reader, Path]] = []
    waiting = [(path, 0)]
    while waiting:
        place, depth = waiting.pop(0)
        reader = next((reader for reader in readers if reader.matches(place)), None)
        if reader is not None:
            if depth == 0 or (depth == 1 and place.name == "data"):
                return reader, place
            found.append((reader, place))
        elif depth < 2 and len(below := folders_in(place)) <= _MOST_FOLDERS:
            waiting += [(sub, depth + 1) for sub in below]
    if len(found) > 1:
        places = ", ".join(f"'{place.relative_to(path)}'" for _, place in found[:_SHOWN]) + ", ..." * (len(found) > _SHOWN)
        raise InputError(f"data is '{path}', which holds the data sets {places}: pass --data with the folder of one of them")
    return found[0] if found else None


def _loose(path: Path) -> tuple[Reader, Path] | None:
    return (folder, path) if folder.matches(path) else None


def _reader_of_file(path: Path) -> Reader:
    for reader in _FILES:
        if reader.matches(path):
            return reader
    if path.suffix.lower() in _ARCHIVES:
        raise InputError(f"data is '{path}', an archive that is not read as it is: unpack it, and pass the folder")
    fix = "pass a folder, or a .parquet, .npz, .npy or .zip file"
    raise InputError(f"data is '{path}', which is no folder, nor a file of a known kind: {fix}")


def _refuse(path: Path) -> tuple[Reader, Path]:
    if not any(path.iterdir()):
        raise InputError(f"data is '{path}', which is an empty folder: put images there, or pass another folder")
    names = [name for _, _, files in os.walk(path) for name in files]
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in names)
    holds = f"holds {len(names)} files ({', '.join(suffix for suffix, _ in suffixes.most_common(_SHOWN))})"
    if suffixes.keys() & _ARCHIVES:
        fix = "unpack archives, and pass the folder; a .zip of images can itself be passed as --data"
    else:
        fix = "make it CLASS/*.png, train-*.parquet, a .npz of images and labels, or another layout of docs/data.md"
    raise InputError(f"data is '{path}', whose layout is unknown, for it {holds}: {fix}")
