"""Features of real samples in training: encoded at every step, at once or when they are used, or read from a cache.

Shapes: l labels, p positives, m unconditional samples, k locations, d channels.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting.data.dataset import ALL, Source
from drifting.data.features import FeatureCache
from drifting.encoders.base import FeatureEncoder
from drifting.errors import InputError


@runtime_checkable
class Stateful(Protocol):
    """A source with a state that changes with every draw and is saved in checkpoints."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Restore a state."""
        ...


class LazyFeatures(Mapping[str, Float[Tensor, "l n k _"]]):
    """Features of drawn samples that are computed when they are first used.

    Args:
        drawn: the samples, or their indices.
        encode: computes the features, name -> [labels, samples, locations, channels].
    """

    def __init__(self, drawn: Tensor, encode: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._drawn, self._encode = drawn, encode

    @functools.cached_property
    def _features(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return self._encode(self._drawn)

    def of(self, labels: slice) -> "LazyFeatures":
        """Return the features of some of the labels, not computed yet."""
        return LazyFeatures(self._drawn[labels], self._encode)

    def __getitem__(self, name: str) -> Tensor:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


class Positives:
    """Features of real samples, by label.

    Args:
        source: source of samples or, with a cache, of their indices.
        encoder: feature encoder; not used with a cache.
        cache: features of the samples, by index.
        batch_size: number of samples encoded at a time, which bounds memory and changes no result; None for all of a step.
        later: whether to compute the features of a step when they are first used.
    """

    def __init__(
        self,
        source: Source,
        encoder: FeatureEncoder,
        cache: FeatureCache | None = None,
        *,
        batch_size: int | None = None,
        later: bool = False,
    ) -> None:
        self.num_classes, self._later = source.num_classes, later
        self._source, self._encoder, self._cache, self._batch_size = source, encoder, cache, batch_size

    @torch.no_grad()
    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Mapping[str, Float[Tensor, "l p k _"]]:
        """Return the features of `count` real samples of each label (one set without labels), on the device of rng.

        Only the samples of this process, `own`, are read or encoded; see `data.dataset.Source`.
        """
        return self._features_of(self._source.draw(labels, count, rng, own))

    @torch.no_grad()
    def draw_unconditional(
        self, sets: int, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Mapping[str, Float[Tensor, "l m k _"]]:
        """Return the features of sets of real samples of any label, for guidance. Draw the positives of the step first."""
        return self._features_of(self._source.draw_unconditional(sets, count, rng, own))

    def _features_of(self, drawn: Tensor) -> Mapping[str, Tensor]:
        return LazyFeatures(drawn, self._encoded) if self._later else self._encoded(drawn)

    def _encoded(self, drawn: Tensor) -> dict[str, Tensor]:
        if self._cache is not None:
            return self._cache.lookup(drawn)
        return encode_sets(self._encoder, drawn, self._batch_size)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the source, for a checkpoint."""
        return self._source.tensors() if isinstance(self._source, Stateful) else {}

    def restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Restore the result of `tensors`; raises InputError if it belongs to another source."""
        if isinstance(self._source, Stateful):
            self._source.restore(tensors, origin)
        elif tensors:
            name = next(iter(tensors))
            raise InputError(f"checkpoint is '{origin}', with '{name}' of real samples, but this run has no such state: delete it")


def encode_sets(
    encoder: FeatureEncoder, samples: Float[Tensor, "l n *sample"], batch_size: int | None = None
) -> dict[str, Float[Tensor, "l n k _"]]:
    """Return the features of sets of samples, encoded `batch_size` at a time; by default, all at once."""
    flat = samples.flatten(0, 1)
    parts = [encoder(part) for part in flat.split(batch_size or len(flat))]
    return {name: torch.cat([part[name] for part in parts]).unflatten(0, samples.shape[:2]) for name in parts[0]}
