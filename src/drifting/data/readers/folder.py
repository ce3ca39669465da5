"""Image files in folders: one sub-folder per class, or all in one folder without labels; optionally below train/ and test/.

If the folder has only one folder, which has the classes or the splits, that one is read. A file of labels can have the classes in
place of sub-folders, see `label_files`. What operating systems, storage devices and notebooks leave behind is skipped at every
depth.
"""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from drifting.data.readers import MOST_NAMES, EncodedImage, Reader, Split, by_number, quoted, split_name
from drifting.data.readers.label_files import LABEL_FILES, LabelFile, has_label_file, read_labels
from drifting.errors import InputError

_KINDS = (
    "apng avif bmp dds dib gif ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pcx pgm png pnm ppm qoi sgi tga tif tiff webp"
)
_SUFFIXES = {f".{kind}" for kind in _KINDS.split()}
# What operating systems, storage devices and notebooks leave behind.
_SYSTEM = {
    *("__macosx", "__pycache__", "$recycle.bin", "#recycle", "#snapshot", "@eadir", "@recycle", "@recently-snapshot", "@tmp"),
    *("desktop.ini", "lost+found", "network trash folder", "recycler", "system volume information", "temporary items", "thumbs.db"),
}


class Listing(NamedTuple):
    """The images of one split, by name: a million take 0.1 GB.

    Attributes:
        root: the folder of the split.
        names: paths below it, sorted by class and path.
        labels, class_names, left_out, doubts: see `Split`.
        labels_from: name of the file with the labels; None if the folders are the classes.
    """

    root: Path
    names: list[str]
    labels: Int[Tensor, " s"] | None
    class_names: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    labels_from: str | None = None

    @classmethod
    def of_labels(
        cls, root: Path, labels: Mapping[str, int], class_names: Sequence[str], file: str, left_out: tuple[str, ...] = ()
    ) -> "Listing":
        """Return a listing of the images in a file of labels, given as path below the root -> class."""
        names = sorted(labels, key=lambda name: (labels[name], name.split("/")))
        numbers = torch.tensor([labels[name] for name in names], dtype=torch.long)
        return cls(root, names, numbers, tuple(class_names), left_out, labels_from=file)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / self.names[index]


class _Level(NamedTuple):
    """Names of what is directly in a folder."""

    folders: list[str]
    images: list[str]
    others: list[str]


class FolderReader(Reader):
    """A reader of image files, which can list them without reading them."""

    @abstractmethod
    def listed(self, path: Path, split: str) -> Listing:
        """List the images of one split, sorted by class and path; raises InputError if that is not possible."""

    def read(self, path: Path, split: str) -> Split:
        """Return the images of one split, in the order of `listed`."""
        listing = self.listed(path, split)
        images = [EncodedImage(listing.path(index), str(listing.path(index))) for index in range(len(listing.names))]
        return Split(images, listing.labels, listing.class_names, listing.left_out, listing.doubts)


class ImageFolder(FolderReader):
    """Image files in folders, see this module."""

    def matches(self, path: Path) -> bool:
        """Return whether there is an image file anywhere below the folder."""
        return path.is_dir() and _holds_images(path)

    def splits(self, path: Path) -> list[str]:
        """Return the splits train, test and val that have folders; without such folders everything is "train"."""
        return list(_roots(path)[0])

    def listed(self, path: Path, split: str) -> Listing:
        """List the images of one split, sorted by class and path; a class has the same number in every split.

        Raises:
            InputError: if the folder cannot be read, it is not clear which folders are the splits or the classes, or a file of
                labels is damaged or names an image that is not there.
        """
        roots, left_out = _roots(path)
        root = roots[split]
        tables = {name: read_labels(place, path) for name, place in roots.items()}
        table = tables[split]
        if table is not None and table.labels is not None:
            listing = _by_label_file(root, table, [other for other in tables.values() if other is not None])
        elif table is not None and table.problem is None:
            listing = _unlabeled(root)
        else:
            listing = _by_folders(roots, split)
            if table is not None:
                listing = listing._replace(doubts=(str(table.problem), *listing.doubts))
        return listing._replace(left_out=(*left_out, *listing.left_out))


def _roots(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return split -> its folder, and a description of other folders; without such folders, everything is "train"."""
    place = folder
    while True:
        found, beside = _split_folders(place)
        if found:
            train = _level(_descended(found["train"])).folders if "train" in found else []
            roots = {split: _descended(root, known=() if split == "train" else train) for split, root in found.items()}
            folders = f"{len(beside)} folder{'s' * (len(beside) > 1)} ({quoted(sorted(beside))})"
            return roots, (folders,) if beside else ()
        below = _only_folder(place)
        if below is None:
            return {"train": place}, ()
        place = below


def _split_folders(place: Path) -> tuple[dict[str, Path], list[str]]:
    """Return split -> folder directly in a place, and the other folders with images; nothing if the folders are classes."""
    level = _level(place)
    kinds: dict[str, list[str]] = {}
    for name in level.folders:
        if (split := split_name(name)) is not None and _holds_images(place / name):
            kinds.setdefault(split, []).append(name)
    if not kinds or level.images:
        return {}, []
    named = [name for names in kinds.values() for name in names]
    beside = [name for name in level.folders if name not in named and _holds_images(place / name)]
    if len(kinds) == 1 and ("val" in kinds or beside) and not (beside and _has_folders_of_images(place / named[0])):
        # One folder called "train" among others of images is a class, unless it holds classes itself.
        return {}, []
    for split, names in kinds.items():
        if len(names) > 1:
            both = " and ".join(f"'{name}'" for name in names)
            raise InputError(f"data is '{place}', where {both} may both be the split '{split}': rename or remove one of them")
    return {split: place / kinds[split][0] for split in ("train", "test", "val") if split in kinds}, beside


def _descended(root: Path, known: Sequence[str] = ()) -> Path:
    """Return the folder that has the images or the classes of a split: the folder itself, or the only one below it."""
    while (below := _only_folder(root)) is not None and below.name not in known:
        root = below
    return root


def _only_folder(place: Path) -> Path | None:
    """Return the only folder with images in a place, if they are again in folders or labeled by a file; otherwise None."""
    level = _level(place)
    if level.images or has_label_file(place):
        return None
    holding = [name for name in level.folders if _holds_images(place / name)]
    if len(holding) != 1:
        return None
    below = place / holding[0]
    return below if has_label_file(below) or _has_folders_of_images(below) else None


def _has_folders_of_images(place: Path) -> bool:
    level = _level(place)
    return not level.images and any(_holds_images(place / name) for name in level.folders)


def _by_folders(roots: dict[str, Path], split: str) -> Listing:
    """List a split whose folders are its classes. All splits have the same classes; one without any of them has no labels."""
    level = _level(root := roots[split])
    if level.images:
        if any(_holds_images(root / name) for name in level.folders):
            first = root / min(level.images)
            raise InputError(f"data holds '{first}' beside folders of classes: move it into one, or remove those folders")
        return Listing(root, sorted(level.images), None, None, _describe_files(level.others))
    classes = set(_level(roots.get("train", root)).folders)
    for place in roots.values():
        own = {name for name in _level(place).folders if _holds_images(place / name)}
        if classes & own:
            classes |= own
        elif place == root and own:
            return _unlabeled(root)
    class_names = sorted(classes, key=by_number)
    others, members = list(level.others), dict[str, list[str]]()
    for name in class_names:
        found = _images(root / name, others) if name in level.folders else ()
        members[name] = sorted(found, key=lambda path: path.split("/"))
    counts = torch.tensor([len(paths) for paths in members.values()], dtype=torch.long)
    return Listing(
        root,
        [f"{name}/{path}" for name, paths in members.items() for path in paths],
        torch.arange(len(counts)).repeat_interleave(counts) if class_names else None,
        tuple(class_names) or None,
        _describe_files(others),
        _doubts(members) if split == "train" else (),
    )


def _doubts(members: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return a sentence if classes have several sub-folders and nothing else, because those may be the classes."""
    inside = {name: {path.partition("/")[0] for path in paths} for name, paths in members.items() if all("/" in p for p in paths)}
    if not (deep := [name for name, folders in inside.items() if len(folders) > 1]):
        return ()
    below = sorted(set().union(*(inside[name] for name in deep)), key=by_number)
    hold = f"hold{'s' * (len(deep) == 1)} no images but sub-folders ({quoted(below)}), whose images count as one class"
    advice = "if those are the classes, pass a --data folder in which each class is one folder"
    return (f"{'class' if len(deep) == 1 else 'classes'} {quoted(deep)} {hold}: {advice}",)


def _by_label_file(root: Path, table: LabelFile, tables: Sequence[LabelFile]) -> Listing:
    """List the images in a file of labels. The classes are those of the files of all splits."""
    others = list[str]()
    there = set(_images(root, others))
    labels = table.below(root)
    if missing := sorted(labels.keys() - there):
        fix = "bring it back, or take it out of that file"
        raise InputError(f"data holds '{table.path}', which names '{missing[0]}', but that is not an image in '{root}': {fix}")
    class_names = sorted({value for other in tables for value in (other.labels or {}).values()}, key=by_number)
    left_out = (*table.left_out, *_describe_files(others))
    if unlisted := len(there) - len(labels):
        left_out += (f"{unlisted} image{'s' * (unlisted > 1)} not in {table.path.name}",)
    numbers = {name: number for number, name in enumerate(class_names)}
    numbered = {name: numbers[label] for name, label in labels.items()}
    return Listing.of_labels(root, numbered, class_names, table.path.name, left_out)


def _unlabeled(root: Path) -> Listing:
    """List all images below a folder, without classes."""
    others = list[str]()
    names = sorted(_images(root, others), key=lambda path: path.split("/"))
    return Listing(root, names, None, None, _describe_files(others))


def _holds_images(folder: Path) -> bool:
    return next(_images(folder), None) is not None


def _level(place: Path) -> _Level:
    """Return the names of folders, images and other files directly in a place."""
    level = _Level([], [], [])
    for entry, is_folder in _entries(place, _chain(place)):
        kind = level.folders if is_folder else level.images if _is_image(entry.name) else level.others
        kind.append(entry.name)
    return level


def _images(folder: Path, others: list[str] | None = None) -> Iterator[str]:
    """Yield the paths of image files below a folder, and append the names of other files to `others`; no file is looked at."""
    waiting = [("", _chain(folder))]
    while waiting:
        place, chain = waiting.pop()
        for entry, is_folder in _entries(folder / place, chain):
            if is_folder:
                waiting.append((f"{place}{entry.name}/", chain | {_identity(entry)}))
            elif _is_image(entry.name):
                yield place + entry.name
            elif others is not None:
                others.append(entry.name)


def _entries(place: Path, chain: frozenset[tuple[int, int]]) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Yield what is in a folder and whether it is a folder, without system files and links that lead back or nowhere."""
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                    continue
                with suppress(OSError):  # a link to itself
                    is_folder = entry.is_dir()
                    if (is_folder and _identity(entry) not in chain) or (not is_folder and entry.is_file()):
                        yield entry, is_folder
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"data holds '{place}', which cannot be read ({reason}): make it readable, or remove it") from None


def _chain(place: Path) -> frozenset[tuple[int, int]]:
    """Return the identities of a folder and of all folders above it, by its path and by its real path."""
    real = Path(os.path.realpath(place))
    above = {place.absolute(), *place.absolute().parents, real, *real.parents}
    return frozenset(_identity(path) for path in above if path.exists())


def _identity(place: "os.DirEntry[str] | Path") -> tuple[int, int]:
    """Return the device and the number of a folder, which do not depend on the path to it."""
    status = place.stat()
    return status.st_dev, status.st_ino


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def _describe_files(names: Iterable[str]) -> tuple[str, ...]:
    """Return the number and the suffixes of files that are neither images nor files of labels, in words."""
    suffixes = Counter(os.path.splitext(name)[1].lower() for name in names if name not in LABEL_FILES)
    if not suffixes:
        return ()
    kinds, count = [suffix or "no suffix" for suffix, _ in suffixes.most_common(MOST_NAMES)], sum(suffixes.values())
    return (f"{count} file{'s' * (count > 1)} ({', '.join(kinds)}{', ...' * (len(suffixes) > MOST_NAMES)})",)
