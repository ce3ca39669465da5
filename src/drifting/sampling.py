"""Sampling: one forward pass per sample.

Every sample has a counter-based random stream of its own, so sample i of a seed is the same in any batch, in any order and with any
number of processes.
"""

import math
import numbers
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting._checks import check_memory, check_noise_scale, check_seed, is_integer, nearest_name
from drifting._progress import CountProgress, show_sampling
from drifting.distributed import ALONE, Processes, join
from drifting.errors import InputError, reason
from drifting.generators.base import Generator, WrappedGenerator, noise_shape_of
from drifting.guidance import check_guidance_scale

_MASK = 2**64 - 1
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
# Bytes per value of a sample: in a batch, in the result, and in the user's form, which may be double.
_COPIES = 16
# Limits of the number of samples in a pass, and of their values.
_FEWEST_AT_ONCE, _MOST_AT_ONCE, _VALUES_AT_ONCE = 8, 4096, 2**20
# Largest number of class names in a message.
_SHOWN = 8


def sample(
    generator: Generator | Callable[..., Tensor],
    count: int,
    *,
    noise_shape: int | Sequence[int] | None = None,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 4096,
    processes: Processes = ALONE,
) -> Float[Tensor, "s *sample"]:
    """Return `count` samples on the CPU. Sample i depends on (seed, i), its label and the guidance only, not on its batch.

    Args:
        generator: the network, or any module or function that maps noise [b, *noise] to samples, or noise and labels [b] where it
            has an attribute `num_classes`.
        count: number of samples, at least 1.
        noise_shape: shape of the noise of one sample, or its length; by default the `noise_shape` of the generator.
        seed: which set of samples.
        labels: classes to cycle through; all of them, in order, by default. Not for an unconditional generator.
        guidance_scale: strength of the guidance, from 1 (none, the default) up. Only for a generator that takes it.
        batch_size: samples per forward pass; bounds memory and changes nothing else.
        processes: processes that share the work; all of them must call, and all receive the samples.

    Raises:
        InputError: if the count, the seed, the batch size or a label is out of range or no integer; if the guidance scale is no
            number from 1, or the generator takes none; if the noise scale of the generator is out of range; if the samples do not
            fit into memory.
    """
    options = {"seed": seed, "labels": labels, "guidance_scale": guidance_scale, "batch_size": batch_size, "processes": processes}
    generator = _as_generator(generator, noise_shape)
    parts = sample_in_parts(generator, count, **options)
    check_fits(count, _COPIES * math.prod(generator.sample_shape))
    return torch.cat(list(parts))


def _as_generator(generator: Generator | Callable[..., Tensor], noise_shape: int | Sequence[int] | None) -> Generator:
    """Return a module or function as a generator, whose samples have the shape of one that is made here."""
    if isinstance(generator, Generator):
        if noise_shape is not None:
            raise InputError(f"noise_shape is {noise_shape}, but the generator has its own, {generator.noise_shape}: leave it out")
        return generator
    wrapped = WrappedGenerator(generator, noise_shape_of(generator, noise_shape), (), getattr(generator, "num_classes", None))
    inputs = _inputs(wrapped, range(1), 0, None if wrapped.num_classes is None else [0], None)
    try:
        made = forward(wrapped, inputs)
    except (RuntimeError, TypeError, IndexError) as error:
        shape = (1, *wrapped.noise_shape)
        raise InputError(f"generator fails on noise {shape} ({reason(error)}): pass another noise_shape") from error
    if not isinstance(made, Tensor) or made.shape[:1] != (1,):
        found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InputError(f"generator makes {found} of one row of noise: let it return a tensor with a row for each sample")
    wrapped.sample_shape = tuple(made.shape[1:])
    return wrapped


def sample_in_parts(
    generator: Generator,
    count: int,
    *,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 4096,
    processes: Processes = ALONE,
) -> Iterator[Float[Tensor, "b *sample"]]:
    """Return an iterator of what `sample` returns in parts, one pass of every process each; arguments and errors as there."""
    check_request(count, seed)
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}: pass a whole number, at least 1")
    cycle, scale = check_labels(labels, generator.num_classes), _condition(guidance_scale, generator)

    def passes() -> Iterator[Tensor]:
        at_once = batch_size * processes.size
        for start in range(0, count, at_once):
            wanted = min(at_once, count - start)
            # All processes make as many, since those that share the weights take part in every pass: the last may make too many.
            share = -(-wanted // processes.size)
            first = start + processes.rank * share
            part = _samples(generator, range(first, first + share), seed, cycle, scale).cpu()
            yield processes.all_gather({"samples": part}, 0)["samples"][:wanted]

    return passes()


def _samples(
    generator: Generator, indices: Sequence[int], seed: int, cycle: Sequence[int] | None, scale: float | None
) -> Float[Tensor, "b *sample"]:
    """Return some of the samples of a seed, with labels in a cycle and a guidance scale that were checked before."""
    return forward(generator, _inputs(generator, indices, seed, cycle, scale))


def _inputs(
    generator: Generator,
    indices: Sequence[int],
    seed: int,
    cycle: Sequence[int] | None,
    scale: float | None,
    noise_scale: float | None = None,
) -> list[Tensor | None]:
    """Return scaled noise, labels, guidance scales and, for a generator that takes them, style codes: one row for each sample."""
    chosen = None if cycle is None else torch.tensor([cycle[index % len(cycle)] for index in indices])
    scales = None if scale is None else torch.full((len(indices),), scale)
    styles = generator.num_styles
    codes = [seeded_codes(indices, styles, generator.style_classes, seed)] if styles else []
    noise = seeded_noise(indices, generator.noise_shape, seed)
    return [(generator.noise_scale if noise_scale is None else noise_scale) * noise, chosen, scales, *codes]


def forward(generator: Generator, inputs: Sequence[Tensor | None]) -> Float[Tensor, "b *sample"]:
    """Return the samples of one pass in evaluation mode; after it every layer is back in its own mode."""
    weight, modes = next(generator.parameters(), None), [(layer, layer.training) for layer in generator.modules()]
    device = torch.device("cpu") if weight is None else weight.device
    try:
        with torch.no_grad():
            return generator.eval()(*(None if each is None else each.to(device) for each in inputs))
    finally:
        for layer, was_training in modes:
            layer.training = was_training


def seeded_noise(indices: Sequence[int], shape: Sequence[int], seed: int) -> Float[Tensor, "b *sample"]:
    """Return standard normal noise on the CPU, one row per index. A row depends only on (seed, index).

    Args:
        indices: indices of the samples.
        shape: shape of the noise of one sample.
        seed: any integer.
    """
    rows = [np.random.Generator(_stream(seed, index)).standard_normal(tuple(shape), dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def seeded_codes(indices: Sequence[int], num_styles: int, style_classes: int, seed: int) -> Int[Tensor, "b s"]:
    """Return style codes on the CPU, one row per index. A row depends only on (seed, index).

    Args:
        indices: indices of the samples, at least one.
        num_styles: number of codes of one sample.
        style_classes: number of values of a code.
        seed: any integer.
    """
    # The stream is jumped, so the codes share no random numbers with the noise of the sample.
    streams = (np.random.Generator(_stream(seed, index).jumped()) for index in indices)
    return torch.from_numpy(np.stack([stream.integers(style_classes, size=num_styles) for stream in streams]))


def _stream(seed: int, index: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([operator.index(seed) & _MASK, index], np.uint64))


def check_request(count: int, seed: int) -> None:
    """Raise InputError unless the count and the seed are in range."""
    if not isinstance(count, numbers.Integral):
        raise InputError(f"num_samples is {count!r}: ask for a whole number")
    if not 1 <= count < 2**31:
        raise InputError(f"num_samples is {count}: ask for {'at least 1' if count < 1 else f'at most {2**31 - 1}'}")
    check_seed(seed)


def check_fits(count: int, size: int) -> None:
    """Raise InputError unless the samples fit into memory; `size` is the number of bytes of one."""
    check_memory(count * size, f"num_samples is {count}, which", "ask for fewer, and for others by another seed")


def batch_of(shape: Sequence[int]) -> int:
    """Return how many samples of a shape, such as [channels, h, w], are made in one pass, so that layers fit into memory."""
    return max(_FEWEST_AT_ONCE, min(_MOST_AT_ONCE, _VALUES_AT_ONCE // math.prod(shape)))


def check_labels(labels: Sequence[int] | None, num_classes: int | None) -> list[int] | None:
    """Return the labels to cycle through, or None for an unconditional generator; raises InputError if they do not fit."""
    if num_classes is None:
        if labels is not None:
            raise InputError(f"labels is {labels}: this generator was trained without labels, leave them out")
        return None
    chosen = list(range(num_classes)) if labels is None else _listed(labels)
    if not all(map(is_integer, chosen)):
        raise InputError(f"labels is {chosen}: pass integers from 0 to {num_classes - 1}")
    wrong = [label for label in chosen if not 0 <= label < num_classes]
    if wrong or not chosen:
        raise InputError(f"labels is {chosen}: choose from 0 to {num_classes - 1}")
    return list(map(int, chosen))


def _listed(labels: Any) -> list[Any]:
    """Return labels as a list, from any sequence, array or tensor; raises InputError if they are none."""
    found = labels.tolist() if isinstance(labels, Tensor | np.ndarray | np.generic) else labels
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise InputError(f"labels is {found!r}: pass a list of classes, such as [{found!r}]")
    return [label.item() if isinstance(label, Tensor) and label.ndim == 0 else label for label in found]


def label_numbers(labels: Sequence[int | str] | None, class_names: Sequence[str] | None) -> list[int] | None:
    """Return labels as numbers.

    A text is the name of a class, or else its number. But where a class is called by a whole number, as folders 1, 2 and 3 are,
    whole numbers in texts are names alone: "1" is the class "1", whose number is 0. An integer is always a number.

    Args:
        labels: numbers, or texts as they come from a command line; None for all.
        class_names: name of each class, if they are known.

    Raises:
        InputError: for a text that is neither.
    """
    if labels is None:
        return None
    names = list(class_names or ())
    return [_number_of(label, names) if isinstance(label, str) else label for label in _listed(labels)]


def _number_of(label: str, names: list[str]) -> int:
    if label in names:
        return names.index(label)
    by_value = {int(name): number for number, name in reversed(list(enumerate(names))) if _WHOLE_NUMBER.fullmatch(name)}
    if _WHOLE_NUMBER.fullmatch(label):
        if not by_value:
            return int(label)
        if int(label) in by_value:
            return by_value[int(label)]
    if not names:
        raise InputError(f"labels has '{label}', but the names of the classes are not known here: pass their numbers")
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (f", ... '{names[-1]}'" if len(names) > _SHOWN else "")
    raise InputError(f"labels has '{label}': did you mean '{nearest_name(label, names)}'? The classes are {shown}")


def _condition(guidance_scale: float | None, generator: Generator) -> float | None:
    """Return the guidance scale that conditions the generator, None if it takes none; raises InputError for scales out of range."""
    if generator.noise_scale != 1:
        check_noise_scale(generator.noise_scale)
    if guidance_scale is not None:
        check_guidance_scale(guidance_scale)
        if not generator.guided:
            raise InputError(f"guidance_scale is {guidance_scale:g}, but this generator takes none: leave it out")
    return float(guidance_scale or 1) if generator.guided else None


@dataclass(frozen=True)
class Request:
    """Samples that somebody wants, checked by `Sampler.request`.

    Attributes:
        count: number of samples.
        seed: which set of samples.
        labels: classes to cycle through; None for an unconditional generator.
        guidance_scale: strength of the guidance; None for a generator that takes none.
        noise_scale: standard deviation of the noise; None for that of the generator.
    """

    count: int
    seed: int
    labels: tuple[int, ...] | None
    guidance_scale: float | None
    noise_scale: float | None = None

    def label(self, index: int) -> int | None:
        """Return the label of a sample."""
        return None if self.labels is None else self.labels[index % len(self.labels)]


class Sampler(ABC):
    """Makes samples in the user's form: a run, or a generator of the release.

    Attributes:
        generator: the network.
        class_names: name of each label; None if there are no names.
    """

    # A generator and names, or None; what a subclass calls them is narrower.
    generator: Any
    class_names: Any

    def sample(
        self, count: int, *, seed: int = 0, labels: Sequence[int | str] | None = None, guidance_scale: float | None = None
    ) -> Tensor:
        """Return samples in the user's form: points [n, 2] in their own coordinates, or uint8 images [n, h, w, c]. One pass each.

        Labels are numbers of classes, or their names; see `label_numbers`.
        """
        export, options = self._exporter(), self._options(seed, labels, guidance_scale)
        parts = sample_in_parts(self.generator, count, **options)
        check_fits(count, max(self._exported_bytes(), _COPIES * math.prod(self.generator.sample_shape)))
        return export(torch.cat(list(self._shown(parts, count))))

    def parts(
        self, count: int, *, seed: int = 0, labels: Sequence[int | str] | None = None, guidance_scale: float | None = None
    ) -> Iterator[Tensor]:
        """Yield what `sample` returns in parts, each of which fits into memory."""
        export, options = self._exporter(), self._options(seed, labels, guidance_scale)
        yield from map(export, self._shown(sample_in_parts(self.generator, count, **options), count))

    @property
    def batch_size(self) -> int:
        """The number of samples that are made in one pass."""
        return self._options(0, None, None)["batch_size"]

    def request(
        self,
        count: int,
        *,
        seed: int = 0,
        labels: Sequence[int | str] | None = None,
        guidance_scale: float | None = None,
        noise_scale: float | None = None,
    ) -> Request:
        """Return a request for samples, or raise InputError; arguments as of `sample`, and the noise scale as of `Request`."""
        check_request(count, seed)
        if noise_scale is not None:
            check_noise_scale(noise_scale)
        options = self._options(seed, labels, guidance_scale)
        cycle = check_labels(options["labels"], self.generator.num_classes)
        scale = _condition(options["guidance_scale"], self.generator)
        return Request(count, seed, None if cycle is None else tuple(cycle), scale, noise_scale)

    def one_pass(self) -> Callable[[Sequence[tuple[Request, Sequence[int]]]], Tensor]:
        """Return the function that makes samples of several requests in one pass, in the user's form.

        Its argument is the requests, each with the indices of its samples to make. A sample is what `sample` returns for its seed
        and its index, up to rounding, whatever else is in the pass. It raises FloatingPointError for samples that are not finite,
        which bytes of images could not show.
        """
        export = self._exporter()

        def make(parts: Sequence[tuple[Request, Sequence[int]]]) -> Tensor:
            each = [
                _inputs(self.generator, indices, one.seed, one.labels, one.guidance_scale, one.noise_scale)
                for one, indices in parts
            ]
            # Labels, scales and codes are given for all requests or for none: that depends on the generator.
            inputs = [None if kind[0] is None else torch.cat(kind) for kind in zip(*each, strict=True)]  # pyright: ignore[reportArgumentType, reportCallIssue]
            made = forward(self.generator, inputs).cpu()
            if not bool(made.isfinite().all()):
                raise FloatingPointError("its samples are not finite")
            return export(made)

        return make

    def _shown(self, parts: Iterator[Tensor], count: int) -> Iterator[Tensor]:
        """Yield parts of `count` samples and show how many are made."""
        done = 0
        with self._progress(count) as progress:
            for part in parts:
                yield part
                done += len(part)
                progress.advance(done)

    @abstractmethod
    def _exporter(self) -> Callable[[Tensor], Tensor]:
        """Return the function from samples of the generator to those in the user's form."""

    def _exported_bytes(self) -> int:
        """Return the memory of a sample in the user's form, where it is not that of the generator."""
        return 0

    def _options(self, seed: int, labels: Sequence[int | str] | None, guidance_scale: float | None) -> dict[str, Any]:
        """Return the keyword arguments of `sample_in_parts`."""
        numbers, batch_size = label_numbers(labels, self.class_names), batch_of(self.generator.sample_shape)
        shared = {"processes": join(), "batch_size": batch_size}
        return {"seed": seed, "labels": numbers, "guidance_scale": guidance_scale, **shared}

    def _progress(self, count: int) -> CountProgress:
        return show_sampling(max(1, count), quiet=not join().is_main_process)
