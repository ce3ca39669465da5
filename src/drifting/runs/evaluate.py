"""The evaluation of a run. Its data choose what its samples are compared with, and in which features.

Points and digits are compared all at once; generated and real images are processed in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_counts, check_device
from drifting.config import RunConfig, load_config
from drifting.data import Decoder, ImageSet
from drifting.data.images import LabeledSplit
from drifting.data.pixels import to_bytes
from drifting.data.sources import InMemorySource, reference_samples
from drifting.errors import InputError
from drifting.evaluation import Extractor, Metrics, Sampler, Sides, evaluate_digits, evaluate_images, evaluate_points, frechet_curve
from drifting.evaluation.extractors import find_extractor
from drifting.evaluation.figures import DRIFT_BATCHES
from drifting.evaluation.references import IN_MEMORY, STREAMED, in_memory, streamed
from drifting.evaluation.statistics import Batch
from drifting.generators.base import Generator
from drifting.loss import DriftingLoss
from drifting.runs.folder import CONFIG, STATISTICS
from drifting.runs.pictures import bandwidths
from drifting.runs.samples import TrainedGenerator
from drifting.sampling import check_request, sample, sample_in_parts

# Number of images in a batch: of data sets in memory, and of others.
_BATCH_IN_MEMORY, _BATCH = 500, 64


@dataclass(frozen=True)
class Evaluation:
    """What to measure of a run, and the ways to do it: the data of the run choose one, or measure `sample` in their own way.

    Attributes:
        run: the run.
        extractor: feature extractor for images, see `evaluation.extractors.find_extractor`.
        real: real images to compare with: a folder, or a file of statistics; None for those of the run.
        count: number of images; None for 10,000, or 50,000 with `real` or for data on disk. For digits it is fixed.
        seed: seed of the samples. Points and digits come in draws, each with a seed that is derived from it.
        guidance_scale: guidance scale of the samples; None for that of the run.
        batch_size: number of images at a time; bounds memory and changes nothing else.
        device: device of generator, decoder and extractor; the generator is moved back afterwards.
    """

    run: TrainedGenerator
    extractor: str | None = None
    real: str | None = None
    count: int | None = None
    seed: int = 0
    guidance_scale: float | None = None
    batch_size: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise InputError for a value that is out of range."""
        check_request(1 if self.count is None else self.count, self.seed)
        check_counts({} if self.batch_size is None else {"batch_size": self.batch_size})
        check_device(self.device)

    @property
    def scale(self) -> float | None:
        """Guidance scale to pass to the generator; None if it takes none."""
        return self.run.config.schedule.scale_of_samples(self.guidance_scale)

    def measure(self) -> Metrics:
        """Return the figures, see `evaluation`; raises InputError for anything that cannot work, before long work."""
        scale = self.scale
        with _on_device(self.run.generator, self.device):
            metrics = self.run.config.data.evaluate(self)
        noise_scale = self.run.generator.noise_scale
        scales = {"guidance_scale": scale, "noise_scale": None if noise_scale == 1 else noise_scale}
        return {name: value for name, value in scales.items() if value is not None} | metrics

    def sample(self, count: int, draw: int) -> Tensor:
        """Return the samples of a draw, numbered from 0 below 25, or raise InputError if the request is for images."""
        for name in ("extractor", "real"):
            if (value := getattr(self, name)) is not None:
                raise InputError(f"{name} is '{value}', but this run makes no images to show it: leave it out")
        seed = (DRIFT_BATCHES * self.seed + draw) % 2**31  # no two seeds share a draw
        return sample(self.run.generator, count, seed=seed, guidance_scale=self.scale)

    def points(self, modes: Tensor | None = None) -> Metrics:
        """Measure points in the plane; see `evaluate_points`."""
        return build_evaluation(self.run.config, self.count or IN_MEMORY, modes)(self.sample)

    def digits(self, split: LabeledSplit) -> Metrics:
        """Measure digits; see `evaluate_digits`."""
        return evaluate_digits(self.sample, split)

    def images_in_memory(self, name: str, load: Callable[[str], ImageSet]) -> Metrics:
        """Compare images, and the snapshots of the training, with the test set, or with the requested real images.

        Args:
            name: name of the data set.
            load: split -> its images.
        """
        if self.real is not None:
            return self.images()
        train, test = load("train"), load("test")
        extractor = load_extractor(self.extractor, self.run.config, self.device)
        sides = in_memory(f"images {name}/test", train, test, extractor, count=self.count or IN_MEMORY)
        batch_size = self.batch_size or _BATCH_IN_MEMORY
        metrics = self._compared(sides, extractor, to_bytes, batch_size)
        if known := self.run.snapshots():
            as_bytes = {step: to_bytes(samples) for step, samples in known.items()}
            metrics |= frechet_curve(as_bytes, train, test, extractor, sides.reference(batch_size).gaussian)
        return metrics

    def images(self) -> Metrics:
        """Compare images with real ones that stay on disk."""
        config, count = self.run.config, self.count or STREAMED
        data: Any = config.data  # images, which have a decoder
        if count < 2:
            raise InputError(f"num_samples is {count}: ask for at least 2")
        extractor = load_extractor(self.extractor, config, self.device)
        decode = data.decoder(self.device)
        sides = streamed(
            data,
            self.real,
            extractor,
            decode=decode,
            seed=config.seed,
            count=count,
            cache=extractor.cache or self.run.folder / STATISTICS,
            device=self.device,
        )
        return self._compared(sides, extractor, decode, self.batch_size or _BATCH)

    def _compared(self, sides: Sides, extractor: Extractor, decode: Decoder, batch_size: int) -> Metrics:
        generator = self.run.generator

        def sampler(count: int, labels: Sequence[int] | None) -> Iterator[Batch]:
            return sampled_batches(
                generator,
                decode,
                count,
                labels=None if generator.num_classes is None else labels,
                seed=self.seed,
                guidance_scale=self.scale,
                batch_size=batch_size,
            )

        names = {"extractor": extractor.name, "reference": sides.name}
        return {**names, **evaluate_images(sampler, sides, extractor, batch_size=batch_size)}


def load_extractor(extractor: str | None, config: RunConfig, device: str = "cpu") -> Extractor:
    """Return the feature extractor that evaluates a run of images; arguments and errors as in `find_extractor`."""

    def read(folder: Path) -> Any:
        saved = load_config(folder / CONFIG)
        return saved if saved.noun == "classifier" else None

    return find_extractor(extractor, config.data, read, device=device)


def sampled_batches(
    generator: Generator,
    decode: Decoder,
    count: int,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    batch_size: int = _BATCH,
) -> Iterator[Batch]:
    """Yield the images of a seed in batches, with their labels.

    Args:
        generator: the generator.
        decode: samples -> bytes.
        count: number of images.
        labels: classes to cycle through; all classes by default.
        seed: seed of the images.
        guidance_scale: guidance scale, as in `sampling.sample`.
        batch_size: number of images in a batch.
    """
    classes, done = None if generator.num_classes is None else labels or range(generator.num_classes), 0
    options = {"seed": seed, "labels": labels, "guidance_scale": guidance_scale, "batch_size": batch_size}
    for samples in sample_in_parts(generator, count, **options):
        images, indices = decode(samples), range(done, done + len(samples))
        yield images, None if classes is None else torch.tensor([classes[index % len(classes)] for index in indices])
        done += len(indices)
        del images


@contextmanager
def _on_device(generator: Generator, device: str) -> Iterator[None]:
    before = next(generator.parameters()).device
    generator.to(device)
    try:
        yield
    finally:
        generator.to(before)


# Offset of the seeds of real points, which no picture, frame or training draws.
_EVALUATION_STREAM = 10**6

# Largest number of points; ten times as many take a hundred times as long.
_MOST_POINTS = 100_000


def build_evaluation(config: RunConfig, count: int = IN_MEMORY, modes: Tensor | None = None) -> Callable[[Sampler], Metrics]:
    """Return the function that compares a sampler with `count` real points of a run.

    Raises:
        InputError: for fewer than 2 points, of a sampler or in each half of a data set.
    """
    source = config.data.source(config.seed)
    if count < 2:
        raise InputError(f"num_samples is {count}: ask for at least 2")
    if isinstance(source, InMemorySource):
        count = min(count, len(source.samples) // 2)
        if count < 2:
            origin = getattr(config.data, "path", None)
            few = f"data is '{origin}' of {len(source.samples)} points, of which one half is compared with the other"
            raise InputError(f"{few}: evaluate a run of at least 4")
    if count > _MOST_POINTS:
        raise InputError(f"num_samples is {count}, all pairs of which are compared, for hours: ask for at most {_MOST_POINTS}")
    return partial(
        evaluate_points,
        real=lambda total, seed: reference_samples(source, total, _EVALUATION_STREAM + seed),
        count=count,
        drift=partial(_training_drift, config.loss.build()),
        batch=min(config.schedule.generated, count),
        endless=not isinstance(source, InMemorySource),
        modes=modes,
    )


def _training_drift(loss: DriftingLoss, generated: Float[Tensor, "n d"], positives: Float[Tensor, "p d"]) -> Float[Tensor, "n d"]:
    """Return the raw drift of the training field, summed over all temperatures, in the units of the logged norms."""
    temperatures, unit = bandwidths(loss, generated, positives)
    moved, real = generated[None], positives[None]
    drift = loss.field(
        moved,
        real,
        moved,
        temperatures=generated.new_tensor(temperatures),
        weights=None,
        num_self=len(generated),
        distances=None,
    )
    return drift.sum(0)[0] / unit
