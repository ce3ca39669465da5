"""Where the features of real samples come from in training: encoded at every step, at once or when they are needed, or looked up.

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
    """A source that changes as it is drawn from, and belongs into checkpoints."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Take over a state."""
        ...


class Later(Mapping[str, Float[Tensor, "l n k _"]]):
    """Features of samples that were drawn, not computed before they are looked at.

    Args:
        drawn: the samples, or their indices.
        encode: makes the features, name -> [labels, samples, locations, channels].
    """

    def __init__(self, drawn: Tensor, encode: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._drawn, self._encode = drawn, encode

    @functools.cached_property
    def _features(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return self._encode(self._drawn)

    def of(self, labels: slice) -> "Later":
        """Return the features of some of the labels, not computed yet."""
        return Later(self._drawn[labels], self._encode)

    def __getitem__(self, name: str) -> Tensor:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


class Positives:
    """Features of real samples, by label.

    Args:
        source: of samples, or of the indices of samples where there is a cache.
        encoder: the feature space; not used where there is a cache.
        cache: features by index.
        batch_size: samples encoded at a time; bounds memory and changes nothing else. None for all of a step.
        later: leave the features of a step to whoever looks at them.
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
        """Return the features of `count` real samples of each label (one set if there are none), on the device of rng.

        Only those that are this process's `own` are looked up or encoded, see `data.dataset.Source`.
        """
        return self._features_of(self._source.draw(labels, count, rng, own))

    @torch.no_grad()
    def draw_unconditional(
        self, sets: int, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Mapping[str, Float[Tensor, "l m k _"]]:
        """Return the features of sets of real samples of any label: guidance. The positives of the step are drawn first."""
        return self._features_of(self._source.draw_unconditional(sets, count, rng, own))

    def _features_of(self, drawn: Tensor) -> Mapping[str, Tensor]:
        return Later(drawn, self._encoded) if self._later else self._encoded(drawn)

    def _encoded(self, drawn: Tensor) -> dict[str, Tensor]:
        if self._cache is not None:
            return self._cache.lookup(drawn)
        return encode_sets(self._encoder, drawn, self._batch_size)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the source, for a checkpoint."""
        return self._source.tensors() if isinstance(self._source, Stateful) else {}

    def restore(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Take over what `tensors` returned; raises InputError if it is of another source."""
        if isinstance(self._source, Stateful):
            self._source.restore(tensors, origin)
        elif tensors:
            name = next(iter(tensors))
            raise InputError(f"checkpoint is '{origin}', with '{name}' of real samples, of which this run keeps none: delete it")


def encode_sets(
    encoder: FeatureEncoder, samples: Float[Tensor, "l n *sample"], batch_size: int | None = None
) -> dict[str, Float[Tensor, "l n k _"]]:
    """Return the features of sets of samples, encoded `batch_size` at a time; all at once by default."""
    flat = samples.flatten(0, 1)
    parts = [encoder(part) for part in flat.split(batch_size or len(flat))]
    return {name: torch.cat([part[name] for part in parts]).unflatten(0, samples.shape[:2]) for name in parts[0]}
