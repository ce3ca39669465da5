"""Compare data with the facts that a run saved about them, and describe data in the report before training."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from drifting.data.dataset import Data
from drifting.data.readers import by_number, shown_name
from drifting.errors import InputError

FIX = "bring those back, or train anew"
# Most names in a message.
_SHOWN = 3
# Most classes that are listed in full; a longer list is shortened to its first classes and the last one.
_ALL, _FIRST = 10, 3
# Fewest images of each side for precision, recall, density and coverage, see `evaluation.images`.
NEIGHBORS = 6


def counts_of(labels: Int[Tensor, " s"] | None, num_classes: int | None, total: int) -> tuple[int, ...]:
    """Return the number of images of each class, or of all images without labels."""
    return (total,) if labels is None else tuple(labels.bincount(minlength=num_classes or 0).tolist())


def check_classes(data: Data, found: dict[str, Any], origin: str) -> None:
    """Raise InputError if the classes, their order or their sizes differ from those of the run."""
    before, now = data.class_names, found["class_names"]
    what = None
    if before is not None and now != before:
        what = f"whose classes are not those that the run began with ({_changes(before, now or ())})"
    elif data.conditional and data.num_classes != found["num_classes"]:
        what = f"which has {found['num_classes'] or 'no'} classes where the run began with {data.num_classes or 'none'}"
    elif before is None and now is not None and sorted(now) != list(now) == sorted(now, key=by_number):
        # An earlier version numbered them so.
        what = f"whose classes were numbered in the order of text when the run began, {_some(sorted(now))}, and now by number"
    elif data.counts is not None and found.get("counts", data.counts) != data.counts:
        what = _sizes(data.counts, found["counts"], now)
    if what:
        raise InputError(f"data is '{origin}', {what}: {FIX}")


def _changes(before: Sequence[str], now: Sequence[str]) -> str:
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    parts = [
        f"{_some(names)} {'is' if len(names) == 1 else 'are'} {word}" for names, word in ((gone, "gone"), (new, "new")) if names
    ]
    return ", ".join(parts) or "they have another order"


def _sizes(before: Sequence[int], now: Sequence[int], names: Sequence[str] | None) -> str:
    """Return the first class whose number of images has changed, or the total number, in words."""
    if len(before) != len(now) or len(now) == 1:
        return f"which holds {sum(now)} training images where the run began with {sum(before)}"
    label = next(label for label, (then, here) in enumerate(zip(before, now, strict=True)) if then != here)
    called = f"class '{names[label]}'" if names else f"class {label}"
    return f"whose {called} has {now[label]} training images where the run began with {before[label]}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def describe_images(train: int, test: int, shape: tuple[int, ...], classes: str, left_out: Sequence[str]) -> str:
    """Return the line that describes images: their number, size and classes, and what is left out."""
    counts = f"{train} train and {test} test images" if test else f"{train} train images"
    return f"{counts} of {describe_shape(shape)}, {classes}" + (
        f"; left out: {', '.join(map(shown_name, left_out))}" if left_out else ""
    )


def describe_classes(labels: Int[Tensor, " s"] | None, names: Sequence[str] | None, total: int) -> tuple[str, list[str]]:
    """Return the classes with their numbers of images in words, and a note for each possible problem."""
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


def describe_shape(shape: Sequence[int]) -> str:
    """Return a shape in words."""
    return " x ".join(map(str, shape))


def as_notes(doubts: Sequence[str]) -> list[str]:
    """Return a line for each doubt."""
    return [f"note: {shown_name(doubt)}" for doubt in doubts]
