"""Where real samples come from: what a kind of data knows, what training sees of it, and sources that hold all samples in memory.

Shapes: l labels, p positives.
"""

import dataclasses
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from drifting._seeds import stream_seed
from drifting.data.pixels import to_bytes
from drifting.errors import InputError

# The share of a process that is alone.
ALL = slice(None)


@runtime_checkable
class Source(Protocol):
    """Real samples by label. `num_classes` is None where there are no labels."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of labels."""
        ...

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Float[Tensor, "l p *sample"]:
        """Return `count` real samples for each label (one set if there are none), on the device of rng.

        Of several processes that draw the same, each takes its `own` labels, or its own samples of the one set; what rng has drawn
        afterwards does not depend on it.
        """
        ...

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Float[Tensor, "l m *sample"]:
        """Return `sets` independent sets of `count` real samples of any label, or the `own` ones of them, on the device of rng."""
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
    """Return of what was drawn for all processes the share of one: its labels or, of a single set, its samples."""
    return drawn[:, own] if labels is None else drawn[own]


class StreamSource:
    """Unlabeled samples drawn afresh from a distribution, never twice the same."""

    num_classes = None

    def __init__(self, draw: Callable[[int, torch.Generator], Tensor], sample_shape: tuple[int, ...]) -> None:
        self._draw = draw
        self.sample_shape = sample_shape

    def draw(self, labels: Tensor | None, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return one set of `count` fresh samples, or the own ones of them."""
        return self._draw(count, rng)[None, own]

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return sets of fresh samples."""
        return self._draw(sets * count, rng).unflatten(0, (sets, count))[own]


class InMemorySource:
    """A finite data set, drawn without replacement within a step as far as it reaches.

    Args:
        samples: all real samples, or what `prepare` makes them from.
        labels: their classes, 0 to num_classes - 1, every one present; None for one unlabeled population.
        prepare: turns drawn rows of `samples` into samples, such as bytes into floats; None if they are samples.
    """

    def __init__(
        self,
        samples: Shaped[Tensor, "s *sample"],
        labels: Int[Tensor, " s"] | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(samples) == 0:
            raise InputError("data is empty: pass at least one sample")
        if not bool(samples.isfinite().all()):
            raise InputError("data holds NaN or infinite values: remove or fix those samples")
        self.samples, self.sample_shape, self._prepare = samples, tuple(samples.shape[1:]), prepare
        self.num_classes = None if labels is None else int(labels.max()) + 1
        classes = torch.zeros(len(samples), dtype=torch.long) if labels is None else labels.long().cpu()
        present = classes.unique().tolist()  # not their counts: a table up to a label of 10^12 needs terabytes
        absent = next((label for label, found in enumerate(present) if label != found), None)
        if absent is not None:
            raise InputError(
                f"data has no sample of class {absent}, but of {present[-1]}: number the classes 0 to {len(present) - 1}"
            )
        members = [torch.nonzero(classes == label)[:, 0] for label in present]
        # Row c lists the samples of class c, padded with -1.
        self._members = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)

    def draw(self, labels: Tensor | None, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return `count` samples of each label, all different where the class has that many."""
        # Moved once: the data set goes to the device that asks for it and stays there.
        self.samples, self._members = self.samples.to(rng.device), self._members.to(rng.device)
        members = self._members
        members = members[:1] if labels is None else members[labels]
        keys = torch.rand(members.shape, generator=rng, device=rng.device).masked_fill_(members < 0, 2.0)
        order = keys.topk(min(count, members.shape[1]), dim=1, largest=False).indices
        available = (members >= 0).sum(1, keepdim=True)
        rank = torch.arange(count, device=rng.device) % available
        return self._taken(owned(members.gather(1, order.gather(1, rank)), labels, own))

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return sets of samples of any class, each drawn from all samples."""
        self.samples = self.samples.to(rng.device)
        return self._taken(torch.randint(len(self.samples), (sets, count), generator=rng, device=rng.device)[own])

    def _taken(self, indices: Int[Tensor, "l p"]) -> Tensor:
        drawn = self.samples[indices]
        return drawn if self._prepare is None else self._prepare(drawn)


def reference_samples(source: Source, count: int, seed: int, *, limit: bool = False) -> Float[Tensor, "r *sample"]:
    """Return about `count` real samples of a seed on the CPU, classes in turn where there are any.

    Of more classes than that there is one sample each or, with a limit, there are the first ones alone, as in so many samples.
    """
    rng = torch.Generator().manual_seed(stream_seed(seed, "reference"))
    if source.num_classes is None:
        return source.draw(None, count, rng)[0]
    per_class = max(1, count // source.num_classes)
    classes = min(source.num_classes, count) if limit else source.num_classes
    return source.draw(torch.arange(classes), per_class, rng).transpose(0, 1).flatten(0, 1)


Decoder = Callable[[Float[Tensor, "b *sample"]], UInt8[Tensor, "b c h w"]]
P = ParamSpec("P")
T = TypeVar("T")
_read: list[Callable[[], None]] = []


def read_once(size: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that what it reads stays in memory, for its last `size` arguments, until `forget_data`."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        cached = functools.lru_cache(maxsize=size)(function)
        _read.append(cached.cache_clear)
        return cached  # pyright: ignore[reportReturnType] - of the same arguments

    return decorate


def forget_data() -> None:
    """Have all data read again when they are next asked for: what lies in a folder may have changed since."""
    for clear in _read:
        clear()


# The mark of a field that nobody sets by hand.
FOUND = {"found": True}


def found() -> Any:
    """Return a field of `Data` whose value is found by reading the data; None before."""
    return dataclasses.field(default=None, metadata=FOUND)


class Data(ABC):
    """What a run is trained on. Its classes are frozen dataclasses, whose fields are settings and what was found in the data.

    Attributes:
        kind: "points", "digits", "images" in memory or "streamed" images; empty for any other.
        latent: whether samples are latents, which an auto-encoder decodes.
        num_classes: number of labels; None where there are none, or they are not used.
        class_names: name of each label, where they are known.
        counts: samples of each class, or of all without classes, where they are known.
        conditional: whether each class is a population of its own.
    """

    kind: ClassVar[str] = ""
    latent: ClassVar[bool] = False
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None
    conditional: bool = False

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample; raises InputError where it is not known yet."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What pictures call the data."""

    @abstractmethod
    def source(
        self,
        seed: int,
        bank: Any = None,
        *,
        device: str = "cpu",
        indexed: bool = False,
        tell: Callable[[int, int], None] | None = None,
    ) -> Source:
        """Return the real samples.

        Args:
            seed: of the order and of how samples are varied.
            bank: `data.bank.BankConfig` of the memory bank that they are drawn through; None for none.
            device: where the bank is kept.
            indexed: draw the indices of samples, whose features are known, in place of samples.
            tell: is told (samples read, samples to read) while a bank is filled.
        """

    def changed(self, **fields: Any) -> "Data":
        """Return the data with other values of some fields."""
        return dataclasses.replace(cast(Any, self), **fields)

    def find(self, *, labeled: bool = False) -> "Data":
        """Return the data with where they are and what is found by reading them; the same where that is known.

        Args:
            labeled: read labels even if the data are not conditional.

        Raises:
            InputError: if they are not there, or cannot be used.
        """
        del labeled
        return self

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Raise InputError if the data are no longer those that a run began with, as far as it kept what they were."""

    def report(self) -> list[str]:
        """Return a line on what there is to train on, and one for each doubt; nothing for data that come with the library."""
        return []

    def labels(self) -> tuple[Int[Tensor, " s"] | None, tuple[str, ...] | None]:
        """Return the class of every training sample, read from the data, and the names of the classes."""
        return None, self.class_names

    def classes_to_learn(self) -> int | None:
        """Return how many classes an encoder can learn to tell apart, whether or not the data are conditional."""
        return self.num_classes

    def exported_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the images that samples become, or raise InputError if they become none."""
        raise InputError(f"data is {type(self).__name__}, of no known image shape: name a run of images")

    def depict(self, drawing: Any) -> list[Path]:
        """Draw the pictures of a run and return their paths: by one of the ways of a `runs.pictures.Drawing`, or in an own one."""
        del drawing
        return []

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        """Measure the samples of a run: by one of the ways of a `runs.evaluate.Evaluation`, or in an own one.

        Raises:
            InputError: if nothing can be measured.
        """
        raise InputError(f"data is {type(self).__name__}, which does not say how its samples are measured: write its `evaluate`")

    def exporter(self) -> Callable[[Tensor], Tensor]:
        """Return the map from samples to the user's form: points in their coordinates, images as uint8 [n, h, w, c].

        Raises:
            InputError: if what it needs is not there.
        """
        return lambda samples: samples


class ImageData(Data):
    """Data whose samples are images, or latents of images."""

    path: str | None = None

    def training_images(self) -> Images | None:
        """Return the images that are trained on; None where there are none, or they are not there."""
        return None

    def training_classes(self) -> tuple[Int[Tensor, " s"] | None, tuple[str, ...] | None]:
        """Return the class of every training image, and the names of the classes; None where there are none, or no data."""
        counts, names = self.counts, self.class_names
        if not self.conditional:
            return None, None
        if counts and names:
            return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), names
        try:
            return self.labels()
        except InputError as error:
            warnings.warn(f"samples are of all classes equally often, for those of the data are not known ({error})", stacklevel=2)
        return None, names

    def exported_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the images that samples become."""
        channels, height, width = self.sample_shape
        return channels, height, width

    def decoder(self, device: str = "cpu") -> Decoder:
        """Return the map from samples to bytes, which stay on the device of the samples.

        Args:
            device: where an auto-encoder runs, which is loaded here, once in a process.

        Raises:
            InputError: if the auto-encoder is not there, or is one of other latents.
        """
        del device
        return to_bytes

    def exporter(self) -> Callable[[Tensor], Tensor]:
        """Return the map from samples to images as uint8 [n, h, w, c]."""
        decode = self.decoder()
        return lambda samples: decode(samples).movedim(1, -1)
