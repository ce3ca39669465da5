"""The interfaces of data: `Data` is a kind of data, `Source` draws its real samples in training. Sources of samples held in memory.

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

# The share of a process without peers: everything.
ALL = slice(None)


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


class StreamSource:
    """Unlabeled samples from a distribution; every draw is new."""

    num_classes = None

    def __init__(self, draw: Callable[[int, torch.Generator], Tensor], sample_shape: tuple[int, ...]) -> None:
        self._draw = draw
        self.sample_shape = sample_shape

    def draw(self, labels: Tensor | None, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return one set of `count` new samples, or the `own` ones of them."""
        return self._draw(count, rng)[None, own]

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return sets of new samples."""
        return self._draw(sets * count, rng).unflatten(0, (sets, count))[own]


class InMemorySource:
    """A finite data set. Within a step, samples repeat only if the data set is smaller than the draw.

    Args:
        samples: all real samples, or the rows from which `prepare` makes them.
        labels: class of each sample, 0 to num_classes - 1, without empty classes; None for one unlabeled population.
        prepare: converts drawn rows of `samples` into samples, such as bytes into floats; None if they are samples already.
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
        present = classes.unique().tolist()  # not bincount: a table up to a label of 10^12 needs terabytes
        absent = next((label for label, found in enumerate(present) if label != found), None)
        if absent is not None:
            raise InputError(
                f"data has no sample of class {absent}, but of {present[-1]}: number the classes 0 to {len(present) - 1}"
            )
        members = [torch.nonzero(classes == label)[:, 0] for label in present]
        # Row c lists the samples of class c, padded with -1.
        self._members = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)

    def draw(self, labels: Tensor | None, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return `count` samples of each label, all different if the class has that many."""
        # Moved once: the data set stays on the device that draws from it.
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
    """Return about `count` real samples of a seed on the CPU, with the classes in turn if there are any.

    With more classes than `count`, the result has one sample of each class or, with `limit`, of the first `count` classes only.
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
        tell: Callable[[int, int], None] | None = None,
    ) -> Source:
        """Return the real samples.

        Args:
            seed: seed of the order and of the augmentation.
            bank: `data.bank.BankConfig` of the memory bank to draw from; None for no bank.
            device: device of the bank.
            indexed: whether to draw indices of samples instead of samples, for cached features.
            tell: called with (samples read, samples to read) while a bank is filled.
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
        del labeled
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
        del drawing
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

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        if self.image_shape is None:
            raise InputError(f"data is '{self._origin}', whose shape is not known yet: resolve the configuration first")
        return self.image_shape

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
        del device
        return to_bytes

    def exporter(self) -> Callable[[Tensor], Tensor]:
        """Return the function from samples to images as uint8 [n, h, w, c]."""
        decode = self.decoder()
        return lambda samples: decode(samples).movedim(1, -1)
