"""Encoders that are trained before a generator, into the folder of its run, or on their own: weights, figures, pictures."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from drifting import config as configuration
from drifting.checkpoint import load_tensors, load_weights, save_json, save_tensors
from drifting.config import (
    AnyConfig,
    AutoencoderConfig,
    EncoderRunConfig,
    ImagesData,
    MAEConfig,
    ResNetConfig,
    RunConfig,
    SimCLRConfig,
)
from drifting.data.shuffle import shuffled_indices
from drifting.encoders.autoencoder import Autoencoder
from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.resnet import ResNet
from drifting.encoders.simclr import SimCLR
from drifting.evaluation.images import accuracy_of, in_batches
from drifting.masked_pretraining import train_streamed
from drifting.metrics.linear_probe import linear_probe
from drifting.plotting import draw_reconstruction
from drifting.run_folder import CONFIG, ENCODER_METRICS, ENCODER_WEIGHTS
from drifting.training.encoder import Augmentation, train_autoencoder, train_supervised
from drifting.training.masked import MaskedTraining
from drifting.training.progress import show_steps
from drifting.training.self_supervised import train_mae, train_simclr

_RECONSTRUCTED = 64
# Training images that a linear probe is fitted on, at most.
_PROBED = 10_000

Network = ResNet | MaskedAutoencoder


def check_networks(config: AnyConfig) -> None:
    """Raise InputError if a network cannot be built or loaded, or lacks the images it needs, while nothing is written yet."""
    network = configuration.build_network(config)
    if isinstance(config, RunConfig):
        configuration.build_encoder(config, network)
        configuration.build_export(config)
    if network is not None and isinstance(config.data, ImagesData):
        only_probed = isinstance(config, EncoderRunConfig) and not config.learns_classes
        (configuration.load_labelled if only_probed else configuration.load_split)(config.data, "test")


def prepare_encoder(config: RunConfig, folder: Path) -> nn.Module | None:
    """Return the trained network of a run's encoder on the run's device: read from its folder, else trained into it.

    Raises:
        InputError: if the weights in the folder do not fit the configuration.
        DivergenceError: if its loss becomes NaN or infinite.
    """
    network, settings = configuration.build_network(config), config.encoder
    if network is None:
        return None
    weights = folder / ENCODER_WEIGHTS
    if weights.exists():
        load_weights(network, load_tensors(weights), str(weights))
        return network.to(config.device)
    network.to(config.device)
    match settings:
        case AutoencoderConfig():
            _train_autoencoder(cast(Autoencoder, network), config, settings)
            _draw_reconstruction(cast(Autoencoder, network), config, folder)
        case ResNetConfig():
            if settings.weights is None:
                _train(cast(ResNet, network), config, settings)
            save_json(folder / ENCODER_METRICS, _figures(cast(ResNet, network).eval(), config))
    network.eval()
    save_tensors(weights, network.state_dict())
    return network


def train_encoder(config: EncoderRunConfig, folder: Path) -> dict[str, int | float]:
    """Train an encoder into a folder of its own and return its figures.

    Raises:
        DivergenceError: if its loss becomes NaN or infinite.
    """
    network = cast(Network, configuration.build_network(config)).to(config.device)
    if isinstance(config.data, ImagesData):
        _train(network, config, config.encoder)
        figures = _figures(network.eval(), config)
    else:
        figures = train_streamed(cast(MaskedAutoencoder, network), config, folder)
    save_json(folder / CONFIG, configuration.to_json(config))
    save_json(folder / ENCODER_METRICS, figures)
    save_tensors(folder / ENCODER_WEIGHTS, network.state_dict())
    return figures


def _train_autoencoder(network: Autoencoder, config: RunConfig, settings: AutoencoderConfig) -> None:
    source = configuration.build_source(config)

    def draw(count: int, rng: torch.Generator) -> torch.Tensor:
        if source.num_classes is None:
            return source.draw(None, count, rng)[0]
        classes = source.num_classes
        # Of more classes than images every batch has others.
        some = torch.randperm(classes, generator=rng, device=rng.device)[:count] if classes > count else torch.arange(classes)
        return source.draw(some.to(rng.device), -(-count // len(some)), rng).flatten(0, 1)[:count]

    given = {name: getattr(settings, name) for name in ("steps", "batch_size", "learning_rate", "noise")}
    steps = train_autoencoder(network, draw, seed=config.seed, **given)
    show_steps(steps, settings.steps, settings.batch_size, what="encoder")


def _draw_reconstruction(network: Autoencoder, config: RunConfig, folder: Path) -> None:
    data = cast(ImagesData, config.data)
    network.eval()
    images = configuration.load_split(data, "test").images[:_RECONSTRUCTED]
    again = in_batches(lambda part: network(part.to(config.device))[0], images)
    title = f"{data.name}: {len(images)} test images through a code of {network.code_dim} numbers"
    draw_reconstruction(folder, title=title, images=configuration.to_signed(images), reconstructed=again)


def _train(network: Network, config: RunConfig | EncoderRunConfig, settings: ResNetConfig | MAEConfig) -> None:
    """Train by the classes of the images, by two views of each, or by what is hidden of them."""
    images = configuration.load_labelled(cast(ImagesData, config.data), "train")
    given = {name: getattr(settings, name) for name in ("steps", "batch_size", "learning_rate")} | {"seed": config.seed}
    if isinstance(settings, MAEConfig):
        training = {field.name: getattr(settings, field.name) for field in fields(MaskedTraining)}
        steps = train_mae(cast(MaskedAutoencoder, network), images.images, images.labels, seed=config.seed, **training)
    elif isinstance(settings, SimCLRConfig):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            simclr = SimCLR(network, features=cast(ResNet, network).feature_dim, temperature=settings.temperature)
        steps = train_simclr(simclr.to(config.device), images.images, views=settings.views, **given)
    else:
        varied = Augmentation(shift=0, rotation=0.0, scale=0.0, views=settings.views)
        steps = train_supervised(network, images.images, cast(torch.Tensor, images.labels), augmentation=varied, **given)
    show_steps(steps, settings.steps, settings.batch_size, what="encoder")


def _figures(network: Network, config: RunConfig | EncoderRunConfig) -> dict[str, int | float]:
    """Return the numbers of images and, where there are classes, how many of the test images are named right.

    That is by a linear classifier on the features, fitted to training images, and by the logits of a network that learnt classes.
    """
    train, test = (configuration.load_labelled(cast(ImagesData, config.data), split) for split in ("train", "test"))
    figures: dict[str, int | float] = {"num_train_images": len(train.images), "num_test_images": len(test.images)}
    if train.labels is None or test.labels is None:
        return figures
    some = shuffled_indices(len(train.images), 0, min(_PROBED, len(train.images)), config.seed)
    if len(train.labels[some].unique()) < 2:
        return figures
    embed = partial(in_batches, lambda part: network.embed(part.to(config.device)))
    accuracy = linear_probe(embed(train.images[some]), train.labels[some], embed(test.images), test.labels)
    figures |= {"num_probe_images": len(some), "linear_probe_accuracy": accuracy}
    if isinstance(network, ResNet) and network.num_classes:
        figures["test_accuracy"] = accuracy_of(network, test.images, test.labels)
    return figures
