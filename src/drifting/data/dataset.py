"""Where real samples come from: the interface that training sees, and the sources that hold all their samples in memory.

Shapes: l labels, p positives.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from drifting._seeds import stream_seed
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


def owned(drawn: Shaped[Tensor, "l p *sample"], labels: Tensor | None, own: slice) -> Shaped[Tensor, "o q *sample"]:
    """Return of what was drawn for all processes the share of one: its labels or, of a single set, its samples."""
    return drawn[:, own] if labels is None else drawn[own]


class StreamSource:
    """Unlabelled samples drawn afresh from a distribution, never twice the same."""

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
        labels: their classes, 0 to num_classes - 1, every one present; None for one unlabelled population.
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
