"""How everything is built from a configuration."""

import dataclasses
from typing import Any, TypeVar

import torch
from torch import nn

from drifting._checks import check_device
from drifting._seeds import initial_weights
from drifting.config.data import (
    DigitsData,
    EncoderData,
    ImageFilesData,
    ImagesData,
    LatentsData,
    StreamedData,
)
from drifting.config.encoders import check_images, find_weights, read_weights
from drifting.config.run import AnyConfig, ClassifierConfig, EncoderRunConfig, RunConfig
from drifting.config.sources import find_data, labelled, load_labelled, load_split
from drifting.encoders.base import FeatureEncoder, identity
from drifting.encoders.classifier import Classifier
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.loss import DriftingLoss
from drifting.training.precision import computed_in

Config = TypeVar("Config", RunConfig, ClassifierConfig, EncoderRunConfig)


def resolve(config: Config) -> Config:
    """Return the configuration with everything that depends on the data and the machine filled in and checked."""
    config = find_weights(config)
    check_device(config.device)
    data = find_data(config.data, load_labelled if isinstance(config, EncoderRunConfig) else load_split)
    if data == config.data:
        return config
    config = dataclasses.replace(config, data=data)
    check_images(config)
    if isinstance(config, EncoderRunConfig) and config.learns_classes:
        _classes_to_learn(config.data)
    return config


def build_generator(config: RunConfig) -> Generator:
    """Return the generator with its initial weights, which depend on the seed alone, on the CPU."""
    match config.data:
        case DigitsData():
            shape, num_classes = (1, 8, 8), 10
        case ImagesData() | ImageFilesData() | LatentsData() as data:
            shape, num_classes = _known_shape(data), data.num_classes
        case _:
            shape, num_classes = (2,), None
    with initial_weights(config.seed, "generator"):
        guided = config.schedule.draws_guidance
        return config.generator.build(sample_shape=shape, num_classes=num_classes, guided=guided)


def build_network(config: AnyConfig) -> nn.Module | None:
    """Return the network that is trained before or in place of a generator, on the CPU; None where there is none."""
    # A judge must not start from the weights of an encoder that it is to judge.
    with initial_weights(config.seed, "classifier" if isinstance(config, ClassifierConfig) else "encoder"):
        if isinstance(config, ClassifierConfig):
            return Classifier(_known_shape(config.data), config.data.num_classes or 0, config.width)
        encoder, data = config.encoder, config.data
        if encoder.objective is not None and not encoder.alone and not isinstance(data, ImagesData):
            unfit = "stay on disk" if isinstance(data, StreamedData) else "are no images"
            raise InputError(f"encoder is {encoder.noun}, but the data {unfit}: use the space of the samples")
        shape = _known_shape(data) if isinstance(data, EncoderData) else (2,)
        num_classes = _classes_to_learn(data) if encoder.learns_classes else None
        return encoder.build_network(shape, num_classes=num_classes, read=read_weights)


def _classes_to_learn(data: Any) -> int:
    """Return the number of classes, or raise InputError if there are no two."""
    in_memory = isinstance(data, ImagesData)
    classes = load_split(labelled(data), "train").num_classes if in_memory else data.num_classes
    if classes is None or classes < 2:
        origin = data.path or (data.name if in_memory else None)
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


def _known_shape(data: ImagesData | StreamedData) -> tuple[int, int, int]:
    if data.image_shape is None:
        origin = data.path or getattr(data, "name", None)
        raise InputError(f"data is '{origin}', whose shape is not known yet: resolve the configuration first")
    return data.image_shape
