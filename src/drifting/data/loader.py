"""A user's own `DataLoader` as a source of real samples: every step adds one of its batches to a memory bank.

The order of the loader and its random transforms depend only on (seed, epoch, batch), so a resumed training sees the same batches.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from drifting._seeds import stream_seed
from drifting.data.bank import MemoryBank
from drifting.data.dataset import ALL
from drifting.errors import InputError

_POSITION = ("epoch", "batch")


class LoaderSource:
    """Draws samples from a memory bank of the latest samples of each class, filled by a loader.

    The first draw reads batches until the bank is full, at most one epoch; every further draw reads one batch.

    Args:
        loader: loader of batches of samples, or of (samples, labels). Random transforms must use torch's random numbers.
        capacity: number of samples kept of each class, or of all samples without labels.
        unconditional_capacity: number of samples kept of all classes together.
        num_classes: number of labels; None for a loader without labels.
        seed: seed of the order.
        device: device of the bank.

    Raises:
        InputError: if the loader has no batches, or its batches have another form.
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
        self._loader, self._seed = loader, seed
        self._epoch, self._batch, self._full = 0, 0, False
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

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Float[Tensor, "l p *sample"]:
        """Read a batch, then return `count` samples of each label, on the device of rng; see `dataset.Source`."""
        if self._full:
            self.bank.push(*self._next())
        else:
            self._fill()
        return self.bank.draw(labels, count, rng, own)

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Float[Tensor, "l m *sample"]:
        """Return sets of samples of any class from the bank. This reads no batch: draw the positives of the step first."""
        return self.bank.draw_unconditional(sets, count, rng, own)

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
            self.bank.push(*self._next())
            self._full = True
        empty = (self.bank.filled == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"data has no sample of class {empty[0]} in an epoch: number the classes from 0 on, without gaps")

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
                    if self._loader.generator is not None:
                        self._loader.generator.manual_seed(stream_seed(self._seed, f"order of epoch {self._epoch}"))
                    self._batches = iter(self._loader)
                batch = next(self._batches, None)
            if batch is not None:
                self._batch += 1
                return as_batch(batch)
            if self._batch == 0:
                break
            self._epoch, self._batch, self._batches = self._epoch + 1, 0, None
        raise InputError("data is a DataLoader without a single batch: pass one with a batch_size that its samples reach")


def as_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the samples and labels of a batch, which is a tensor or a pair of tensors; raises InputError for anything else."""
    parts = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
    if not all(isinstance(part, Tensor) for part in parts) or not 1 <= len(parts) <= 2:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise InputError(f"data has batches of ({kinds}): pass tensors x, or pairs (x, y) of samples and labels")
    return check_samples(*parts)


def check_samples(samples: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return samples as float32 and labels as integers, or raise InputError if they have another form."""
    if not samples.is_floating_point():
        raise InputError(f"data is {samples.dtype}: pass floats, such as images / 127.5 - 1 for bytes")
    if labels is None:
        return samples.float(), None
    if labels.ndim != 1 or len(labels) != len(samples) or labels.is_floating_point():
        found = f"{labels.dtype} of shape {tuple(labels.shape)} for {len(samples)} samples"
        raise InputError(f"labels are {found}: pass one whole number for each sample")
    return samples.float(), labels.long()
