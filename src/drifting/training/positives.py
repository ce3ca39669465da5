"""Features of real samples in training: encoded at every step, at once or when they are used, or read from a cache.

A frozen encoder gives every sample of a finite data set the same features at every step, so a cache encodes each of them once.
Small caches stay in memory. Larger ones are memory-mapped .npy files in a folder named by a fingerprint of the samples and of their
features, so the next run finds them again.

Shapes: s samples, l labels, p positives, m unconditional samples, k locations, d channels.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from drifting._files import atomic_path
from drifting._torch import stream_seed
from drifting.data.dataset import ALL, Source
from drifting.encoders.base import FeatureEncoder, identity
from drifting.errors import InputError, reason

# Samples whose features identify the encoder of a cache.
_PROBE = 8


class FeatureCache:
    """Features of all samples of a finite set, by index.

    Args:
        encode: the encoder, on the device of `samples` after `prepare`.
        samples: all samples.
        prepare: converts rows of `samples` into inputs of the encoder, such as uint8 images into floats.
        batch_size: number of samples encoded at a time; only rounding depends on it.
        folder: parent folder of the files; None to write no files.
        byte_budget: largest number of bytes of a cache in memory; a larger one is written to files.
        on_progress: called after every batch with the number of encoded samples.

    Attributes:
        path: folder of the files, or None for a cache in memory.

    Raises:
        InputError: if there are no samples, or the cache exceeds its budget and there is no folder.
    """

    def __init__(
        self,
        encode: FeatureEncoder,
        samples: Shaped[Tensor, "s *sample"],
        *,
        prepare: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = 512,
        folder: Path | None = None,
        byte_budget: int = 2**31,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        if len(samples) == 0:
            raise InputError("data is empty: pass at least one sample")

        def batches(size: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
            for start in range(0, len(samples), size):
                rows = samples[start : start + size]
                with torch.no_grad():
                    yield slice(start, start + len(rows)), dict(encode(rows if prepare is None else prepare(rows)))

        def shown() -> Iterator[tuple[slice, dict[str, Tensor]]]:
            for place, features in batches(batch_size):
                yield place, features
                on_progress(place.stop)

        probe = next(batches(_PROBE))[1]
        shapes = {name: (len(samples), *value.shape[1:]) for name, value in probe.items()}
        self.nbytes = sum(4 * int(np.prod(shape)) for shape in shapes.values())
        self.path: Path | None = None
        self._arrays: dict[str, Any]
        if self.nbytes <= byte_budget:
            self._arrays = {name: torch.empty(shape) for name, shape in shapes.items()}
            _fill(self._arrays, shown())
            return
        if folder is None:
            raise InputError(
                f"features take {self.nbytes} bytes, over byte_budget {byte_budget}: raise it or name a folder for files"
            )
        self.path = folder / f"features-{_fingerprint(samples, probe, batch_size)}"
        if not self.path.exists():
            _write(self.path, shapes, shown())
        self._arrays = {name: _mapped(self.path, index, shapes[name]) for index, name in enumerate(sorted(shapes))}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(self._arrays)

    def lookup(self, indices: Int[Tensor, "l p"]) -> dict[str, Float[Tensor, "l p k d"]]:
        """Return the features of the samples with these indices, on the device of `indices`."""
        rows = indices.cpu()
        if self.path is None:
            return {name: array[rows].to(indices.device) for name, array in self._arrays.items()}
        return {name: torch.from_numpy(array[rows.numpy()]).to(indices.device) for name, array in self._arrays.items()}


def _fill(arrays: Mapping[str, Any], batches: Iterator[tuple[slice, dict[str, Tensor]]]) -> None:
    for rows, features in batches:
        for name, array in arrays.items():
            value = features[name].float().cpu()
            array[rows] = value.numpy() if isinstance(array, np.ndarray) else value


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]], batches: Iterator[tuple[slice, dict[str, Tensor]]]) -> None:
    """Write one file per feature, all or none. The files are numbered, because a feature name may be no valid file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as scratch:
        scratch.mkdir()
        arrays = {
            name: np.lib.format.open_memmap(scratch / f"{index}.npy", mode="w+", dtype=np.float32, shape=shapes[name])
            for index, name in enumerate(sorted(shapes))
        }
        _fill(arrays, batches)
        for array in arrays.values():
            array.flush()


def _mapped(path: Path, index: int, shape: tuple[int, ...]) -> Any:
    """Return the memory-mapped features of one name, or raise InputError if the file is damaged."""
    file = path / f"{index}.npy"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"it has {array.shape} of {array.dtype}")
    except Exception as error:  # the parsers of the header raise many types
        raise InputError(f"features are in '{file}', which is damaged ({reason(error)}): delete the folder '{path}'") from None
    return array


def _fingerprint(samples: Tensor, probe: Mapping[str, Tensor], batch_size: int) -> str:
    """Return a fingerprint of the samples and of the encoder, which is identified by the features of the first samples."""
    digest = hashlib.blake2b(str((samples.dtype, tuple(samples.shape), batch_size)).encode(), digest_size=12)
    for part in samples.split(4096):
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, value in sorted(probe.items()):
        digest.update(f"{name} {tuple(value.shape[1:])}".encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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

    def then(self, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> "LazyFeatures":
        """Return the features after a change of all of them, not computed yet."""
        return LazyFeatures(self._drawn, lambda drawn: change(self._encode(drawn)))

    def __getitem__(self, name: str) -> Tensor:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


class Places:
    """A random share of the places of every feature, the same for all samples. A feature of one place is kept.

    Args:
        share: share of the places to keep, above 0; at least one place is kept.
        seed: seed of the choice.
    """

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._seed = share, seed

    def of(self, features: Mapping[str, Float[Tensor, "*b k _"]]) -> Mapping[str, Float[Tensor, "*b _ _"]]:
        """Return the chosen places of features; those of features that are not computed yet are not computed either."""
        if isinstance(features, LazyFeatures):
            return features.then(self._chosen)
        return self._chosen(features)

    def _chosen(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._some(name, feature) for name, feature in features.items()}

    def _some(self, name: str, feature: Float[Tensor, "*b k _"]) -> Float[Tensor, "*b _ _"]:
        count, device = feature.shape[-2], feature.device
        if count == 1:
            return feature
        rng = torch.Generator(device).manual_seed(stream_seed(self._seed, f"places of {name}"))
        places = torch.randperm(count, generator=rng, device=device)[: max(1, round(self._share * count))]
        return feature.index_select(-2, places)

    def encoder(self, encoder: FeatureEncoder) -> FeatureEncoder:
        """Return an encoder of the chosen places alone."""
        return lambda samples: self._chosen(encoder(samples))


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

    def samples(self) -> "Positives":
        """Return the real samples themselves, drawn from the same source, as the feature "sample"; there must be no cache."""
        return Positives(self._source, identity)

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
