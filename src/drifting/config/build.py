"""How everything is built from a configuration."""

import dataclasses
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from drifting._checks import check_device
from drifting._seeds import initial_weights
from drifting.checkpoint import load_state_dict, load_weights
from drifting.config.data import (
    DigitsData,
    EncoderData,
    ImageFilesData,
    ImagesData,
    LatentsData,
    StreamedData,
)
from drifting.config.encoders import check_images, find_weights, load_mae, recipe_features
from drifting.config.networks import (
    AutoencoderConfig,
    MAEConfig,
    MAEFeaturesConfig,
    ResNetConfig,
    SimCLRConfig,
)
from drifting.config.run import AnyConfig, ClassifierConfig, EncoderRunConfig, RunConfig
from drifting.config.sources import find_data, labelled, load_labelled, load_split
from drifting.encoders.autoencoder import Autoencoder, AutoencoderFeatures
from drifting.encoders.base import FeatureEncoder, identity
from drifting.encoders.classifier import Classifier
from drifting.encoders.mae import MASK_SIDE, MAX_GROUPS, MaskedAutoencoder
from drifting.encoders.normalize import IMAGENET
from drifting.encoders.resnet import ResNet, ResNetFeatures, adapt_weights
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
        match config:
            case ClassifierConfig():
                return Classifier(_known_shape(config.data), config.data.num_classes or 0, config.width)
            case RunConfig(data=ImagesData() as data, encoder=AutoencoderConfig() as encoder):
                return _build_autoencoder(data, encoder)
            case (
                RunConfig(data=ImagesData() as data, encoder=ResNetConfig() as encoder)
                | EncoderRunConfig(data=ImagesData() as data, encoder=ResNetConfig() as encoder)
            ):
                return _build_resnet(data, encoder)
            case EncoderRunConfig(data=data, encoder=MAEConfig() as encoder):
                return _build_mae(data, encoder, _classes_to_learn(data) if config.learns_classes else None)
            case RunConfig(data=data, encoder=MAEFeaturesConfig() as encoder):
                return load_mae(data, encoder)
            case RunConfig(encoder=AutoencoderConfig() | ResNetConfig() as encoder):
                kind = "an auto-encoder" if isinstance(encoder, AutoencoderConfig) else "a ResNet"
                unfit = "stay on disk" if isinstance(config.data, StreamedData) else "are no images"
                raise InputError(f"encoder is {kind}, but the data {unfit}: use the space of the samples")
            case _:
                return None


def _build_autoencoder(data: ImagesData, encoder: AutoencoderConfig) -> Autoencoder:
    network = Autoencoder(_known_shape(data), code_dim=encoder.code_dim, width=encoder.width)
    if encoder.weights is not None:
        load_weights(network, load_state_dict(Path(encoder.weights)), encoder.weights)
    return network


def _build_resnet(data: ImagesData, encoder: ResNetConfig) -> ResNet:
    """Return the network, with published weights where they are named. Only one that is to learn classes has logits."""
    learns_classes = not isinstance(encoder, SimCLRConfig) and encoder.weights is None
    num_classes = _classes_to_learn(data) if learns_classes else None
    shape, sizes = _known_shape(data), {name: getattr(encoder, name) for name in ("width", "small_stem", "feature_dims", "resize")}
    halves = (0.5,) * shape[0]
    statistics = IMAGENET if shape[0] == 3 else (halves, halves)
    network = ResNet(encoder.arch, shape, num_classes=num_classes, statistics=statistics, **sizes)
    if encoder.weights is not None:
        load_weights(network, adapt_weights(network, load_state_dict(Path(encoder.weights))), encoder.weights)
    return network


def _build_mae(data: EncoderData, encoder: MAEConfig, num_classes: int | None) -> MaskedAutoencoder:
    """Return the network, or raise InputError if it could not be masked, or would say nothing of its images."""
    sizes = {name: getattr(encoder, name) for name in ("width", "patch", "depths")}
    network = MaskedAutoencoder(_known_shape(data), num_classes=num_classes, **sizes)
    if any(side % MASK_SIDE for side in network.grid):
        cut = f"cuts images into {network.grid[0]} x {network.grid[1]} patches, of which squares of {MASK_SIDE} are hidden"
        raise InputError(f"patch is {encoder.patch}, which {cut}: pass one that leaves an even number")
    # A channel that is normalised by itself has lost its mean: at a single place, or in the features, which are means, it is blank.
    blank = [shape[0] for name, shape in network.map_shapes.items() if name == "layer4" or shape[1:] == (1, 1)]
    if min(blank) <= MAX_GROUPS:
        least = -(-(MAX_GROUPS + 1) * encoder.width // min(blank))
        raise InputError(f"width is {encoder.width}, whose last maps are blank once normalised: pass at least {least}")
    return network


def _classes_to_learn(data: EncoderData) -> int:
    """Return the number of classes, or raise InputError if there are no two."""
    in_memory = isinstance(data, ImagesData)
    classes = load_split(labelled(data), "train").num_classes if in_memory else data.num_classes
    if classes is None or classes < 2:
        origin = data.path or (data.name if in_memory else None)
        raise InputError(f"data is '{origin}', whose images are all of one class: add another, or learn without classes, by simclr")
    return classes


def build_encoder(config: RunConfig, network: nn.Module | None = None) -> FeatureEncoder:
    """Return the feature space in which the samples of a run drift, over its trained network where it has one."""
    encoder: FeatureEncoder = identity
    if isinstance(config.encoder, AutoencoderConfig) and isinstance(network, Autoencoder):
        encoder = AutoencoderFeatures(network, config.encoder.features)
    if isinstance(config.encoder, ResNetConfig) and isinstance(network, ResNet):
        encoder = ResNetFeatures(network, config.encoder.features)
    if isinstance(config.encoder, MAEFeaturesConfig) and isinstance(network, MaskedAutoencoder):
        encoder = recipe_features(config.encoder, network, config.device)
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
