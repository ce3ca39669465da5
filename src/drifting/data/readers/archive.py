"""A .zip of image files, read like the folder that it contains, without unpacking it."""

import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from drifting._checks import check_memory
from drifting.data.readers import folder, label_files, listings
from drifting.data.readers.base import EncodedImage, Reader, Split, damaged
from drifting.errors import InputError

LAYOUT = "a .zip of image files"
_TEXTS = {*label_files.NAMES, *listings.TEXTS}
_MOST_TEXT = 2**28
_ENCRYPTED = 1


class _Tree(NamedTuple):
    """The archive as a folder of empty image files, and the reader of that folder."""

    root: Path
    reader: Reader
    members: dict[str, zipfile.ZipInfo]
    packed: zipfile.ZipFile


def matches(folder: Path) -> bool:
    """Return whether this is a .zip file."""
    return folder.suffix.lower() == ".zip" and folder.is_file()


def splits(folder: Path) -> list[str]:
    """Return the splits in the archive."""
    with _laid_out(folder) as tree:
        return list(tree.reader.splits(tree.root))


def read(folder: Path, split: str) -> Split:
    """Read one split; the images stay encoded, in memory."""
    with _laid_out(folder) as tree:
        found = tree.reader.read(tree.root, split)
        paths = [image.content for image in found.images if isinstance(image, EncodedImage) and isinstance(image.content, Path)]
        names = [path.relative_to(tree.root).as_posix() for path in paths]
        need = sum(tree.members[name].file_size for name in names)
        check_memory(need, f"data is '{folder}', whose {len(names)} images", "unpack it, and keep fewer images")
        return found._replace(images=[EncodedImage(_content(tree, folder, name), f"{folder}, {name}") for name in names])


@contextmanager
def _laid_out(path: Path) -> Iterator[_Tree]:
    """Give a folder with the text files of the archive and empty image files, so that the readers of folders can be used."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve()
        try:
            with zipfile.ZipFile(path) as packed:
                members = {_name(member, path): member for member in packed.infolist() if _is_file(member)}
                tree = _Tree(root, folder, members, packed)
                for name in members:
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    text = PurePosixPath(name).name in _TEXTS
                    (root / name).write_bytes(_content(tree, path, name) if text else b"")
                reader: Reader = listings if listings.matches(root) else folder
                if not reader.matches(root):
                    fix = "unpack it, and pass the folder"
                    raise InputError(f"data is '{path}', a .zip whose {len(members)} files are no images: {fix}")
                yield tree._replace(reader=reader)
        except InputError as error:  # of a reader that saw the folder
            raise type(error)(str(error).replace(str(root), str(path))) from None
        except MemoryError:
            raise
        except Exception as error:  # a damaged directory can raise nearly anything
            raise damaged(path, error) from None


def _is_file(member: zipfile.ZipInfo) -> bool:
    """Return whether a member is a regular file. Links are not, because their targets are not in the archive."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    return not member.is_dir() and kind in (0, stat.S_IFREG)


def _name(member: zipfile.ZipInfo, path: Path) -> str:
    """Return the path of a member, or raise InputError if it is outside the archive."""
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise InputError(f"data is '{path}', which holds '{member.filename[:60]}', a place outside of it: take another archive")
    return name.as_posix()


def _content(tree: _Tree, path: Path, name: str) -> bytes:
    """Return the content of a member, up to its declared size."""
    member = tree.members[name]
    if member.flag_bits & _ENCRYPTED:
        raise InputError(f"data is '{path}', which is encrypted: unpack it, and pass the folder")
    if PurePosixPath(name).name in _TEXTS and member.file_size > _MOST_TEXT:
        raise damaged(f"{path}, {name}", f"it declares {member.file_size:,} bytes of text")
    check_memory(member.file_size, f"data holds '{path}, {name}', whose {member.file_size:,} bytes", "remove it from the archive")
    try:
        return tree.packed.read(member)
    except MemoryError:
        raise
    except Exception as error:  # of the archive, or of its compression
        raise damaged(f"{path}, {name}", error) from None
