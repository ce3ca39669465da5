"""A cache of the features of all real samples: the encoder is frozen and the data are finite, so they need to be encoded only once.

Small caches stay in memory. Larger ones are memory-mapped .npy files in a folder named by a fingerprint of the samples and of their
features, so the next run finds them again.

Shapes: s samples, l labels, p positives, k locations, d channels.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from drifting._files import atomic_path
from drifting.errors import InputError, reason

# The same type as encoders.base.FeatureEncoder.
Encode = Callable[[Tensor], Mapping[str, Float[Tensor, "b k d"]]]
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
        encode: Encode,
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
