"""Samples that stay on disk until they are drawn, with a random variation each time: mirrored, or drawn from their distribution.

Every row that is taken gets a position, a number that is used once. Seed and position determine the variation. Therefore a run does
not depend on how rows are batched, and its memory bank can be saved as rows and positions and read again from the disk.

Shapes: s samples, b samples of a batch, l labels, p positives, m unconditional samples.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from drifting.data.bank import MemoryBank, ranks
from drifting.data.dataset import ALL, ImageData, Source, found, owned
from drifting.data.pixels import to_signed
from drifting.data.sources import BankSource, shuffled_indices
from drifting.errors import InputError

# Number of rows read at a time to fill a bank.
_CHUNK = 256
# Offset from the seeds of shuffled_indices and of the noise of samples, which are smaller.
_STREAM = 2**40

OnProgress = Callable[[int, int], None]


class Rows(ABC):
    """A finite data set in the form in which a memory bank stores it.

    Attributes:
        shape: shape of a row.
        dtype: uint8 for images, which become floats in [-1, 1] when they are drawn, or float32.
        labels: class of every row; None without labels or if they are not used.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: Int[Tensor, " s"] | None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def take(self, indices: Int[Tensor, " b"], positions: Int[Tensor, " b"]) -> Shaped[Tensor, "b *sample"]:
        """Return rows, each with the variation of its position."""


def row_streams(seed: int, positions: Int[Tensor, " b"]) -> list[np.random.Generator]:
    """Return the random stream of each position."""
    keys = ([_STREAM + seed, position] for position in positions.tolist())
    return [np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))) for key in keys]


def mirrored(streams: Sequence[np.random.Generator], flip: bool) -> Int[Tensor, " b"]:
    """Return 0 or 1 for each stream. The number is drawn even without flips, so later draws are the same."""
    halves = torch.tensor([stream.random() < 0.5 for stream in streams])
    return (halves & flip).long()


class DiskRows(Rows):
    """The rows of an opened folder, each with a variation that the seed and its position determine.

    Args:
        opened: the folder.
        labeled: whether the classes of the images are used.
        flip: whether to mirror images at random with probability 0.5.
        seed: seed of the variations.
    """

    def __init__(self, opened: Any, *, labeled: bool, flip: bool, seed: int) -> None:
        self.shape, self.labels = opened.shape, opened.labels if labeled else None
        self._opened, self._flip, self._seed = opened, flip, seed

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._opened)


class RowSource:
    """Draws rows from disk, for a few samples. Training draws from a `RowBankSource`.

    Args:
        rows: rows on disk, without empty classes.
    """

    def __init__(self, rows: Rows) -> None:
        self.sample_shape, self._rows = rows.shape, rows
        self.num_classes = None if rows.labels is None else int(rows.labels.max()) + 1
        self._order = torch.arange(len(rows)) if rows.labels is None else rows.labels.argsort(stable=True)
        counts = torch.tensor([len(rows)]) if rows.labels is None else rows.labels.bincount()
        self._members = self._order.split(counts.tolist())

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Float[Tensor, "l p *sample"]:
        """Return `count` samples of each label, all different if the class has that many, on the device of rng."""
        chosen = []
        for label in [0] if labels is None else labels.tolist():
            members = self._members[label]
            order = torch.randperm(len(members), generator=rng, device=rng.device).cpu()
            chosen.append(members[order[torch.arange(count) % len(members)]])
        indices = torch.stack(chosen)
        positions = _positions(indices, rng)
        return self._taken(owned(indices, labels, own), owned(positions, labels, own), rng.device)

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Float[Tensor, "l m *sample"]:
        """Return sets of samples of any class, each drawn from all rows."""
        indices = torch.randint(len(self._rows), (sets, count), generator=rng, device=rng.device).cpu()
        return self._taken(indices[own], _positions(indices, rng)[own], rng.device)

    def _taken(
        self, indices: Int[Tensor, "l p"], positions: Int[Tensor, "l p"], device: torch.device
    ) -> Float[Tensor, "l p *sample"]:
        taken = self._rows.take(indices.flatten(), positions.flatten())
        return to_signed(taken.to(device)).unflatten(0, indices.shape)


def _positions(indices: Int[Tensor, "l p"], rng: torch.Generator) -> Int[Tensor, "l p"]:
    return torch.randint(2**62, indices.shape, generator=rng, device=rng.device).cpu()


class RowBankSource(BankSource):
    """Draws rows through a memory bank.

    The first draw reads only the rows that fill the buffer of every class, or all rows of a smaller class. Still, every epoch has
    each row once. A checkpoint stores the rows and positions of the samples in the bank, and `restore` reads these rows again, bit
    for bit, because the images themselves would be many gigabytes.

    Args:
        rows: rows on disk.
        bank: an empty bank for such rows.
        push_per_step: number of rows pushed before each draw.
        seed: seed of the order.
        on_progress: called with (rows read, rows to read) while the bank is filled.
    """

    def __init__(
        self, rows: Rows, bank: MemoryBank, *, push_per_step: int, seed: int, on_progress: OnProgress | None = None
    ) -> None:
        super().__init__(torch.arange(len(rows)), rows.labels, bank, push_per_step=push_per_step, seed=seed)
        self._origins = MemoryBank(
            bank.num_classes,
            sample_shape=(2,),
            capacity_per_class=bank.capacity_per_class,
            unconditional_capacity=bank.unconditional_capacity,
            dtype=torch.long,
        )
        self._rows, self._on_progress = rows, on_progress or (lambda done, total: None)

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Float[Tensor, "l p *sample"]:
        """Push new rows, then return `count` samples of each label from the bank, on the device of rng."""
        return to_signed(super().draw(labels, count, rng, own))

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Float[Tensor, "l m *sample"]:
        """Return sets of samples of any class from the bank; this pushes nothing."""
        return to_signed(super().draw_unconditional(sets, count, rng, own))

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows and positions of the samples in the bank, and the next position."""
        return {**self._origins.tensors(), "position": torch.tensor(self._position)}

    def _restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Read the rows that `tensors` saved."""
        self._origins.restore(tensors, origin)
        held = {
            name: (torch.arange(rings.samples.shape[1]) < rings.filled[:, None]).nonzero()
            for name, rings in self._origins.rings.items()
        }
        for name, slots in held.items():
            rows = self._origins.rings[name].samples[slots[:, 0], slots[:, 1], 0]
            if len(rows) and int(rows.max()) >= len(self._rows):
                raise InputError(f"checkpoint is '{origin}', with row {int(rows.max())} of {len(self._rows)}: delete it and resume")
        done, total = 0, sum(map(len, held.values()))
        for name, slots in held.items():
            source, target = self._origins.rings[name], self.bank.rings[name]
            for part in slots.split(_CHUNK):
                taken = self._rows.take(*source.samples[part[:, 0], part[:, 1]].unbind(1))
                ring, slot = part.to(target.samples.device).unbind(1)
                target.samples[ring, slot] = taken.to(target.samples)
                done += len(part)
                self._on_progress(done, total)
            for part in ("pushed", "turns", "numbers"):
                getattr(target, part).copy_(getattr(source, part))

    def _fill(self) -> None:
        # For each class the size of its buffer or, if that is smaller, of the class.
        chosen, done = self._first_epoch[: int(self._enough.sum())], 0
        for part in chosen.split(_CHUNK):
            self._push(part)
            done += len(part)
            self._on_progress(done, len(chosen))

    @functools.cached_property
    def _first_epoch(self) -> Int[Tensor, " s"]:
        """The order of the first epoch: the rows that fill the bank, then the others.

        The rows that fill the bank are in reverse order, because the rows pushed last stay in the buffer of all classes together.
        The front of the order holds classes in proportion to their sizes; its end holds only rare classes.
        """
        order = shuffled_indices(len(self._rows), 0, len(self._rows), self._seed)
        classes = torch.zeros_like(order) if self._labels is None else self._labels[order]
        first = ranks(classes) < self._enough[classes]
        return torch.cat([order[first].flip(0), order[~first]])

    def _next(self, count: int) -> Int[Tensor, " b"]:
        if not self._numbered:
            return super()._next(count)
        start, rows = self._position, len(self._rows)
        rest = max(start + count - max(start, rows), 0)
        return torch.cat([self._first_epoch[start : start + count], shuffled_indices(rows, max(start, rows), rest, self._seed)])

    def _push(self, indices: Int[Tensor, " b"]) -> None:
        positions = torch.arange(self._position, self._position + len(indices))
        labels = self._labels_of(indices)
        numbers = indices if self._numbered else None
        self.bank.push(self._rows.take(indices, positions), labels, numbers)
        self._origins.push(torch.stack([indices, positions], 1), labels, numbers)
        self._position += len(indices)


@dataclass(frozen=True, kw_only=True)
class StreamedData(ImageData):
    """Images or latents that stay on disk until they are drawn.

    Attributes:
        path: their folder; None if it is not known yet.
        conditional: whether each class is a population of its own; otherwise there is one for all images.
        flip: whether to take images mirrored at random with probability 0.5.
        image_shape: channels, height and width of a sample. This and the following are found when the folder is first opened, and
            saved with the run.
        num_classes, class_names: number and names of the classes; None if labels are not used.
        files: fingerprint of the files, which is checked whenever the folder is opened again.
    """

    path: str | None = None
    conditional: bool = True
    flip: bool = True
    image_shape: tuple[int, int, int] | None = found()
    num_classes: int | None = found()
    class_names: tuple[str, ...] | None = found()
    files: str | None = found()

    on_disk: ClassVar[bool] = True
    supports_bank: ClassVar[bool] = True
    # Description of the folder in messages, and how its rows vary.
    _place: ClassVar[str]
    _rows: ClassVar[type[DiskRows]]

    @abstractmethod
    def open(self) -> Any:
        """Return the training images, with `labels` and `class_names`, opened once per process.

        Raises:
            InputError: if they have changed since the run began.
        """

    def rows(self, seed: int) -> Rows:
        """Return the rows of the data, with random variations from the seed."""
        return self._rows(self.open(), labeled=self.conditional, flip=self.flip, seed=seed)

    def _facts(self, opened: Any) -> dict[str, Any]:
        """Return the fields that are found in the folder."""
        names = opened.class_names if self.conditional else None
        return {"image_shape": opened.shape, "num_classes": None if names is None else len(names), "class_names": names}

    @property
    def title(self) -> str:
        """Name of the data in pictures."""
        return Path(self.path or "").name

    def find(self, *, labeled: bool = False) -> "StreamedData":
        """Return the data with their location and the facts found in the folder."""
        if self.files is not None:
            return self
        if self.path is None:
            raise InputError(f"data is missing: pass --data with {self._place}")
        data = replace(self, path=str(Path(self.path).expanduser().resolve()))
        facts = data._facts(data.open())
        if self.conditional and facts["num_classes"] is None:
            raise InputError(f"data is '{data.path}', which has no labels: use one sub-folder per class, or train without labels")
        return replace(data, **facts)

    def check(self) -> None:
        """Raise InputError if the data have changed since the run began."""
        self.open()

    def labels(self) -> tuple[Int[Tensor, " s"] | None, tuple[str, ...] | None]:
        """Return the class of every training image, and the names of the classes."""
        opened = self.open()
        return opened.labels, opened.class_names

    def source(
        self, seed: int, bank: Any = None, *, device: str = "cpu", indexed: bool = False, on_progress: OnProgress | None = None
    ) -> Source:
        """Return a source of the rows, through a bank if there is one; see `Data.source`."""
        rows = self.rows(seed)
        if bank is None:
            return RowSource(rows)
        memory = bank.build(self.num_classes, rows.shape, rows.dtype, device)
        return RowBankSource(rows, memory, push_per_step=bank.push_per_step, seed=seed, on_progress=on_progress)

    def depict(self, drawing: Any) -> list[Path]:
        """Draw images as they are decoded."""
        return drawing.decoded(self.decoder(drawing.config.device))

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        """Compare images with some that stay on disk."""
        return evaluation.images()
