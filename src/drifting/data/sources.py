"""Sources of real samples: from a distribution, from memory, from a memory bank, or from a `DataLoader`. See `dataset.Source`.

A source depends only on its seed and on the number of samples it has read, so a resumed training sees the same samples.

Shapes: s samples, b samples of a batch, l labels, p positives, m unconditional samples.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from drifting._torch import stream_seed
from drifting.checkpoint import check_state
from drifting.data.bank import MemoryBank
from drifting.data.batches import as_batch, check_drawn, check_finite, check_labels
from drifting.data.dataset import ALL, Source, owned
from drifting.errors import InputError

_WARMUP_CHUNK = 1024
_MASK = 2**64 - 1
# Names of the tensors that hold the position in a loader.
_POSITION = ("epoch", "batch")


def shuffled_indices(count: int, start: int, size: int, seed: int) -> Int[Tensor, " size"]:
    """Return positions start to start + size of an endless sequence of permutations of 0 to count - 1, one per epoch.

    This is a pure function: a run resumes with the number of samples it has seen as its only state.

    Args:
        count: number of samples, 1 or more.
        start: first position, 0 or more.
        size: number of positions, 0 or more; they can span several epochs.
        seed: any integer; `stream_seed` gives one for each purpose.
    """
    for name, value, least in (("count", count, 1), ("start", start, 0), ("size", size, 0)):
        if value < least:
            raise InputError(f"{name} is {value}: pass {least} or more")
    first, last = start // count, (start + size + count - 1) // count
    epochs = [_epoch_order(count, seed & _MASK, epoch) for epoch in range(first, max(last, first + 1))]
    offset = start - first * count
    return torch.cat(epochs)[offset : offset + size].clone()


@functools.lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> Int[Tensor, " count"]:
    # In a plain list, numbers from 2^63 on would become floats.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return torch.from_numpy(rng.permutation(count))


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
        check_finite(samples)
        if labels is not None:
            check_labels(labels, len(samples))
        self.samples, self.sample_shape, self._prepare = samples, tuple(samples.shape[1:]), prepare
        self.num_classes = None if labels is None else int(labels.max()) + 1
        classes = torch.zeros(len(samples), dtype=torch.long) if labels is None else labels.long().cpu()
        present = classes.unique().tolist()  # not bincount: a table up to a label of 10^12 needs terabytes
        absent = next((number for number, label in enumerate(present) if number != label), None)
        if absent is not None:
            fix = f"number the classes 0 to {len(present) - 1}"
            raise InputError(f"data has no sample of class {absent}, but of {present[-1]}: {fix}")
        members = [torch.nonzero(classes == label)[:, 0] for label in present]
        # Row c lists the samples of class c, padded with -1.
        self._members = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)

    def draw(self, labels: Tensor | None, count: int, rng: torch.Generator, own: slice = ALL) -> Tensor:
        """Return `count` samples of each label, all different if the class has that many."""
        # Moved once: the data set stays on the device that draws from it.
        self.samples, self._members = self.samples.to(rng.device), self._members.to(rng.device)
        members = self._members
        if labels is not None:
            check_drawn(labels, len(members))
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


class _FromBank:
    """Draws samples from a memory bank. The first draw fills the bank; every further draw first pushes some new samples."""

    bank: MemoryBank
    _full = False

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Shaped[Tensor, "l p *sample"]:
        """Push new samples, then return `count` samples of each label from the bank, on the device of rng."""
        if self._full:
            self._advance()
        else:
            self._fill()
            self._full = True
        return self.bank.draw(labels, count, rng, own)

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Shaped[Tensor, "l m *sample"]:
        """Return sets of samples of any class from the bank. This pushes nothing: draw the positives of the step first."""
        return self.bank.draw_unconditional(sets, count, rng, own)

    @abstractmethod
    def _fill(self) -> None:
        """Push samples until the bank is full."""

    @abstractmethod
    def _advance(self) -> None:
        """Push the new samples of one step."""


class BankSource(_FromBank):
    """Draws from a finite data set through a memory bank, in a new order each epoch.

    The bank is full when every class fills its buffer or has no more samples, after at most one epoch. No sample is in a buffer
    twice, so the samples of a small class are drawn equally often.

    Args:
        samples: all real samples, on any device.
        labels: class of each sample; None for one unlabeled population.
        bank: an empty bank.
        push_per_step: number of samples pushed before each draw.
        seed: seed of the order.
        prepare: converts rows of `samples` into what the bank stores, such as uint8 images into floats.
    """

    def __init__(
        self,
        samples: Shaped[Tensor, "s *stored"],
        labels: Int[Tensor, " s"] | None,
        bank: MemoryBank,
        *,
        push_per_step: int,
        seed: int,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if push_per_step < 1:
            raise InputError(f"push_per_step is {push_per_step}: pass at least 1")
        num_labels = None if labels is None else len(labels)
        if len(samples) == 0 or num_labels not in (None, len(samples)):
            raise InputError(f"data has {len(samples)} samples and {num_labels} labels: pass as many")
        check_finite(samples)
        if labels is not None:
            check_labels(labels, len(samples))
        if (labels is None) != (bank.num_classes is None):
            raise InputError(f"data has {'no' if labels is None else 'its'} labels, but the bank {bank.num_classes} classes")
        self.sample_shape, self.num_classes, self.bank = bank.sample_shape, bank.num_classes, bank
        self._samples, self._labels = samples, None if labels is None else labels.long().cpu()
        classes = torch.zeros(len(samples), dtype=torch.long) if self._labels is None else self._labels
        if int(classes.max()) >= (bank.num_classes or 1):
            raise InputError(f"data has class {int(classes.max())}, but the bank {bank.num_classes} classes: make it that large")
        counts = torch.bincount(classes, minlength=bank.num_classes or 1)
        if int(counts.min()) == 0:
            raise InputError(f"data has no sample of class {int(counts.argmin())}: number the classes 0 to {len(counts) - 1}")
        self._enough = counts.clamp(max=bank.capacity_per_class)
        self._push_per_step, self._prepare = push_per_step, prepare
        self._seed, self._seed_of_earlier_version = stream_seed(seed, "memory bank"), seed
        self._position, self._numbered = 0, True

    def tensors(self) -> dict[str, Tensor]:
        """Return the bank and the position as named tensors."""
        return {**self.bank.tensors(), "position": torch.tensor(self._position)}

    def restore(self, tensors: Mapping[str, Tensor], origin: str = "the checkpoint") -> None:
        """Restore the result of `tensors`, or raise InputError if it does not fit.

        A run of an earlier version, which did not number samples, continues as it would have in that version.
        """
        check_state({name: tensors[name] for name in {"position"} & tensors.keys()}, {"position": torch.tensor(0)}, origin)
        self._restore({name: value for name, value in tensors.items() if name != "position"}, origin)
        position, pushed = int(tensors["position"]), int(self.bank.rings["unconditional"].pushed)
        if position != pushed:
            raise InputError(f"checkpoint is '{origin}', at position {position} after {pushed} samples: delete it and resume")
        self._position = position
        self._full = self._position > 0
        self._numbered = not self._full or bool((self._numbers >= 0).any())
        if not self._numbered:
            self._seed = self._seed_of_earlier_version

    @property
    def _numbers(self) -> Int[Tensor, "r k"]:
        return self.bank.rings["unconditional"].numbers

    def _restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        self.bank.restore(tensors, origin)

    def _fill(self) -> None:
        while bool((self.bank.filled.cpu() < self._enough).any()):
            self._push(self._next(min(_WARMUP_CHUNK, len(self._samples))))

    def _advance(self) -> None:
        self._push(self._next(self._push_per_step))

    def _next(self, count: int) -> Int[Tensor, " b"]:
        return shuffled_indices(len(self._samples), self._position, count, self._seed)

    def _push(self, indices: Int[Tensor, " b"]) -> None:
        fresh = self._samples[indices.to(self._samples.device)]
        fresh = fresh if self._prepare is None else self._prepare(fresh)
        self.bank.push(fresh, self._labels_of(indices), indices if self._numbered else None)
        self._position += len(indices)

    def _labels_of(self, indices: Int[Tensor, " b"]) -> Int[Tensor, " b"] | None:
        return None if self._labels is None else self._labels[indices]


class LoaderSource(_FromBank):
    """Draws samples from a memory bank that a user's own loader fills: at first with up to one epoch, then with a batch each draw.

    The order of the loader and its random transforms depend only on (seed, epoch, batch).

    Args:
        loader: loader of batches of samples, or of (samples, labels). Random transforms must use torch's random numbers.
        capacity: number of samples kept of each class, or of all samples without labels.
        unconditional_capacity: number of samples kept of all classes together.
        num_classes: number of labels; None for a loader without labels.
        seed: seed of the order.
        device: device of the bank.

    Raises:
        InputError: if the loader has persistent workers or no batches, or its batches have another form.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        capacity: int,
        unconditional_capacity: int = 1,
        num_classes: int | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if loader.persistent_workers:
            cannot = "whose random transforms cannot be repeated when a training is resumed"
            raise InputError(f"data is a DataLoader with persistent workers, {cannot}: pass persistent_workers=False")
        self._loader, self._seed = loader, seed
        self._epoch, self._batch = 0, 0
        self._batches: Iterator[Any] | None = None
        samples, labels = self._next()
        if labels is not None and num_classes is None:
            raise InputError("num_classes is missing, which a DataLoader of labels does not say: pass the number of classes")
        self.num_classes = None if labels is None else num_classes
        self.sample_shape = tuple(samples.shape[1:])
        self.bank = MemoryBank(
            self.num_classes,
            sample_shape=self.sample_shape,
            capacity_per_class=capacity,
            unconditional_capacity=unconditional_capacity,
            device=device,
        )
        self._go_to(0, 0)

    def tensors(self) -> dict[str, Tensor]:
        """Return the content of the bank and the position in the loader, for a checkpoint."""
        return {**self.bank.tensors(), "epoch": torch.tensor(self._epoch), "batch": torch.tensor(self._batch)}

    def restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Restore the result of `tensors`, or raise InputError. Earlier batches of the epoch are read again."""
        missing = [name for name in _POSITION if name not in tensors]
        if missing:
            raise InputError(f"checkpoint is '{origin}', which does not say the {missing[0]} of the data: delete it and resume")
        self.bank.restore({name: value for name, value in tensors.items() if name not in _POSITION}, origin)
        epoch, batch = (int(tensors[name]) for name in _POSITION)
        self._full = epoch + batch > 0
        self._go_to(epoch, batch)

    def _fill(self) -> None:
        while self._epoch == 0 and bool((self.bank.filled < self.bank.capacity_per_class).any()):
            self._advance()
        empty = (self.bank.filled == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"data has no sample of class {empty[0]} in an epoch: number the classes from 0 on, without gaps")

    def _advance(self) -> None:
        self.bank.push(*self._next())

    def _go_to(self, epoch: int, batch: int) -> None:
        self._epoch, self._batch, self._batches = epoch, 0, None
        for _ in range(batch):
            self._next()

    def _next(self) -> tuple[Tensor, Tensor | None]:
        """Return the next batch; after the last batch of an epoch, the first one of the next epoch."""
        for _ in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_seed(self._seed, f"data loader, epoch {self._epoch}, batch {self._batch}"))
                if self._batches is None:
                    self._seed_order()
                    self._batches = iter(self._loader)
                batch = next(self._batches, None)
            if batch is not None:
                self._batch += 1
                samples, labels = as_batch(batch)
                check_finite(samples)
                return samples, labels
            if self._batch == 0:
                break
            self._epoch, self._batch, self._batches = self._epoch + 1, 0, None
        raise InputError("data is a DataLoader without a single batch: pass one with a batch_size that its samples reach")

    def _seed_order(self) -> None:
        """Seed the generators of the loader and of its samplers for an epoch."""
        batches = self._loader.batch_sampler
        for part in (self._loader, self._loader.sampler, batches, getattr(batches, "sampler", None)):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(stream_seed(self._seed, f"order of epoch {self._epoch}"))
