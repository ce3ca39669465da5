"""The evaluation of a run: what its samples are compared with, and through whose eyes, by the kind of its data.

Points, digits and images in memory are compared at once. Images that are too many for that are made, decoded and looked at batch
after batch, and so are the real ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_counts, check_device
from drifting._files import check_writable
from drifting._progress import show_images, show_sampling
from drifting.config import RunConfig
from drifting.data import Decoder, ImageData, ImagesData
from drifting.data.dataset import InMemorySource, reference_samples
from drifting.data.digits import load_digits
from drifting.data.pixels import to_bytes
from drifting.data.points import PlaneData
from drifting.errors import InputError
from drifting.evaluation import Metrics, Sampler, compare, evaluate_digits, evaluate_images, evaluate_points, frechet_curve, see
from drifting.evaluation.images import Batch
from drifting.evaluation.references import labels_in_shares
from drifting.generators.base import Generator
from drifting.loss import DriftingLoss
from drifting.metrics.frechet import check_covariance
from drifting.runs.extractors import load_extractor
from drifting.runs.folder import STATISTICS
from drifting.runs.pictures import bandwidths
from drifting.runs.references import real_images
from drifting.sampling import check_request, sample, sample_indices

IN_MEMORY, STREAMED = 10_000, 50_000
_BATCH = 64

# Labels of samples are listed for so many, and over again for more: memory does not grow with their number.
_PERIOD = 100_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an evaluation may be asked for.

    Attributes:
        extractor: the network in whose features images are compared, see `extractors.load_extractor`.
        real: real images that those of a run are compared with: a folder, or a file of statistics; None for the run's own.
        count: images to compare; None for 10,000, or 50,000 where they are streamed. Digits have a fixed number.
        seed: of the samples.
        guidance_scale: of the samples; None for that of the run.
        batch_size: samples at a time: bounds memory, and changes nothing else.
        device: where generator, decoder and extractor run.
    """

    extractor: str | None = None
    real: str | None = None
    count: int | None = None
    seed: int = 0
    guidance_scale: float | None = None
    batch_size: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise InputError for a value with which nothing could be measured."""
        check_request(1 if self.count is None else self.count, self.seed)
        check_counts({} if self.batch_size is None else {"batch_size": self.batch_size})
        check_device(self.device)


def evaluate_run(
    config: RunConfig, generator: Generator, asked: Asked, *, folder: Path, snapshots: Callable[[], Mapping[int, Tensor]]
) -> Metrics:
    """Measure the samples of a run and return the figures, with the extractor; see `evaluation`.

    Args:
        config: of the run.
        generator: trained; it runs on the device that is asked for, and goes back to where it was.
        asked: what to do.
        folder: of the run, where statistics of real images are kept that have no place beside their extractor.
        snapshots: returns the samples that were set aside during training.

    Raises:
        InputError: for anything that cannot work, before long work.
    """
    scale = config.schedule.scale_of_samples(asked.guidance_scale)
    check_writable(folder, "run")
    with _moved(generator, asked.device):
        kind = config.data.kind
        if kind == "streamed" or (kind == "images" and asked.real):
            metrics = _evaluate_streamed(config, generator, asked, scale, folder)
        elif kind == "images":
            metrics = _evaluate_in_memory(config, cast(ImagesData, config.data), generator, asked, scale, snapshots)
        else:
            for name, value in (("extractor", asked.extractor), ("real", asked.real)):
                if value is not None:
                    raise InputError(f"{name} is '{value}', but this run makes no images to show it: leave it out")
            metrics = build_evaluation(config, asked.count or IN_MEMORY)(
                lambda count, seed: sample(generator, count, seed=seed, guidance_scale=scale)
            )
    return metrics if scale is None else {"guidance_scale": scale, **metrics}


def _evaluate_in_memory(
    config: RunConfig,
    data: ImagesData,
    generator: Generator,
    asked: Asked,
    scale: float | None,
    snapshots: Callable[[], Mapping[int, Tensor]],
) -> Metrics:
    train, test = (data.load(split) for split in ("train", "test"))
    told: dict[str, Any] = {"seed": asked.seed, "guidance_scale": scale}
    told |= {"batch_size": asked.batch_size} if asked.batch_size else {}

    def draw(number: int, labels: Sequence[int] | None) -> Tensor:
        with show_sampling(number) as progress:
            return to_bytes(sample(generator, number, labels=labels, on_progress=progress.advance, **told))

    extractor = load_extractor(asked.extractor, config, asked.device)
    metrics = {"extractor": extractor.name, **evaluate_images(draw, train, test, extractor, count=asked.count or IN_MEMORY)}
    if known := snapshots():
        as_bytes = {step: to_bytes(frame) for step, frame in known.items()}
        metrics |= frechet_curve(as_bytes, train, test, extractor)
    return metrics


def _evaluate_streamed(config: RunConfig, generator: Generator, asked: Asked, scale: float | None, folder: Path) -> Metrics:
    count, batch_size = asked.count or STREAMED, asked.batch_size or _BATCH
    if count < 2:
        raise InputError(f"num_samples is {count}: ask for at least 2")
    extractor = load_extractor(asked.extractor, config, asked.device)
    decode = cast(ImageData, config.data).decoder(asked.device)
    cache = extractor.cache or folder / STATISTICS
    reference, floor = real_images(config, asked.real, extractor, decode, count=count, cache=cache)
    told: dict[str, Any] = {"seed": asked.seed, "guidance_scale": scale, "batch_size": batch_size}
    for image, _ in sampled_batches(generator, decode, range(1), **told):
        # What cannot work fails before the real images are looked at.
        check_covariance(count, extractor.embed(image).shape[1])
    if generator.num_classes is not None and reference.shares is not None:
        told["labels"] = labels_in_shares(reference.shares, min(count, _PERIOD)).tolist()
    samples = sampled_batches(generator, decode, range(count), **told)
    real = reference.see(batch_size)
    others = floor.see(batch_size, real)
    generated = see(show_images(samples, count, what="samples"), extractor)
    return {"extractor": extractor.name, "reference": reference.name, **compare(generated, real, others)}


def sampled_batches(
    generator: Generator,
    decode: Decoder,
    indices: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    batch_size: int = _BATCH,
) -> Iterator[Batch]:
    """Make images, batch after batch: those of some indices of a seed.

    Args:
        generator: the network.
        decode: its samples -> bytes.
        indices: which images of the seed.
        labels: the class of every image of the seed, from the first one on, and over again; all classes in turn by default.
        seed: which set of images.
        guidance_scale: as in `sampling.sample`.
        batch_size: images at a time.
    """
    classes = None if generator.num_classes is None else labels or range(generator.num_classes)
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        images = decode(sample_indices(generator, chosen, seed=seed, labels=labels, guidance_scale=guidance_scale))
        yield images, None if classes is None else torch.tensor([classes[index % len(classes)] for index in chosen])
        del images


@contextmanager
def _moved(generator: Generator, device: str) -> Iterator[None]:
    before = next(generator.parameters()).device
    generator.to(device)
    try:
        yield
    finally:
        generator.to(before)


# Seeds of real points that no picture, frame or training draws.
_EVALUATION_STREAM = 10**6

# Of an evaluation: with ten times as many it takes a hundred times as long.
_MOST_POINTS = 100_000


def build_evaluation(config: RunConfig, count: int = 10_000) -> Callable[[Sampler], Metrics]:
    """Return the function that measures a sampler against the real data of a run: so many points, or digits, which are all used.

    Raises:
        InputError: for fewer than 2 points, of a sampler or in each half of a data set.
    """
    if config.data.kind == "digits":
        return partial(evaluate_digits, split=load_digits())
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
    modes = cast(PlaneData, config.data).modes
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
    """Return the raw drift by the field that trains, of all temperatures together, in the units of the norms that training logs."""
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
