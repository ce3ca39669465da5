"""What a folder of images holds and what `drifting train images` would do with it, before anything is trained."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any, cast

import torch
from torch import Tensor, nn

from drifting.config import RunConfig
from drifting.data import ImagesData
from drifting.data.dataset import as_notes, describe_classes
from drifting.data.pixels import ImageFacts, examine, to_signed
from drifting.data.readers import Split
from drifting.data.readers.find import LabelError, read_split
from drifting.data.sources import InMemorySource
from drifting.errors import InputError
from drifting.presets.images import DataSize, images_of_size
from drifting.pretraining.loop import HeldRows, batches_of
from drifting.pretraining.objectives import train_network
from drifting.runs.train import build_encoder
from drifting.training.loop import train as training_steps
from drifting.training.positives import FeatureCache, Positives
from drifting.training.state import TrainingState

# Sides that the preset is measured at; it takes the larger one if most images are as large.
_SIDES = (64, 32)
# Steps that are timed, after as many for the memory and the compilers to warm up.
_WARM_UP, _TIMED = 2, 3
# Most damaged images that are listed.
_SHOWN = 10
# Images of each class on which steps are timed, at most.
_MEMBERS = 64


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        path: the folder, file or Hub id.
        lines: what is there and what the preset would do, a line each.
        problems: a sentence for each reason for which a training would stop: damaged images, and too few images for a test.
        config: the configuration that the command would train; None if every image is damaged.
        minutes: expected minutes of the training on this machine; None if no step was timed.
        command: the command to start with.
    """

    path: str
    lines: list[str]
    problems: list[str]
    config: RunConfig | None
    minutes: float | None
    command: str

    def report(self) -> list[str]:
        """Return everything in lines to print."""
        lines = list(self.lines)
        if self.minutes is not None:
            lines.append(f"- take about {_counted(max(1, round(self.minutes)), 'minute')} on this machine, as it is loaded now")
        if self.problems:
            shown = [f"- {problem}" for problem in self.problems[:_SHOWN]]
            more = len(self.problems) - len(shown)
            lines += ["", f"A training would stop for {_counted(len(self.problems), 'reason')}:", *shown]
            lines += [f"- and {more} more"] if more else []
        return [*lines, "", "Start it with:" if not self.problems else "Then start it with:", self.command]


def inspect_images(data: str, *, image_size: int | None = None, unconditional: bool = False, time_steps: bool = True) -> Inspection:
    """Return what a folder of images holds, what the preset `images` would do with it, and how long that would take.

    Every image is decoded, and none is changed.

    Args:
        data: folder or Hub id, as for `drifting train images`.
        image_size: side in pixels; chosen by the images if it is None.
        unconditional: whether to leave classes out.
        time_steps: whether to time a few steps of the training, on random pixels of the same shape.

    Raises:
        InputError: if there are no images, or the folder cannot be understood.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}: pass 1 or more")
    train, notes = _read(data, "train", unconditional=unconditional)
    facts, problems = _examined(train)
    test_count, missing = _test_images(data, unconditional=unconditional)
    problems = [*missing, *problems]
    classes, doubts = describe_classes(train.labels, train.class_names, len(train.images))
    found = f"{_counted(len(train.images), 'training image')} and {_counted(test_count, 'test image')}, {classes}"
    lines = [found, *([f"left out: {', '.join(train.left_out)}"] if train.left_out else [])]
    doubts = [*notes, *train.doubts, *doubts]
    if not facts:
        return Inspection(data, [*lines, *as_notes(doubts)], problems, None, None, _command(data, image_size, train.labels is None))
    side = image_size or _side(facts)
    joined = train.labels is None or len(train.labels.unique()) < 2
    config, shape = _config(data, train, facts, side, joined=joined)
    lines += [*_contents(facts), *as_notes(doubts), "", "drifting train images would", *_plan(config, shape, facts, side)]
    minutes = _minutes(config, shape, train.labels) if time_steps else None
    return Inspection(data, lines, problems, config, minutes, _command(data, side, joined))


def _read(data: str, split: str, *, unconditional: bool) -> tuple[Split, list[str]]:
    """Return a split, without its labels if they cannot be used, and a sentence about that."""
    try:
        part, _ = read_split(data, None, split, labeled=False if unconditional else None)
        notes = []
    except LabelError as error:
        part, _ = read_split(data, None, split, labeled=False)
        part, notes = part._replace(labels=None), [str(error)]
    return (part._replace(labels=None, class_names=None) if unconditional else part), notes


def _test_images(data: str, *, unconditional: bool) -> tuple[int, list[str]]:
    """Return the number of test images, which a training needs, and a sentence if there are none."""
    try:
        return len(_read(data, "test", unconditional=unconditional)[0].images), []
    except InputError as error:
        return 0, [str(error)]


def _examined(part: Split) -> tuple[list[ImageFacts], list[str]]:
    """Return what the images hold, and a sentence for each that cannot be decoded."""
    if isinstance(part.images, Tensor):
        count, channels, height, width = part.images.shape
        return [ImageFacts(width, height, "L" if channels == 1 else "RGB", False)] * count, []
    found = examine(part.images)
    return [each for each in found if isinstance(each, ImageFacts)], [str(each) for each in found if isinstance(each, InputError)]


def _side(facts: Sequence[ImageFacts]) -> int | None:
    """Return the side to crop and resize to; None if the images are small squares of one size."""
    sizes = {(each.width, each.height) for each in facts}
    smaller = median_low(min(size) for size in ((each.width, each.height) for each in facts))
    if len(sizes) == 1 and len(set(*sizes)) == 1 and smaller <= _SIDES[0]:
        return None
    return next((side for side in _SIDES if smaller >= side), smaller)


def _contents(facts: Sequence[ImageFacts]) -> list[str]:
    sizes = Counter(f"{each.width} x {each.height}" for each in facts)
    (common, times), *_ = sizes.most_common(1)
    if len(sizes) == 1:
        size = f"all images have {common} pixels"
    else:
        sides = [(each.width, each.height) for each in facts]
        least, most = (" x ".join(map(str, pick(sides, key=lambda side: side[0] * side[1]))) for pick in (min, max))
        size = f"{len(sizes)} sizes, from {least} to {most} pixels; the most frequent is {common} ({times})"
    modes = ", ".join(f"{mode} ({count})" for mode, count in Counter(each.mode for each in facts).most_common())
    transparent = sum(each.transparent for each in facts)
    return [size, f"modes: {modes}" + (f"; transparent: {transparent}" if transparent else "")]


def _config(
    data: str, train: Split, facts: Sequence[ImageFacts], side: int | None, *, joined: bool
) -> tuple[RunConfig, tuple[int, int, int]]:
    """Return the preset for these images, of which it needs to know only numbers, and their shape."""
    channels, pixels = 1 if all(each.gray for each in facts) else 3, side or facts[0].width
    shape, count = (channels, pixels, pixels), len(train.images)
    classes = None if joined or train.labels is None else len(train.class_names or train.labels.unique())
    source = ImagesData(name="images", path=data, image_size=side, conditional=not joined)
    config = images_of_size(source, DataSize(count, classes or 1, shape))
    return dataclasses.replace(config, data=config.data.changed(image_shape=shape, num_classes=classes)), shape


def _plan(config: RunConfig, shape: Sequence[int], facts: Sequence[ImageFacts], side: int | None) -> list[str]:
    lines, channels = [], shape[0]
    if side is None:
        lines.append(f"- keep the {shape[1]} x {shape[2]} pixels")
    else:
        cropped = sum(each.width != each.height for each in facts)
        enlarged = sum(min(each.width, each.height) < side for each in facts)
        crop = f"crop {cropped} of {_counted(len(facts), 'image')} to the square in the middle, and " if cropped else ""
        lines.append(f"- {crop}resize to {side} x {side} pixels" + (f", which enlarges {enlarged}" if enlarged else ""))
    gray = sum(each.gray for each in facts)
    mixed = f"; {_counted(gray, 'gray image')} would get three equal channels" if channels == 3 and gray else ""
    lines.append(f"- train in {'gray' if channels == 1 else 'color'}{mixed}")
    if any(each.transparent for each in facts):
        lines.append("- draw transparent images on white")
    schedule, encoder, classes = config.schedule, config.encoder, config.data.num_classes
    lines.append("- make images of each class" if classes else "- make images without classes (--unconditional)")
    name = "a ResNet-10 that learns the classes" if encoder.objective == "classes" else "an auto-encoder of the images"
    steps: Any = getattr(encoder, "steps", 0)
    lines.append(f"- train {name} for {steps} steps, then the generator in its features for {schedule.steps} steps")
    of_each = f"{_counted(schedule.labels_per_step, 'class')}, of each " if classes else ""
    lines.append(f"- in each step compare {of_each}{schedule.generated} generated and {schedule.positives} real images")
    return lines


def _counted(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def _command(data: str, side: int | None, joined: bool) -> str:
    size = "" if side is None else f" --image-size {side}"
    shown = f"'{data}'" if " " in data else data
    return f"drifting train images --data {shown}{size}{' --unconditional' if joined else ''} --save-dir runs/{_name(data)}"


def _name(data: str) -> str:
    return Path(data).resolve().stem.replace(" ", "-") or "images"


def _minutes(config: RunConfig, shape: tuple[int, int, int], labels: Tensor | None) -> float:
    """Return the minutes of the training, from a few steps of the encoder and of the generator on random pixels."""
    classes = config.data.num_classes
    members = min(_MEMBERS, max(1, (_MEMBERS if labels is None else int(labels.bincount().max()))))
    count = members * (classes or 1)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape), generator=rng).to(torch.uint8)
    kinds = None if classes is None else torch.arange(classes).repeat(members)
    network, settings = cast(nn.Module, config.build_network()), cast(Any, config.encoder)
    batches = batches_of(HeldRows(pixels, kinds), settings.batch_size, config.seed)
    seconds = settings.steps * _seconds_of_step(train_network(network, settings, batches, seed=config.seed))
    encoder = build_encoder(config, network.eval())
    cache = FeatureCache(encoder, pixels, prepare=to_signed)
    positives = Positives(InMemorySource(torch.arange(count), kinds, None), encoder, cache)
    state = TrainingState(config.build_generator(), config.schedule, config.seed)
    steps = training_steps(state, positives, encoder, config.loss.build(), config.schedule)
    return (seconds + config.schedule.steps * _seconds_of_step(steps)) / 60


def _seconds_of_step(steps: Iterable[Any]) -> float:
    """Return the mean seconds of a step, after a few for the machine to warm up."""
    started = 0.0
    for number, _ in enumerate(steps, start=1):
        if number == _WARM_UP:
            started = time.perf_counter()
        if number == _WARM_UP + _TIMED:
            break
    return (time.perf_counter() - started) / _TIMED
