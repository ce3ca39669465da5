"""A memory bank of recent real samples, from which positives and unconditional negatives are drawn without reading all data.

Every class has a ring buffer of its latest samples, and all classes together have one more. Each step pushes a few new samples and
draws the samples that it needs.

Shapes: b pushed samples, l labels, p positives, m unconditional samples, r rings, k slots of a ring.

Source: the sample queue of the paper: 128 samples of each class, 1000 unconditional ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from drifting.checkpoint import check_state
from drifting.data.batches import check_drawn
from drifting.data.dataset import ALL, owned
from drifting.errors import InputError

# Names of the tensors of a ring.
_PARTS = ("samples", "pushed", "turns", "numbers")


class Rings:
    """Ring buffers with the same capacity.

    Args:
        rings: number of rings.
        capacity: number of slots of each ring.
        sample_shape: shape of one sample.
        dtype, device: dtype and device of the stored samples.
    """

    def __init__(
        self, rings: int, capacity: int, sample_shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.samples: Shaped[Tensor, "r k *sample"] = torch.zeros((rings, capacity, *sample_shape), dtype=dtype, device=device)
        self.pushed: Int[Tensor, " r"] = torch.zeros(rings, dtype=torch.long, device=device)
        # For each slot: the number of the push that wrote it, and the index of its sample in the data set; -1 if empty.
        self.turns: Int[Tensor, "r k"] = torch.full((rings, capacity), -1, device=device)
        self.numbers: Int[Tensor, "r k"] = torch.full((rings, capacity), -1, device=device)

    @property
    def filled(self) -> Int[Tensor, " r"]:
        """Number of samples in each ring; they are in its first slots."""
        return (self.turns >= 0).sum(1)

    def push(
        self, samples: Shaped[Tensor, "b *sample"], rings: Int[Tensor, " b"], numbers: Int[Tensor, " b"] | None = None
    ) -> None:
        """Append every sample to its ring, in order; a full ring drops its oldest sample.

        A sample replaces one with the same number in its ring, so a ring never holds a sample twice.
        """
        capacity = self.samples.shape[1]
        turns = self.pushed[rings] + ranks(rings)
        self.pushed += torch.bincount(rings, minlength=len(self.pushed))
        places = torch.arange(len(rings), device=rings.device)
        if numbers is None or len(numbers) == 0:
            numbers = torch.full_like(rings, -1)
        else:
            numbers = numbers.to(rings)
            places = places[ranks((rings * (numbers.max() + 1) + numbers).flip(0)).flip(0) == 0]
        # If a push is longer than a ring, only its end stays, so that no slot is written twice.
        places = places[ranks(rings[places].flip(0)).flip(0) < capacity]
        samples, rings, numbers, turns = samples[places], rings[places], numbers[places], turns[places]
        held = (self.numbers[rings] == numbers[:, None]) & (numbers >= 0)[:, None]
        again = held.any(1)
        self._write(again, held[again].byte().argmax(1), samples, rings, numbers, turns)
        several, of_several = rings[~again].unique(return_inverse=True)
        oldest = self.turns[several].argsort(dim=1, stable=True)
        self._write(~again, oldest[of_several, ranks(of_several)], samples, rings, numbers, turns)

    def _write(self, some: Bool[Tensor, " b"], slots: Tensor, samples: Tensor, rings: Tensor, *stamps: Tensor) -> None:
        rings = rings[some]
        self.samples[rings, slots] = samples[some].to(self.samples)
        self.numbers[rings, slots], self.turns[rings, slots] = (value[some] for value in stamps)

    def draw(self, rings: Int[Tensor, " l"], count: int, rng: torch.Generator) -> Int[Tensor, "l p"]:
        """Return `count` slots of each of these rings, all different if the ring holds that many, on the device of rng."""
        rings = rings.to(self.samples.device)
        filled = self.filled[rings].to(rng.device)[:, None]
        slots = torch.arange(self.samples.shape[1], device=rng.device)
        keys = torch.rand(len(rings), len(slots), generator=rng, device=rng.device).masked_fill_(slots >= filled, 2.0)
        return keys.argsort(1).gather(1, torch.arange(count, device=rng.device) % filled)

    def take(self, rings: Int[Tensor, " l"], slots: Int[Tensor, "l p"]) -> Shaped[Tensor, "l p *sample"]:
        """Return the samples in some slots of each of these rings, on the device of `slots`."""
        device = self.samples.device
        return self.samples[rings.to(device)[:, None], slots.to(device)].to(slots.device)


def ranks(kinds: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return for each element the number of equal elements before it."""
    order = kinds.argsort(stable=True)
    _, counts = kinds[order].unique_consecutive(return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device) - first)


class MemoryBank:
    """Recent real samples of each class, and of all classes together.

    Args:
        num_classes: number of labels; None for one unlabeled population, which is stored as class 0.
        capacity_per_class: number of samples kept of each class.
        unconditional_capacity: number of samples kept of all classes together.
        sample_shape: shape of one sample.
        device: device of the stored samples.
        dtype: dtype of the stored samples.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        sample_shape: Sequence[int],
        capacity_per_class: int = 128,
        unconditional_capacity: int = 1000,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        sizes = {"capacity_per_class": capacity_per_class, "unconditional_capacity": unconditional_capacity}
        for name, size in {"num_classes": 1 if num_classes is None else num_classes, **sizes}.items():
            if size < 1:
                raise InputError(f"{name} is {size}: pass at least 1")
        self.num_classes, self.sample_shape = num_classes, tuple(sample_shape)
        self._classes = Rings(num_classes or 1, capacity_per_class, sample_shape, dtype=dtype, device=device)
        self._unconditional = Rings(1, unconditional_capacity, sample_shape, dtype=dtype, device=device)

    @property
    def capacity_per_class(self) -> int:
        """Largest number of samples of a class."""
        return self._classes.samples.shape[1]

    @property
    def unconditional_capacity(self) -> int:
        """Largest number of samples of all classes together."""
        return self._unconditional.samples.shape[1]

    @property
    def filled(self) -> Int[Tensor, " classes"]:
        """Number of samples of each class."""
        return self._classes.filled

    @property
    def unconditional_filled(self) -> int:
        """Number of samples of all classes together."""
        return int(self._unconditional.filled)

    @property
    def rings(self) -> dict[str, Rings]:
        """The buffers by name: those of the classes, and the one of all classes."""
        return {"classes": self._classes, "unconditional": self._unconditional}

    def push(
        self,
        samples: Shaped[Tensor, "b *sample"],
        labels: Int[Tensor, " b"] | None = None,
        numbers: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Add samples; a full buffer drops its oldest ones.

        Args:
            samples: the samples.
            labels: class of each sample, if there are classes.
            numbers: index of each sample in its data set, from 0 on. A sample that the bank holds already is replaced.

        Raises:
            InputError: if shapes, labels or numbers do not fit.
        """
        if tuple(samples.shape[1:]) != self.sample_shape:
            raise InputError(f"samples have shape {tuple(samples.shape[1:])}: this bank keeps {self.sample_shape}")
        rows = self._rows(labels, len(samples))
        if len(rows) != len(samples):
            raise InputError(f"labels has {len(rows)} entries for {len(samples)} samples: pass one for each")
        if numbers is not None and (len(numbers) != len(samples) or bool((numbers < 0).any())):
            raise InputError(f"numbers has {len(numbers)} entries for {len(samples)} samples: pass one for each, from 0 on")
        samples = samples.to(self._classes.samples.device)
        self._classes.push(samples, rows, numbers)
        self._unconditional.push(samples, torch.zeros_like(rows), numbers)

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Shaped[Tensor, "l p *sample"]:
        """Return `count` samples of each label (one set without labels), all different if the bank holds that many.

        See `dataset.Source` for `own`.

        Raises:
            InputError: if a label is out of range or the bank holds no sample of it.
        """
        rows = self._rows(labels, 1)
        empty = rows[self.filled[rows] == 0]
        if len(empty):
            raise InputError(f"the bank holds no sample of class {int(empty[0])}: push some before drawing")
        slots = self._classes.draw(rows, count, rng)
        return self._classes.take(rows if labels is None else rows[own], owned(slots, labels, own))

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Shaped[Tensor, "l m *sample"]:
        """Return `sets` independent sets of `count` samples of any class; those of a set differ if the bank holds enough."""
        if self.unconditional_filled == 0:
            raise InputError("the bank holds no sample at all: push some before drawing")
        rings = torch.zeros(sets, dtype=torch.long)
        return self._unconditional.take(rings[own], self._unconditional.draw(rings, count, rng)[own])

    def tensors(self) -> dict[str, Tensor]:
        """Return a copy of the content of the bank as named tensors."""
        return {f"{name}.{part}": getattr(rings, part).clone() for name, rings in self.rings.items() for part in _PARTS}

    def restore(self, tensors: Mapping[str, Tensor], origin: str = "the checkpoint") -> None:
        """Restore the result of `tensors`, or raise InputError before anything is changed if it does not fit this bank."""
        tensors = {**self._missing(tensors), **tensors}
        own = {f"{name}.{part}": getattr(rings, part) for name, rings in self.rings.items() for part in _PARTS}
        check_state(tensors, own, origin)
        wrong = f"checkpoint is '{origin}', whose bank"
        for name in self.rings:
            turns, pushed = tensors[f"{name}.turns"], tensors[f"{name}.pushed"]
            held = turns >= 0
            if bool((held != (torch.arange(turns.shape[1]) < held.sum(1, keepdim=True))).any() or (turns >= pushed[:, None]).any()):
                raise InputError(f"{wrong} holds samples in '{name}' that were never pushed: delete it and resume")
        counts = {name: int(tensors[f"{name}.pushed"].sum()) for name in self.rings}
        if len(set(counts.values())) > 1:
            raise InputError(f"{wrong} counts {counts} pushed samples, which should be equal: delete it and resume")
        for name, value in own.items():
            value.copy_(tensors[name])

    def _missing(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that earlier versions did not save: turns from the positions in the ring, and no numbers."""
        found = {}
        for name, rings in self.rings.items():
            pushed, like = tensors.get(f"{name}.pushed"), rings.pushed
            if f"{name}.turns" not in tensors and pushed is not None and (pushed.shape, pushed.dtype) == (like.shape, like.dtype):
                last = tensors[f"{name}.pushed"][:, None].to(rings.pushed.device) - 1
                capacity = rings.samples.shape[1]
                slots = torch.arange(capacity, device=last.device)
                found[f"{name}.turns"] = (last - (last - slots) % capacity).clamp(min=-1)
                found[f"{name}.numbers"] = torch.full_like(rings.numbers, -1)
        return found

    def _rows(self, labels: Tensor | None, count: int) -> Int[Tensor, " l"]:
        """Return the ring of each label, on the device of the bank."""
        device = self._classes.samples.device
        if (labels is None) != (self.num_classes is None):
            state = "missing" if labels is None else "given"
            raise InputError(f"labels is {state}, but the bank has {self.num_classes} classes: pass labels where there are classes")
        if labels is None:
            return torch.zeros(count, dtype=torch.long, device=device)
        check_drawn(labels, len(self.filled))
        return labels.long().to(device)


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """The settings of a `MemoryBank`, from which real samples are drawn instead of from the whole data set.

    Attributes:
        capacity_per_class: number of samples of each class in the bank.
        unconditional_capacity: number of samples of any class in the bank.
        push_per_step: number of new samples added before each draw.
        on_cpu: whether to keep the bank in CPU memory, if that of the device is too small.
    """

    capacity_per_class: int = 128
    unconditional_capacity: int = 1000
    push_per_step: int = 64
    on_cpu: bool = False

    def build(self, num_classes: int | None, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> MemoryBank:
        """Return an empty bank for samples of a shape and dtype."""
        return MemoryBank(
            num_classes,
            sample_shape=shape,
            capacity_per_class=self.capacity_per_class,
            unconditional_capacity=self.unconditional_capacity,
            device="cpu" if self.on_cpu else device,
            dtype=dtype,
        )
