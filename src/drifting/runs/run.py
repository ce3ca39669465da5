"""A run and its folder: load it, sample from it, evaluate it.

The folder holds config.json, metrics.jsonl, generator.safetensors (averaged weights), checkpoints/, snapshots.safetensors and the
pictures; `load_run(folder)` needs the first and third alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from drifting._files import atomic_path, check_space, check_writable, hold
from drifting._json import save_json
from drifting.checkpoint import load_network
from drifting.config import RunConfig
from drifting.distributed import join
from drifting.errors import InputError
from drifting.evaluation import Metrics
from drifting.generators.base import Generator
from drifting.plotting import image_grid, pixels_in_grid, points_figure, save_image
from drifting.runs.evaluate import Evaluation
from drifting.runs.folder import CONFIG, METRICS, REPORT, WEIGHTS, read_config
from drifting.sampling import Sampler, label_numbers
from drifting.training.recorder import read_snapshots

# Copies of images as bytes in memory: those of a batch, and all.
_COPIES = 2

# Limits of a picture: more points hide each other, and few programs show more pixels; this many images always fit.
_MOST_POINTS, _MOST_PIXELS, _SMALL_PICTURE = 100_000, 2**26, 64

# Columns of a picture of all classes, one for each; of more classes, or none, rows of ten.
_WIDEST = 20


@dataclass(frozen=True)
class Run(Sampler):
    """A trained run."""

    folder: Path
    config: RunConfig
    generator: Generator
    pictures: tuple[Path, ...] = ()

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

    def summary(self) -> list[str]:
        """Return the paths of its pictures and of its report."""
        report = self.folder / REPORT
        return [*map(str, self.pictures), *([str(report)] if report.exists() else [])]

    def evaluate(
        self,
        *,
        extractor: str | None = None,
        real: str | None = None,
        count: int | None = None,
        seed: int = 0,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
    ) -> Metrics:
        """Measure the run against real data and keep the figures in metrics.json; arguments as of `evaluate.Evaluation`."""
        evaluation = Evaluation(self, extractor, real, count, seed, guidance_scale, batch_size, device)
        with hold(self.folder, "run"):
            metrics = evaluation.measure()
            save_json(self.folder / METRICS, metrics)
        return metrics

    def save_pretrained(self, folder: str | Path, *, half: bool = False, overwrite: bool = False) -> list[Path]:
        """Write the run into a folder to share, with a model card, and return its files; see `publish.save_pretrained`."""
        from drifting.runs import publish

        return publish.save_pretrained(self, folder, half=half, overwrite=overwrite)

    def push_to_hub(self, repository: str, *, private: bool | None = None, half: bool = False) -> str:
        """Upload the run to owner/name on the Hugging Face Hub and return its address; see `publish.push_to_hub`."""
        from drifting.runs import publish

        return publish.push_to_hub(self, repository, private=private, half=half)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network trained on its own: a classifier or an encoder.

    Attributes:
        weights: their file.
        figures: name -> share of images that are classified correctly, or error of the hidden patches; empty if neither is known.
    """

    weights: Path
    figures: Mapping[str, float]

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.weights.parent

    def summary(self) -> list[str]:
        """Return the figures and the file of the weights, one line each."""
        lines = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.figures.items()]
        return [*(lines or ["no accuracy, because the images do not have two classes or more"]), str(self.weights)]


def load_run(folder: str | Path) -> Run:
    """Return the trained run of a folder, ready to sample on the CPU, or raise InputError; see also `share.load`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run is '{folder}', which is not a folder: name the --save-dir of a training")
    config = read_config(folder / CONFIG)
    generator = load_network(config.build_generator, folder / WEIGHTS)
    return Run(folder, config, generator.eval())


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise InputError unless samples can be written to a file."""
    if out.suffix not in (".png", ".npy"):
        raise InputError(f"out is '{out}': name a .png picture or a .npy array")
    if out.is_dir() or (out.exists() and not overwrite):
        raise InputError(f"out is '{out}', which exists: pass --overwrite or name another file")
    check_writable(out.parent, "out")


def write_samples(
    run: Sampler,
    out: Path,
    count: int,
    *,
    seed: int = 0,
    labels: Sequence[int | str] | None = None,
    guidance_scale: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write samples of a run as a picture (.png) or as numbers (.npy), or raise InputError; classes are named above a picture."""
    check_output(out, overwrite=overwrite)
    if out.suffix == ".png" and count > _SMALL_PICTURE:
        check_picture(run.sample(1, labels=labels, guidance_scale=guidance_scale).shape[1:], count)
    if out.suffix == ".npy":
        return _write_array(run.parts(count, seed=seed, labels=labels, guidance_scale=guidance_scale), out, count)
    samples = run.sample(count, seed=seed, labels=labels, guidance_scale=guidance_scale)
    if not join().is_main_process:
        return
    if not can_be_drawn(samples.shape[1:]):
        raise InputError(f"out is '{out}', but no picture shows samples of shape {tuple(samples.shape[1:])}: name a .npy file")
    save_image(picture_of(run, samples, labels), out)


def can_be_drawn(shape: Sequence[int]) -> bool:
    """Return whether there is a picture of samples of a shape: of points [2], or of images [h, w, c]."""
    return tuple(shape) == (2,) or len(shape) == 3


def picture_of(run: Sampler, samples: Tensor, labels: Sequence[int | str] | None) -> Image:
    """Return samples in the user's form, of which there is a picture, as one: points, or images with classes named above."""
    if samples.ndim == 2:
        return points_figure(samples)
    columns = _columns(len(samples), labels, run.generator.num_classes)
    return image_grid(samples, columns=columns, names=_headings(run, labels, columns))


def _write_array(parts: Iterator[Tensor], out: Path, count: int) -> None:
    """Write samples as one array to a .npy file, which never are in memory all together; all processes make them, the first writes.

    Not by a mapped file, in which a full disk would end the process.
    """
    if not join().is_main_process:
        for _ in parts:
            pass
        return
    first = np.ascontiguousarray(next(parts).numpy())
    described = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    check_space(out.parent, first[0].nbytes * count, "out")
    with atomic_path(out) as scratch, scratch.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**described, "shape": (count, *first.shape[1:])})
        file.write(first.data)
        for part in parts:
            file.write(np.ascontiguousarray(part.numpy()).data)


def check_picture(shape: Sequence[int], count: int) -> None:
    """Raise InputError unless a picture can show so many points [2] or images [h, w, c]."""
    most = _MOST_POINTS if len(shape) == 1 else _MOST_PIXELS // pixels_in_grid(*shape[:2])
    if count > most:
        raise InputError(f"num_samples is {count}, too many for a picture: ask for at most {most}, or name a .npy file")


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
