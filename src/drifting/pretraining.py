"""Encoders that are trained before a generator, into the folder of its run: their weights, their figures, their pictures."""

from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from drifting import config as configuration
from drifting.checkpoint import load_tensors, load_weights, save_json, save_tensors
from drifting.config import AutoencoderConfig, ClassifierConfig, ImagesData, ResNetConfig, RunConfig, SimCLRConfig
from drifting.data.shuffle import shuffled_indices
from drifting.encoders.augmentation import Views
from drifting.encoders.autoencoder import Autoencoder
from drifting.encoders.resnet import ResNet
from drifting.encoders.simclr import SimCLR
from drifting.evaluation.images import in_batches
from drifting.metrics.linear_probe import linear_probe
from drifting.plotting import draw_reconstruction
from drifting.run_folder import ENCODER_METRICS, ENCODER_WEIGHTS
from drifting.training.encoder import Augmentation, train_autoencoder, train_supervised
from drifting.training.progress import show_steps
from drifting.training.self_supervised import train_simclr

_RECONSTRUCTED = 64
# Training images that a linear probe is fitted on, at most.
_PROBED = 10_000


def check_networks(config: RunConfig | ClassifierConfig) -> None:
    """Raise InputError if a network cannot be built, or lacks the images it needs, while nothing is written yet."""
    network = configuration.build_network(config)
    if isinstance(config, RunConfig):
        configuration.build_encoder(config, network)
    if network is not None and isinstance(config.data, ImagesData):
        configuration.load_split(config.data, "test")


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
                _train_resnet(cast(ResNet, network), config, settings)
            save_json(folder / ENCODER_METRICS, _probe(cast(ResNet, network).eval(), config))
    network.eval()
    save_tensors(weights, network.state_dict())
    return network


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


def _train_resnet(network: ResNet, config: RunConfig, settings: ResNetConfig) -> None:
    """Train by the classes of the images or, for SimCLR, by two views of each."""
    images = configuration.load_labelled(cast(ImagesData, config.data), "train")
    given = {name: getattr(settings, name) for name in ("steps", "batch_size", "learning_rate")} | {"seed": config.seed}
    if isinstance(settings, SimCLRConfig):
        views = Views(**{name: getattr(settings, name) for name in ("crop", "flip", "jitter", "grey")})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            simclr = SimCLR(network, features=network.feature_dim, temperature=settings.temperature).to(config.device)
        steps = train_simclr(simclr, images.images, views=views, **given)
    else:
        views = Views(crop=settings.crop, flip=settings.flip, jitter=0, grey=0)
        varied = Augmentation(shift=0, rotation=0, scale=0, views=views)
        steps = train_supervised(network, images.images, cast(torch.Tensor, images.labels), augmentation=varied, **given)
    show_steps(steps, settings.steps, settings.batch_size, what="encoder")


def _probe(network: ResNet, config: RunConfig) -> dict[str, float]:
    """Return how much of the classes a linear classifier finds in the features of a network; nothing where there are none."""
    train, test = (configuration.load_labelled(cast(ImagesData, config.data), split) for split in ("train", "test"))
    if train.labels is None or test.labels is None:
        return {}
    some = shuffled_indices(len(train.images), 0, min(_PROBED, len(train.images)), config.seed)
    if len(train.labels[some].unique()) < 2:
        return {}
    embed = partial(in_batches, lambda part: network.embed(part.to(config.device)).cpu())
    accuracy = linear_probe(embed(train.images[some]), train.labels[some], embed(test.images), test.labels)
    return {"linear_probe_accuracy": accuracy, "num_train_images": len(some), "num_test_images": len(test.images)}
