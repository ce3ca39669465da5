"""What a run knows of its data from when they were first read, and whether they are still the same when they are read again."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from drifting.config.data import ImageFilesData, ImagesData, PointsData
from drifting.data.image_folder import ImageFiles
from drifting.data.images import ImageSet
from drifting.data.readers.base import by_number
from drifting.errors import InputError

_FIX = "bring those back, or train anew"
# Of names in a message: at most so many.
_SHOWN = 3


# Looking at every pixel of a large set takes a second.
@functools.lru_cache(maxsize=2)
def facts_of_images(images: ImageSet) -> dict[str, Any]:
    """Return the fields of `ImagesData` that are found in the images of the split "train"."""
    return {
        "image_shape": images.image_shape,
        "num_classes": images.num_classes,
        "class_names": images.class_names,
        "counts": counts_of(images.labels, images.num_classes, len(images.images)),
        "fingerprint": images.fingerprint(),
    }


def facts_of_files(data: ImageFilesData, files: ImageFiles, num_classes: int | None) -> dict[str, Any]:
    """Return the fields of `ImageFilesData` that are found by listing the split "train"."""
    labels = None if num_classes is None else files.labels
    return {
        "image_shape": (3, data.image_size, data.image_size),
        "num_classes": num_classes,
        "class_names": None if num_classes is None else files.class_names,
        "counts": counts_of(labels, num_classes, len(files)),
        "files": files.fingerprint(),
    }


def facts_of_points(points: Float[Tensor, "n 2"]) -> dict[str, Any]:
    """Return the fields of `PointsData` by which the points are known again."""
    return {"count": len(points), "fingerprint": hashlib.sha256(points.contiguous().numpy().data).hexdigest()[:16]}


def counts_of(labels: Int[Tensor, " s"] | None, num_classes: int | None, total: int) -> tuple[int, ...]:
    """Return how many images each class has; of images without labels, how many there are."""
    return (total,) if labels is None else tuple(labels.bincount(minlength=num_classes or 0).tolist())


def check_images(data: ImagesData, images: ImageSet, split: str) -> None:
    """Raise InputError if images in memory are not those that a run began with, saying what changed.

    Only classes are compared where the run is of a version that kept no more.
    """
    if data.image_shape is None:
        return
    found = facts_of_images(images) if split == "train" else {"num_classes": images.num_classes, "class_names": images.class_names}
    origin = data.path or data.name
    _check_classes(data, found, origin)
    if split == "train" and data.fingerprint not in (None, found["fingerprint"]):
        what = "whose images are not those that the run began with, though they are as many"
        if found["image_shape"] != data.image_shape:
            shapes = (" x ".join(map(str, shape)) for shape in (found["image_shape"], data.image_shape))
            what = "whose images are {} where the run began with {}".format(*shapes)
        raise InputError(f"data is '{origin}', {what}: {_FIX}")


def check_files(data: ImageFilesData, files: ImageFiles) -> None:
    """Raise InputError if the files of a folder are not those that a run began with, saying what changed."""
    # Runs of earlier versions know the names alone.
    if data.files in (None, files.fingerprint(), files.names_fingerprint()):
        return
    _check_classes(data, facts_of_files(data, files, files.num_classes if data.conditional else None), str(data.path))
    others = f"whose files are not those that the run began with ({files.fingerprint()}, not {data.files})"
    raise InputError(f"data is '{data.path}', {others}: bring them back, or train anew")


def check_points(data: PointsData, points: Float[Tensor, "n 2"]) -> None:
    """Raise InputError if the points of a file are not those that a run began with."""
    if data.fingerprint is None or data.fingerprint == facts_of_points(points)["fingerprint"]:
        return
    what = "whose points are not those that the run began with, though they are as many"
    if len(points) != data.count:
        what = f"which holds {len(points)} points where the run began with {data.count}"
    raise InputError(f"data is '{data.path}', {what}: {_FIX}")


def _check_classes(data: ImagesData | ImageFilesData, found: dict[str, Any], origin: str) -> None:
    """Raise InputError if the classes or their sizes are others than a run has, or are numbered in another order."""
    before, now = data.class_names, found["class_names"]
    what = None
    if before is not None and now != before:
        what = f"whose classes are not those that the run began with ({_changes(before, now or ())})"
    elif data.conditional and data.num_classes != found["num_classes"]:
        what = f"which has {found['num_classes'] or 'no'} classes where the run began with {data.num_classes or 'none'}"
    elif before is None and now is not None and sorted(now) != list(now) == sorted(now, key=by_number):
        # What an earlier version read.
        what = f"whose classes were numbered in the order of text when the run began, {_some(sorted(now))}, and now by number"
    elif data.counts is not None and found.get("counts", data.counts) != data.counts:
        what = _sizes(data.counts, found["counts"], now)
    if what:
        raise InputError(f"data is '{origin}', {what}: {_FIX}")


def _changes(before: Sequence[str], now: Sequence[str]) -> str:
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    parts = [
        f"{_some(names)} {'is' if len(names) == 1 else 'are'} {word}" for names, word in ((gone, "gone"), (new, "new")) if names
    ]
    return ", ".join(parts) or "they have another order"


def _sizes(before: Sequence[int], now: Sequence[int], names: Sequence[str] | None) -> str:
    """Return the first class whose number of images is another, in words; or the number of all."""
    if len(before) != len(now) or len(now) == 1:
        return f"which holds {sum(now)} training images where the run began with {sum(before)}"
    label = next(label for label, (then, here) in enumerate(zip(before, now, strict=True)) if then != here)
    called = f"class '{names[label]}'" if names else f"class {label}"
    return f"whose {called} has {now[label]} training images where the run began with {before[label]}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
