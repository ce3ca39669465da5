"""Find a data set and its reader, and read one split; or explain what the user can do.

A .zip of image files is read like the folder that it contains, without unpacking it.

Shapes: s samples.
"""

import difflib
import os
import shlex
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from drifting._checks import check_memory, nearest_name
from drifting._files import check_exists
from drifting.data.readers import MOST_NAMES, EncodedImage, Reader, Split, damaged, folders_in, parsing, quoted, split_name
from drifting.data.readers.arrays import Arrays
from drifting.data.readers.folder import FolderReader, ImageFolder
from drifting.data.readers.label_files import LABEL_FILES
from drifting.data.readers.published import CIFAR, TEXTS, Cub, Idx, TinyImageNet
from drifting.data.readers.tables import DatasetObjects, Hub, Parquet, SavedTables
from drifting.errors import InputError

HUB_IDS = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
# Largest label without class names: no data set has more classes.
_MOST_CLASSES = 10**6
_HELD_OUT = 10  # one image in so many
# Readers of image files in folders; the first one that matches is taken.
_FOLDERS: tuple[FolderReader, ...] = (TinyImageNet(), Cub(), ImageFolder())
# Layouts that may be in a folder one or two levels below, as in a clone of a Hub repository or in torchvision's folders.
_NESTED: tuple[Reader, ...] = (SavedTables(), Parquet(), Idx(), *CIFAR, *_FOLDERS[:-1])
# Folders of more folders are image folders of as many classes.
_MOST_FOLDERS = 64
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
# Tables of points, which other presets read.
_TABLES = {".csv", ".tsv"}
# Files in a .zip that are read as text, and the largest size of one in bytes.
_TEXTS = {*LABEL_FILES, *TEXTS}
_MOST_TEXT = 2**28
_ENCRYPTED = 1


class LabelError(InputError):
    """Labels are missing or cannot be used, although the images can."""


def _locate(source: str | None, name: str | None) -> Path:
    """Return the folder or the Hub id as a path."""
    if source:
        return Path(source).expanduser()
    if source == "" or name is None:
        raise InputError("data is not given: pass --data FOLDER or a Hub id like ylecun/mnist")
    root = os.environ.get("DRIFTING_DATA")
    if root and (Path(root).expanduser() / name).is_dir():
        return Path(root).expanduser() / name
    if name not in HUB_IDS:
        meant, known = nearest_name(name, HUB_IDS), ", ".join(HUB_IDS)
        raise InputError(f"dataset is '{name}': did you mean '{meant}'? There are {known}; or pass --data FOLDER")
    return Path(HUB_IDS[name])


def read_split(source: Any, name: str | None, split: str, *, labeled: bool | None = None) -> tuple[Split, Path]:
    """Return a split with encoded images and checked labels, and the path of the data set, or its name if it is an object.

    Arguments and errors are those of `images.load_images`.
    """
    if source is None or isinstance(source, str | os.PathLike):
        reader, path = find_reader(_locate(None if source is None else os.fspath(source), name))
    else:
        reader = DatasetObjects(source)
        path = reader.name
    known = reader.splits(path)
    by_usual_name = {usual: name for name in reversed(known) if (usual := split_name(name))}
    stored = split if split in known else by_usual_name.get(split_name(split) or split, split)
    if split == "test" and stored not in known:
        stored = by_usual_name.get("val", "train")
    divided = split in ("train", "test") and not by_usual_name.keys() & {"test", "val"}
    if stored not in known:
        raise InputError(f"split is '{split}', but data '{path}' has {', '.join(known)}: pass one of those")
    part = reader.read(path, stored)
    if len(part.images) == 0:
        raise InputError(f"data is '{path}', whose split '{stored}' holds no images: add some")
    if labeled is not False:
        _check_labels(part, path, complete=stored == "train")
    if not divided:
        return part, path
    held_out = _held_out(len(part.images), part.labels)
    if split == "test" and not bool(held_out.any()):
        count = len(part.images)
        found = f"{count} images are" if count > 1 else "1 image is"
        raise InputError(f"data is '{path}', whose {found} too few to hold out a tenth: add a folder test/")
    return _select(part, held_out if split == "test" else ~held_out), path


def _check_labels(part: Split, path: Path, *, complete: bool) -> None:
    """Raise LabelError unless the labels are class numbers and, in a complete split, every class has images."""
    if part.labels is None:
        return
    names, lowest, highest = part.class_names, int(part.labels.min()), int(part.labels.max())
    if lowest < 0:
        raise LabelError(f"data is '{path}', which has the label {lowest}: number the classes 0 to k-1, or train without labels")
    if names and highest >= len(names):
        raise LabelError(f"data is '{path}', which has the label {highest} but {len(names)} class names: fix the labels")
    if not names and highest >= _MOST_CLASSES:
        raise LabelError(f"data is '{path}', which has the label {highest}: number the classes 0 to k-1, or train without labels")
    present = part.labels.unique().tolist()
    absent = next((number for number, label in enumerate(present) if number != label), len(present))
    if complete and absent < (len(names) if names else highest + 1):
        title = f"class {absent} ('{names[absent]}')" if names else f"class {absent}"
        raise LabelError(f"data is '{path}', where {title} has no images: add some, or number the other classes 0 to k-1")


def _held_out(count: int, labels: Int[Tensor, " s"] | None) -> Bool[Tensor, " s"]:
    """Return a mask of the fixed tenth of each class. The only image of a class is never in it.

    The mask is the same whether labels are used or not, so no image is in "train" of one run and in "test" of another.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    chosen = order[_HELD_OUT - 1 :: _HELD_OUT]
    if labels is not None:
        _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        chosen = chosen[counts[classes[chosen]] > 1]
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, chosen, True)


def _select(part: Split, mask: Bool[Tensor, " s"]) -> Split:
    """Return the part of a split where the mask is True."""
    if isinstance(part.images, Tensor):
        images = part.images[mask]
    else:
        images = [part.images[index] for index in torch.nonzero(mask)[:, 0].tolist()]
    return part._replace(images=images, labels=None if part.labels is None else part.labels[mask])


def find_reader(path: Path) -> tuple[Reader, Path]:
    """Return the reader of a data set, and the path of its folder or file, which is the path itself or below it, or its Hub id.

    Raises:
        InputError: if there is no readable data set, or more than one.
    """
    if Hub().matches(path):
        return Hub(), path
    beside = [] if os.path.exists(path) else [place.name for place in folders_in(path.parent)]
    meant = "".join(f"; did you mean '{path.parent / name}'?" for name in difflib.get_close_matches(path.name, beside, 1))
    check_exists(path, f"pass a folder, or a Hub id like ylecun/mnist{meant}")
    if path.is_file():
        return _reader_of_file(path), path
    if path.is_dir():
        # Loose images come after the other layouts, next to which they can occur; arrays come last, as they can be next to images.
        loose = (ImageFolder(), path) if ImageFolder().matches(path) else None
        return _nested(path, _NESTED) or loose or _nested(path, (Arrays(),)) or _refuse(path)
    raise InputError(f"data is '{path}', which is neither a folder nor a regular file: pass a folder of images")


def folder_reader(path: Path) -> FolderReader:
    """Return the reader of the image files in a folder."""
    return next((reader for reader in _FOLDERS if reader.matches(path)), _FOLDERS[-1])


def _nested(path: Path, readers: Iterable[Reader]) -> tuple[Reader, Path] | None:
    """Return the one data set in a folder or in the folders below it. A folder "data" directly below is taken, as on the Hub."""
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
        places = quoted([str(place.relative_to(path)) for _, place in found])
        raise InputError(f"data is '{path}', which holds the data sets {places}: pass --data with the folder of one of them")
    return found[0] if found else None


def _reader_of_file(path: Path) -> Reader:
    for reader in (Parquet(), Arrays(), ZipOfImages()):
        if reader.matches(path):
            return reader
    if path.suffix.lower() in _ARCHIVES:
        raise InputError(f"data is '{path}', an archive that cannot be read directly: unpack it, and pass the folder")
    if path.suffix.lower() in _TABLES:
        fix = f"pass a folder of images, or train on points by drifting train toy --data {shlex.quote(str(path))}"
        raise InputError(f"data is '{path}', a table, which holds no images: {fix}")
    fix = "pass a folder, or a .parquet, .npz, .npy or .zip file"
    raise InputError(f"data is '{path}', which is not a folder, nor a file of a known kind: {fix}")


def _refuse(path: Path) -> tuple[Reader, Path]:
    if not any(path.iterdir()):
        raise InputError(f"data is '{path}', which is an empty folder: put images there, or pass another folder")
    names = [name for _, _, files in os.walk(path) for name in files]
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in names)
    holds = f"holds {len(names)} files ({', '.join(suffix for suffix, _ in suffixes.most_common(MOST_NAMES))})"
    if suffixes.keys() & _ARCHIVES:
        fix = "unpack archives, and pass the folder; a .zip of images can itself be passed as --data"
    else:
        fix = "make it CLASS/*.png, train-*.parquet, a .npz of images and labels, or another layout of docs/data.md"
    raise InputError(f"data is '{path}', whose layout is unknown, because it {holds}: {fix}")


class _Archive(NamedTuple):
    """A .zip, laid out as a folder in which image files are empty."""

    root: Path
    reader: FolderReader
    members: dict[str, zipfile.ZipInfo]
    file: zipfile.ZipFile


class ZipOfImages(Reader):
    """A .zip of image files."""

    def matches(self, path: Path) -> bool:
        """Return whether this is a .zip file."""
        return path.suffix.lower() == ".zip" and path.is_file()

    def splits(self, path: Path) -> list[str]:
        """Return the splits in the archive."""
        with _laid_out(path) as archive:
            return archive.reader.splits(archive.root)

    def read(self, path: Path, split: str) -> Split:
        """Read one split; the images stay encoded, in memory."""
        with _laid_out(path) as archive:
            listing = archive.reader.listed(archive.root, split)
            images = [listing.path(index).relative_to(archive.root).as_posix() for index in range(len(listing.names))]
            need = sum(archive.members[name].file_size for name in images)
            check_memory(need, f"data is '{path}', whose {len(images)} images", "unpack it, and keep fewer images")
            encoded = [EncodedImage(_content(archive, path, name), f"{path}, {name}") for name in images]
            return Split(encoded, listing.labels, listing.class_names, listing.left_out, listing.doubts)


@contextmanager
def _laid_out(path: Path) -> Iterator[_Archive]:
    """Lay the text files of an archive and empty image files out in a folder, so that the readers of folders can be used."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve()
        try:
            with parsing(path), zipfile.ZipFile(path) as file:
                members = {_name(member, path): member for member in file.infolist() if _is_file(member)}
                archive = _Archive(root, ImageFolder(), members, file)
                for name in members:
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    is_text = PurePosixPath(name).name in _TEXTS
                    (root / name).write_bytes(_content(archive, path, name) if is_text else b"")
                reader = folder_reader(root)
                if not reader.matches(root):
                    fix = "unpack it, and pass the folder"
                    raise InputError(f"data is '{path}', a .zip whose {len(members)} files are not images: {fix}")
                yield archive._replace(reader=reader)
        except InputError as error:  # with the path of the scratch folder
            raise type(error)(str(error).replace(str(root), str(path))) from None


def _is_file(member: zipfile.ZipInfo) -> bool:
    """Return whether a member is a regular file. Links are not, because their targets are not in the archive."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    return not member.filename.endswith(("/", "\\")) and kind in (0, stat.S_IFREG)


def _name(member: zipfile.ZipInfo, path: Path) -> str:
    """Return the path of a member, or raise InputError if it is outside the archive. Some programs of Windows write backslashes."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise InputError(f"data is '{path}', which holds '{member.filename[:60]}', a place outside of it: take another archive")
    return name.as_posix()


def _content(archive: _Archive, path: Path, name: str) -> bytes:
    """Return the content of a member, up to its declared size."""
    member = archive.members[name]
    if member.flag_bits & _ENCRYPTED:
        raise InputError(f"data is '{path}', which is encrypted: unpack it, and pass the folder")
    if PurePosixPath(name).name in _TEXTS and member.file_size > _MOST_TEXT:
        raise damaged(f"{path}, {name}", f"it declares {member.file_size:,} bytes of text")
    check_memory(member.file_size, f"data holds '{path}, {name}', whose {member.file_size:,} bytes", "remove it from the archive")
    with parsing(f"{path}, {name}"):
        return archive.file.read(member)
