"""How everything is built from a configuration."""

import dataclasses
import functools
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from drifting._checks import check_device
from drifting._progress import show_encoding, tell_lines
from drifting._seeds import initial_weights
from drifting.config.encoders import check_images, find_weights, read_weights
from drifting.config.run import AnyConfig, ClassifierConfig, EncoderRunConfig, RunConfig
from drifting.data.dataset import Data
from drifting.data.features import FeatureCache
from drifting.data.images import ImagesData
from drifting.data.pixels import to_signed
from drifting.distributed import join
from drifting.encoders.base import FeatureEncoder, identity
from drifting.encoders.classifier import Classifier
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.loss import DriftingLoss
from drifting.training.positives import Positives
from drifting.training.precision import computed_in

Config = TypeVar("Config", RunConfig, ClassifierConfig, EncoderRunConfig)


def resolve(config: Config) -> Config:
    """Return the configuration with everything that depends on the data and the machine filled in and checked."""
    config = find_weights(config)
    check_device(config.device)
    # An encoder that learns without labels is measured by them.
    data = config.data.find(labeled=isinstance(config, EncoderRunConfig))
    if data == config.data:
        return config
    config = dataclasses.replace(config, data=data)
    check_images(config)
    if isinstance(config, EncoderRunConfig) and config.learns_classes:
        _classes_to_learn(config.data)
    return config


def build_generator(config: RunConfig) -> Generator:
    """Return the generator with its initial weights, which depend on the seed alone, on the CPU."""
    data, guided = config.data, config.schedule.draws_guidance
    with initial_weights(config.seed, "generator"):
        return config.generator.build(sample_shape=data.sample_shape, num_classes=data.num_classes, guided=guided)


def build_network(config: AnyConfig) -> nn.Module | None:
    """Return the network that is trained before or in place of a generator, on the CPU; None where there is none."""
    # A classifier must not start from the weights of an encoder that it is to evaluate.
    with initial_weights(config.seed, "classifier" if isinstance(config, ClassifierConfig) else "encoder"):
        if isinstance(config, ClassifierConfig):
            return Classifier(config.data.sample_shape, config.data.num_classes or 0, config.width)
        encoder, data = config.encoder, config.data
        if encoder.objective is not None and not encoder.alone and data.kind != "images":
            unfit = "stay on disk" if data.kind == "streamed" else "are no images"
            raise InputError(f"encoder is {encoder.noun}, but the data {unfit}: use the space of the samples")
        num_classes = _classes_to_learn(data) if encoder.learns_classes else None
        return encoder.build_network(data.sample_shape, num_classes=num_classes, read=read_weights)


def _classes_to_learn(data: Data) -> int:
    """Return the number of classes, or raise InputError if there are no two."""
    classes = data.classes_to_learn()
    if classes is None or classes < 2:
        origin = getattr(data, "path", None) or getattr(data, "name", None)
        raise InputError(f"data is '{origin}', whose images are all of one class: add another, or learn without classes, by simclr")
    return classes


def build_encoder(config: RunConfig, network: nn.Module | None = None) -> FeatureEncoder:
    """Return the feature space in which the samples of a run drift, over its trained network where it has one."""
    encoder = identity if network is None else config.encoder.build_features(network, config.device)
    encoder = torch.compile(encoder) if config.schedule.compile else encoder
    return computed_in(config.schedule.precision, encoder, config.device)


def build_loss(config: RunConfig) -> DriftingLoss:
    """Return the drifting loss of a run."""
    return DriftingLoss(**vars(config.loss))


def build_positives(config: RunConfig, encoder: FeatureEncoder, folder: Path | None = None) -> Positives:
    """Return where the features of real samples come from: the whole data set or a bank, encoded anew or looked up.

    Args:
        config: of the run.
        encoder: its feature space.
        folder: where a cache of features goes that is too large for memory.
    """
    cache, data, device = None, config.data, config.device
    if config.cache_features and config.encoder.objective is not None and isinstance(data, ImagesData):
        images = data.load("train").images
        with show_encoding(len(images), quiet=not join().is_main_process) as progress:
            prepare = functools.partial(_prepare_on, device)
            cache = FeatureCache(encoder, images, prepare=prepare, folder=folder, on_progress=progress.advance)
    tell = tell_lines("reading real samples into the memory bank")
    source = data.source(config.seed, config.bank, device=device, indexed=cache is not None, tell=tell)
    schedule = config.schedule
    return Positives(source, encoder, cache, batch_size=schedule.microbatch_size, later=schedule.labels_per_microbatch is not None)


def _prepare_on(device: str, images: Tensor) -> Tensor:
    return to_signed(images.to(device))
