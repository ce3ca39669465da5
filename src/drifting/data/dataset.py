"""The interfaces of data: `Data` is a kind of data, `Source` draws its real samples in training. Descriptions of data in words.

Shapes: s samples, b samples of a batch, l labels, p positives, m unconditional samples.
"""

import dataclasses
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from drifting.data.pixels import to_bytes
from drifting.data.readers import MOST_NAMES, by_number, quoted, shown_name
from drifting.errors import InputError

# The share of a process without peers: everything.
ALL = slice(None)
# The fix for data that have changed since the run began.
BRING_BACK = "bring those back, or train anew"
# Fewest images of each side for precision, recall, density and coverage, see `evaluation.figures`.
NEIGHBORS = 6
# Most classes that are listed in full; a longer list is shortened to its first classes and the last one.
_ALL_CLASSES, _FIRST_CLASSES = 10, 3


@runtime_checkable
class Source(Protocol):
    """Draws real samples by label."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of labels, or None without labels."""
        ...

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Float[Tensor, "l p *sample"]:
        """Return `count` real samples for each label (one set without labels), on the device of rng.

        If several processes draw the same samples, each keeps its `own` labels, or without labels its own samples. `own` does not
        change what is drawn from rng.
        """
        ...

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Float[Tensor, "l m *sample"]:
        """Return the `own` ones of `sets` independent sets of `count` real samples of any label, on the device of rng."""
        ...


@runtime_checkable
class Images(Protocol):
    """Real images by position, in memory or in files, and their classes where they have any."""

    @property
    def labels(self) -> Int[Tensor, " s"] | None:
        """Class of each."""
        ...

    @property
    def root(self) -> Path | None:
        """The folder that holds them; None where they are in memory."""
        ...

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def read(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """Return some of them."""
        ...

    def state(self, indices: Int[Tensor, " b"]) -> str:
        """Return what stands for the contents of some of them, and for how they are read."""
        ...


def owned(drawn: Shaped[Tensor, "l p *sample"], labels: Tensor | None, own: slice) -> Shaped[Tensor, "o q *sample"]:
    """Return one process's share of what was drawn for all: its labels or, without labels, its samples of the one set."""
    return drawn[:, own] if labels is None else drawn[own]


Decoder = Callable[[Float[Tensor, "b *sample"]], UInt8[Tensor, "b c h w"]]
P = ParamSpec("P")
T = TypeVar("T")
_read: list[Callable[[], None]] = []


def read_once(size: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Cache the results of a function that reads data, for its last `size` arguments, until `forget_data` is called."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        cached = functools.lru_cache(maxsize=size)(function)
        _read.append(cached.cache_clear)
        return cached  # pyright: ignore[reportReturnType] - of the same arguments

    return decorate


def forget_data() -> None:
    """Clear the caches of `read_once`, so that data that changed on disk are read again."""
    for clear in _read:
        clear()


# Metadata of a field that is not a setting.
FOUND = {"found": True}


def found() -> Any:
    """Return a field of `Data` whose value is found by reading the data; it is None before."""
    return dataclasses.field(default=None, metadata=FOUND)


class Data(ABC):
    """The training data of a run. Subclasses are frozen dataclasses with settings and with facts found by reading the data.

    Attributes:
        loads_images: whether `load` returns the images of a split in memory, for encoders and classifiers to learn from.
        on_disk: whether samples stay on disk, so that training must draw them from a memory bank.
        supports_bank: whether `source` can draw from a memory bank.
        latent: whether samples are latents, which an auto-encoder decodes.
        num_classes: number of labels; None without labels or if they are not used.
        class_names: name of each label, if known.
        counts: number of samples of each class, or of all samples without classes, if known.
        conditional: whether each class is a population of its own.
    """

    loads_images: ClassVar[bool] = False
    on_disk: ClassVar[bool] = False
    supports_bank: ClassVar[bool] = False
    latent: ClassVar[bool] = False
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None
    conditional: bool = False

    @property
    def makes_images(self) -> bool:
        """Whether generated samples are images, or latents of images."""
        return self.loads_images or self.on_disk

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample; raises InputError if it is not known yet."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the data in pictures."""

    @abstractmethod
    def source(
        self,
        seed: int,
        bank: Any = None,
        *,
        device: str = "cpu",
        indexed: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Source:
        """Return the real samples.

        Args:
            seed: seed of the order and of the augmentation.
            bank: `data.bank.BankConfig` of the memory bank to draw from; None for no bank.
            device: device of the bank.
            indexed: whether to draw indices of samples instead of samples, for cached features.
            on_progress: called with (samples read, samples to read) while a bank is filled.
        """

    def changed(self, **fields: Any) -> "Data":
        """Return the data with other values of some fields."""
        return dataclasses.replace(cast(Any, self), **fields)

    def find(self, *, labeled: bool = False) -> "Data":
        """Return the data with their location and the facts found by reading them. Facts that are known stay.

        Args:
            labeled: whether to read labels even if the data are not conditional.

        Raises:
            InputError: if the data are missing or cannot be used.
        """
        return self

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Raise InputError if the data have changed since the run began, as far as the saved facts tell."""

    def report(self) -> list[str]:
        """Return a line that describes the data, and a note for each possible problem; nothing for the built-in data."""
        return []

    def labels(self) -> tuple[Int[Tensor, " s"] | None, tuple[str, ...] | None]:
        """Return the class of every training sample, read from the data, and the names of the classes."""
        return None, self.class_names

    def classes_to_learn(self) -> int | None:
        """Return the number of classes that an encoder can learn, whether or not the data are conditional."""
        return self.num_classes

    def exported_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the exported images, or raise InputError if samples are not images."""
        raise InputError(f"data is {type(self).__name__}, of no known image shape: name a run of images")

    def depict(self, drawing: Any) -> list[Path]:
        """Draw the pictures of a run and return their paths: by one of the ways of a `runs.pictures.Drawing`, or in an own one."""
        return []

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        """Measure the samples of a run: by one of the ways of a `runs.evaluate.Evaluation`, or in an own one.

        Raises:
            InputError: if nothing can be measured.
        """
        raise InputError(f"data is {type(self).__name__}, which does not say how its samples are measured: write its `evaluate`")

    def exporter(self) -> Callable[[Tensor], Tensor]:
        """Return the function that exports samples: points in the coordinates of the user, images as uint8 [n, h, w, c].

        Raises:
            InputError: if something that it needs is missing.
        """
        return lambda samples: samples


class ImageData(Data):
    """Data whose samples are images, or latents of images."""

    path: str | None = None
    image_shape: tuple[int, int, int] | None = None

    @property
    def _origin(self) -> str:
        """Name of the data in messages."""
        return str(self.path)

    def check_classes(self, facts: dict[str, Any]) -> None:
        """Raise InputError if the classes, their order or their sizes are not those that were found when the run began."""
        before, now = self.class_names, facts["class_names"]
        what = None
        if before is not None and now != before:
            what = f"whose classes are not those that the run began with ({_changes(before, now or ())})"
        elif self.conditional and self.num_classes != facts["num_classes"]:
            what = f"which has {facts['num_classes'] or 'no'} classes where the run began with {self.num_classes or 'none'}"
        elif before is None and now is not None and sorted(now) != list(now) == sorted(now, key=by_number):
            # An earlier version numbered them so.
            what = f"whose classes were numbered in the order of text when the run began, {quoted(sorted(now))}, and now by number"
        elif self.counts is not None and facts.get("counts", self.counts) != self.counts:
            what = _sizes(self.counts, facts["counts"], now)
        if what:
            raise InputError(f"data is '{self._origin}', {what}: {BRING_BACK}")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        if self.image_shape is None:
            raise InputError(f"data is '{self._origin}', whose shape is not known yet: resolve the configuration first")
        return self.image_shape

    def training_images(self) -> Images | None:
        """Return the training images, or None if there are none or their files are missing."""
        return None

    def training_classes(self) -> tuple[Int[Tensor, " s"] | None, tuple[str, ...] | None]:
        """Return the class of every training image, and the names of the classes; None if there are no classes, or no data."""
        counts, names = self.counts, self.class_names
        if not self.conditional:
            return None, None
        if counts and names:
            return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), names
        try:
            return self.labels()
        except InputError as error:
            warnings.warn(
                f"samples are of all classes equally often, because the classes of the data are not known ({error})", stacklevel=2
            )
        return None, names

    def exported_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the exported images."""
        channels, height, width = self.sample_shape
        return channels, height, width

    def decoder(self, device: str = "cpu") -> Decoder:
        """Return the function from samples to bytes on the same device.

        Args:
            device: device of the auto-encoder, if there is one; it is loaded here, once per process.

        Raises:
            InputError: if the auto-encoder is missing or does not fit the latents.
        """
        return to_bytes

    def exporter(self) -> Callable[[Tensor], Tensor]:
        """Return the function from samples to images as uint8 [n, h, w, c]."""
        decode = self.decoder()
        return lambda samples: decode(samples).movedim(1, -1)


def counts_of(labels: Int[Tensor, " s"] | None, num_classes: int | None, total: int) -> tuple[int, ...]:
    """Return the number of images of each class, or of all images without labels."""
    return (total,) if labels is None else tuple(labels.bincount(minlength=num_classes or 0).tolist())


def _changes(before: Sequence[str], now: Sequence[str]) -> str:
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    changes = [
        f"{quoted(names)} {'is' if len(names) == 1 else 'are'} {how}" for names, how in ((gone, "gone"), (new, "new")) if names
    ]
    return ", ".join(changes) or "they have another order"


def _sizes(before: Sequence[int], now: Sequence[int], names: Sequence[str] | None) -> str:
    """Return the first class whose number of images has changed, or the total number, in words."""
    if len(before) != len(now) or len(now) == 1:
        return f"which holds {sum(now)} training images where the run began with {sum(before)}"
    label = next(label for label, (then, here) in enumerate(zip(before, now, strict=True)) if then != here)
    called = f"class '{names[label]}'" if names else f"class {label}"
    return f"whose {called} has {now[label]} training images where the run began with {before[label]}"


def describe_images(train: int, test: int, shape: tuple[int, ...], classes: str, left_out: Sequence[str]) -> str:
    """Return the line that describes images: their number, size and classes, and what is left out."""
    counts = f"{train} train and {test} test images" if test else f"{train} train images"
    rest = f"; left out: {', '.join(map(shown_name, left_out))}" if left_out else ""
    return f"{counts} of {describe_shape(shape)}, {classes}{rest}"


def describe_classes(labels: Int[Tensor, " s"] | None, names: Sequence[str] | None, total: int) -> tuple[str, list[str]]:
    """Return the classes with their numbers of images in words, and a note for each possible problem."""
    if labels is None:
        return "not by class", []
    counts = counts_of(labels, None if names is None else len(names), total)
    numbers = [str(label) for label in range(len(counts))]
    titles = [number if name == number else f"{number} {name}" for number, name in zip(numbers, names or numbers, strict=True)]
    each = [f"{shown_name(title)} ({count})" for title, count in zip(titles, counts, strict=True)]
    shown = each if len(each) <= _ALL_CLASSES else [*each[:_FIRST_CLASSES], "...", each[-1]]
    doubts = []
    if len(counts) == 1:
        doubts.append("all images are of one class: train without classes, or bring a folder with one sub-folder for each class")
    if single := [title for title, count in zip(titles, counts, strict=True) if count == 1]:
        some = ", ".join(single[:MOST_NAMES]) + ", ..." * (len(single) > MOST_NAMES)
        has = "1 class has" if len(single) == 1 else f"{len(single)} classes have"
        doubts.append(f"{has} one image each ({some}), and samples will be copies of it: add more, or train without classes")
    return f"{len(counts)} class{'es' * (len(counts) != 1)}: {', '.join(shown)}", doubts


def describe_shape(shape: Sequence[int]) -> str:
    """Return a shape in words."""
    return " x ".join(map(str, shape))


def as_notes(doubts: Sequence[str]) -> list[str]:
    """Return a line for each doubt."""
    return [f"note: {shown_name(doubt)}" for doubt in doubts]
