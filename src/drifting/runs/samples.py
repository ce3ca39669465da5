"""A trained generator, and its samples as files: a picture, an array of numbers, or a folder of pictures for other people's tools.

Arrays and folders are written while the samples are made, so that they never are in memory all together, and completely or not at
all.
"""

import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torch import Tensor

from drifting._files import atomic_path, check_space, check_writable
from drifting.config import RunConfig
from drifting.distributed import join
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.plotting import image_grid, pixels_in_grid, points_figure, save_image
from drifting.sampling import Sampler, label_numbers
from drifting.training.recorder import read_snapshots

# Limits of a picture: more points hide each other, and few programs show more pixels; this many images always fit.
_MOST_POINTS, _MOST_PIXELS, _SMALL_PICTURE = 100_000, 2**26, 64

# Copies of images as bytes in memory: those of a batch, and all.
_COPIES = 2
# Columns of a picture of all classes, one for each; of more classes, or none, rows of ten.
_WIDEST = 20

_SUFFIXES = (".png", ".npy", ".npz")
# Files in a folder of pictures: their names, and their labels in the form of StyleGAN and EDM.
_DIGITS, _NUMBERED, _LABELS = 6, re.compile(r"\d{6,}\.png", re.ASCII), "dataset.json"
# Names of the arrays of an .npz file, images and labels, as in those of ADM.
_ARRAYS = ("arr_0", "arr_1")


@dataclass(frozen=True)
class TrainedGenerator(Sampler):
    """The generator of a run, which makes samples in the form of the run's data.

    Attributes:
        folder: the folder of the run.
        config: its configuration.
        generator: the network with averaged weights.
    """

    folder: Path
    config: RunConfig
    generator: Generator

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of each label; None if they are not known or there are none."""
        return getattr(self.config.data, "class_names", None)

    def _exporter(self) -> Callable[[Tensor], Tensor]:
        return self.config.data.exporter()

    def _exported_bytes(self) -> int:
        return _COPIES * math.prod(self.config.data.exported_shape()) if self.config.data.latent else 0

    def _options(self, seed: int, labels: Sequence[int | str] | None, guidance_scale: float | None) -> dict[str, Any]:
        return super()._options(seed, labels, self.config.schedule.scale_of_samples(guidance_scale))

    def snapshots(self) -> dict[int, Tensor]:
        """Return the samples that were set aside during training, step -> samples; none where they were not kept."""
        return read_snapshots(self.folder, self.generator.sample_shape)


def is_folder(out: str | Path) -> bool:
    """Return whether a name is that of a folder of pictures: it ends with a slash, has no suffix, or is one already."""
    return str(out).endswith(("/", os.sep)) or Path(out).is_dir() or not Path(out).suffix


def check_output(out: str | Path, *, overwrite: bool) -> None:
    """Raise InputError unless samples can be written to a file or a folder."""
    path = Path(out)
    if is_folder(out):
        if path.exists() and not path.is_dir():
            raise InputError(f"out is '{out}', a file: name a folder for pictures, or a {', '.join(_SUFFIXES)} file")
        there = sorted(entry.name for entry in path.glob("*"))
        if other := [name for name in there if not _NUMBERED.fullmatch(name) and name != _LABELS]:
            raise InputError(f"out is '{out}', a folder that holds other files, such as '{other[0]}': name another")
        if there and not overwrite:
            raise InputError(f"out is '{out}', a folder that holds pictures: pass --overwrite or name another")
    elif path.suffix not in _SUFFIXES:
        raise InputError(f"out is '{out}': name a .png picture, a .npy or .npz array, or a folder for pictures")
    elif path.exists() and not overwrite:
        raise InputError(f"out is '{out}', which exists: pass --overwrite or name another file")
    check_writable(path.parent, "out")


def write_samples(
    run: Sampler,
    out: str | Path,
    count: int,
    *,
    seed: int = 0,
    labels: Sequence[int | str] | None = None,
    guidance_scale: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write samples of a run, or raise InputError.

    Args:
        run: the run.
        out: a picture of all samples (.png) with classes named above; an array (.npy); an array and its labels in the form of ADM
            (.npz: `arr_0`, uint8 [n, h, w, c] or points, and `arr_1`); or a folder of pictures, see `is_folder`: 000000.png and so
            on, and their labels in dataset.json.
        count: number of samples.
        seed: which set of samples.
        labels: classes to cycle through, by name or number; all by default.
        guidance_scale: strength of the guidance; that of the run by default.
        overwrite: replace an existing file, or the pictures in a folder.
    """
    check_output(out, overwrite=overwrite)
    options = {"seed": seed, "labels": labels, "guidance_scale": guidance_scale}
    path, folder = Path(out), is_folder(out)
    if folder or path.suffix != ".png":
        parts, numbers = run.parts(count, **options), run.request(count, **options).labels
        cycle = None if numbers is None else np.resize(np.array(numbers, np.int64), count)
        if not join().is_main_process:  # All processes make the samples, and the first writes them.
            for _ in parts:
                pass
            return None
        if folder:
            return _write_pictures(parts, path, count, cycle)
        return _write_npz(parts, path, count, cycle) if path.suffix == ".npz" else _write_npy(parts, path, count)
    if count > _SMALL_PICTURE:
        check_picture(run.sample(1, labels=labels, guidance_scale=guidance_scale).shape[1:], count)
    samples = run.sample(count, **options)
    if not join().is_main_process:
        return None
    if not can_be_drawn(samples.shape[1:]):
        raise InputError(f"out is '{out}', but no picture shows samples of shape {tuple(samples.shape[1:])}: name a .npy file")
    return save_image(picture_of(run, samples, labels), path)


def _write_npy(parts: Iterator[Tensor], out: Path, count: int) -> None:
    # Not by a mapped file, in which a full disk would end the process.
    first = _checked(parts, out, count)
    with atomic_path(out) as scratch, scratch.open("wb") as file:
        _write_array(file, first, parts, count)


def _write_npz(parts: Iterator[Tensor], out: Path, count: int, labels: np.ndarray | None) -> None:
    first = _checked(parts, out, count)
    # Not compressed, as by numpy.savez.
    with atomic_path(out) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        with archive.open(f"{_ARRAYS[0]}.npy", "w", force_zip64=True) as file:
            _write_array(file, first, parts, count)
        if labels is not None:
            with archive.open(f"{_ARRAYS[1]}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, labels)


def _checked(parts: Iterator[Tensor], out: Path, count: int) -> np.ndarray:
    """Return the first part, or raise StorageError if there is no room for all of them."""
    first = np.ascontiguousarray(next(parts).numpy())
    check_space(out.parent, first[0].nbytes * count, "out")
    return first


def _write_array(file: IO[bytes], first: np.ndarray, parts: Iterator[Tensor], count: int) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**described, "shape": (count, *first.shape[1:])})
    file.write(first.data)
    for part in parts:
        file.write(np.ascontiguousarray(part.numpy()).data)


def _write_pictures(parts: Iterator[Tensor], out: Path, count: int, labels: np.ndarray | None) -> None:
    digits, names = max(_DIGITS, len(str(count - 1))), list[str]()
    with atomic_path(out) as scratch:
        scratch.mkdir()
        for part in parts:
            if part.ndim != 4 or part.shape[3] not in (1, 3):
                shape = tuple(part.shape[1:])
                raise InputError(f"out is '{out}', a folder of pictures, but samples {shape} are none: name a .npy or .npz file")
            for pixels in part.numpy():
                names.append(f"{len(names):0{digits}d}.png")
                Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(scratch / names[-1])
        if labels is not None:
            with (scratch / _LABELS).open("w") as file:
                json.dump({"labels": list(zip(names, labels.tolist(), strict=True))}, file)


def can_be_drawn(shape: Sequence[int]) -> bool:
    """Return whether there is a picture of samples of a shape: of points [2], or of images [h, w, c]."""
    return tuple(shape) == (2,) or len(shape) == 3


def picture_of(run: Sampler, samples: Tensor, labels: Sequence[int | str] | None) -> Image.Image:
    """Return samples in the user's form, of which there is a picture, as one: points, or images with classes named above."""
    if samples.ndim == 2:
        return points_figure(samples)
    columns = _columns(len(samples), labels, run.generator.num_classes)
    return image_grid(samples, columns=columns, names=_headings(run, labels, columns))


def check_picture(shape: Sequence[int], count: int) -> None:
    """Raise InputError unless a picture can show so many points [2] or images [h, w, c]."""
    most = _MOST_POINTS if len(shape) == 1 else _MOST_PIXELS // pixels_in_grid(*shape[:2])
    if count > most:
        raise InputError(f"num_samples is {count}, too many for a picture: ask for at most {most}, or name a .npy file or a folder")


def _headings(run: Sampler, labels: Sequence[int | str] | None, columns: int) -> list[str] | None:
    """Return the name of the class of each column; None where they are not known, or a column has several."""
    if run.class_names is None or run.generator.num_classes is None:
        return None
    cycle = label_numbers(labels, run.class_names) or range(run.generator.num_classes)
    return [run.class_names[cycle[column % len(cycle)]] for column in range(columns)] if columns % len(cycle) == 0 else None


def _columns(count: int, labels: Sequence[int | str] | None, num_classes: int | None) -> int:
    """Return how many columns a picture has: about as many as rows where labels are named, every column of one of them."""
    if labels:
        return len(labels) * max(1, round(count**0.5 / len(labels)))
    return num_classes if num_classes is not None and num_classes <= _WIDEST else 10
