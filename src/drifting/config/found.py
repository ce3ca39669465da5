"""What was found in the data of a training, in words, to be said before it begins."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from drifting.config.data import Data, ImageFilesData, ImagesData, LatentsData, PointsData
from drifting.config.facts import counts_of
from drifting.config.sources import load_split, open_files, open_latents
from drifting.data.images import stored_split
from drifting.data.readers.base import shown_name
from drifting.errors import InputError
from drifting.evaluation.images import NEIGHBORS

# Classes that are told one by one, at most; of more the first ones and the last.
_ALL, _FIRST = 10, 3
# Fewer points are learnt by heart.
_FEW_POINTS = 100


def found_lines(data: Data) -> list[str]:
    """Return a line on what there is to train on, and one for each doubt; nothing of data that come with the library.

    Args:
        data: of a resolved configuration.

    Raises:
        InputError: if the data are no longer those of the configuration.
    """
    match data:
        case PointsData(count=int(count)):
            doubts = [f"{count} points are few, and samples will be copies of them: bring more"] if count < _FEW_POINTS else []
            return [f"{count} points", *_notes(doubts)]
        case ImagesData():
            return _of_images(data)
        case ImageFilesData():
            return _of_files(data)
        case LatentsData(image_shape=(_, _, _) as shape):
            cache = open_latents(data)
            classes, doubts = _classes(cache.labels if data.conditional else None, data.class_names, len(cache))
            return [f"{len(cache)} latents of {_shape(shape)}, {classes}", *_notes(doubts)]
        case _:
            return []


def _of_images(data: ImagesData) -> list[str]:
    train = load_split(data, "train")
    classes, doubts = _classes(train.labels, train.class_names, len(train.images))
    count = 0
    try:
        test = stored_split(data.path, data.name, "test", labelled=None if data.conditional else False)
        count = len(test.images)
        if data.conditional and test.labels is None:
            doubts.append("the test images have no classes, and figures by class cannot be measured: sort them as the others are")
        if 0 < count < NEIGHBORS:
            few = f"{count} test image{'s are' if count > 1 else ' is'} too few for precision, recall, density and coverage"
            doubts.append(f"{few}, which need {NEIGHBORS}: add a folder test/ with more to evaluate on")
    except InputError as error:
        doubts.append(f"no test images: {error}")
    line = _images(len(train.images), count, train.image_shape, classes, train.left_out)
    return [line, *_notes([*train.doubts, *doubts])]


def _of_files(data: ImageFilesData) -> list[str]:
    files = open_files(data)
    classes, doubts = _classes(files.labels if data.conditional else None, files.class_names, len(files))
    held_out = next((split for split in ("test", "val") if split in files.splits), None)
    test = 0 if held_out is None else len(open_files(data, held_out))
    line = _images(len(files), test, (3, data.image_size, data.image_size), classes, files.left_out)
    return [line, *_notes([*files.doubts, *doubts])]


def _images(train: int, test: int, shape: tuple[int, ...], classes: str, left_out: Sequence[str]) -> str:
    counts = f"{train} train and {test} test images" if test else f"{train} train images"
    return f"{counts} of {_shape(shape)}, {classes}" + (f"; left out: {', '.join(map(shown_name, left_out))}" if left_out else "")


def _classes(labels: Int[Tensor, " s"] | None, names: Sequence[str] | None, total: int) -> tuple[str, list[str]]:
    """Return the classes with how many images each has, in words, and what is to be said of those."""
    if labels is None:
        return "not by class", []
    counts = counts_of(labels, None if names is None else len(names), total)
    called = [
        str(label) if names is None or names[label] == str(label) else f"{label} {names[label]}" for label in range(len(counts))
    ]
    each = [f"{shown_name(name)} ({count})" for name, count in zip(called, counts, strict=True)]
    shown = each if len(each) <= _ALL else [*each[:_FIRST], "...", each[-1]]
    doubts = []
    if len(counts) == 1:
        doubts.append("all images are of one class: train without classes, or bring a folder with one sub-folder for each class")
    if single := [name for name, count in zip(called, counts, strict=True) if count == 1]:
        some = ", ".join(single[:_FIRST]) + (", ..." if len(single) > _FIRST else "")
        has = "1 class has" if len(single) == 1 else f"{len(single)} classes have"
        doubts.append(f"{has} one image each ({some}), and samples will be copies of it: add more, or train without classes")
    return f"{len(counts)} class{'es' * (len(counts) != 1)}: {', '.join(shown)}", doubts


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _notes(doubts: Sequence[str]) -> list[str]:
    return [f"note: {shown_name(doubt)}" for doubt in doubts]
