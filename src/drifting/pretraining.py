"""Encoders that are trained before a generator, into the folder of its run, or on their own: weights, figures, pictures."""

import shutil
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from drifting import config as configuration
from drifting._progress import tell_stage
from drifting._seeds import initial_weights, stream_seed
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
    TrainedEncoder,
)
from drifting.data.shuffle import shuffled_indices
from drifting.distributed import join
from drifting.encoders.autoencoder import Autoencoder
from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.resnet import ResNet
from drifting.encoders.simclr import SimCLR
from drifting.evaluation.images import accuracy_of, in_batches
from drifting.masked_pretraining import train_streamed
from drifting.metrics.linear_probe import linear_probe
from drifting.network_run import Saving, follow
from drifting.plotting import draw_reconstruction
from drifting.run_folder import CONFIG, ENCODER_CHECKPOINTS, ENCODER_METRICS, ENCODER_WEIGHTS
from drifting.training.encoder import Augmentation, train_autoencoder, train_supervised
from drifting.training.interruption import command_to_go_on
from drifting.training.masked import MaskedTraining
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

    Its training is saved now and then in the folder, and taken up again from there.

    Raises:
        InputError: if the weights in the folder do not fit the configuration.
        DivergenceError: if its loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop in its training; the state is saved.
    """
    network, settings = configuration.build_network(config), config.encoder
    if network is None:
        return None
    weights = folder / ENCODER_WEIGHTS
    if weights.exists():
        load_weights(network, load_tensors(weights), str(weights))
        return network.to(config.device)
    network.to(config.device)
    if config.trains_encoder:
        _train_stage(network, config, folder)
    match settings:
        case AutoencoderConfig():
            _draw_reconstruction(cast(Autoencoder, network), config, folder)
        case ResNetConfig():
            save_json(folder / ENCODER_METRICS, _figures(cast(ResNet, network).eval(), config))
    network.eval()
    save_tensors(weights, network.state_dict())
    shutil.rmtree(folder / ENCODER_CHECKPOINTS, ignore_errors=True)
    return network


def train_encoder(config: EncoderRunConfig, folder: Path) -> dict[str, int | float]:
    """Train an encoder into a folder of its own, from its newest checkpoint if there is one, and return its figures.

    Raises:
        DivergenceError: if its loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    network = cast(Network, configuration.build_network(config)).to(config.device)
    facts = configuration.to_json(config)
    saving = Saving(folder=folder, facts=facts, command=command_of(config, folder), every=config.checkpoint_every, keep=config.keep)
    if isinstance(config.data, ImagesData):
        _train(network, config, config.encoder, saving)
        figures = _figures(network.eval(), config)
    else:
        figures = train_streamed(cast(MaskedAutoencoder, network), config, saving)
    save_json(folder / CONFIG, facts)
    save_json(folder / ENCODER_METRICS, figures)
    save_tensors(folder / ENCODER_WEIGHTS, network.state_dict())
    return figures


def command_of(config: EncoderRunConfig, folder: Path) -> str:
    """Return the command by which the training of an encoder goes on."""
    preset, verb = (config.kind, "train-encoder") if config.preset == "train-encoder" else (config.preset, "train")
    return command_to_go_on(preset, folder, verb=verb)


def _train_stage(network: nn.Module, config: RunConfig, folder: Path) -> None:
    """Train the encoder of a generator's run, the first of its two stages."""
    settings = cast(TrainedEncoder, config.encoder)
    tell_stage(1, 2, "auto-encoder" if isinstance(settings, AutoencoderConfig) else "encoder", settings.steps)
    saving = Saving(
        folder=folder,
        facts=configuration.to_json(config),
        command=command_to_go_on(config.preset, folder, join().size),
        every=config.checkpoint_every,
        keep=1,
        checkpoints=ENCODER_CHECKPOINTS,
    )
    _train(network, config, settings, saving)


def _draw_reconstruction(network: Autoencoder, config: RunConfig, folder: Path) -> None:
    data = cast(ImagesData, config.data)
    network.eval()
    test = configuration.load_split(data, "test").images
    # In the order of the files there would be one class alone.
    images = test[shuffled_indices(len(test), 0, min(_RECONSTRUCTED, len(test)), stream_seed(config.seed, "reconstruction"))]
    again = in_batches(lambda part: network(part.to(config.device))[0], images)
    title = f"{data.name}: {len(images)} test images through a code of {network.code_dim} numbers"
    draw_reconstruction(folder, title=title, images=configuration.to_signed(images), reconstructed=again)


def _train(
    network: nn.Module,
    config: RunConfig | EncoderRunConfig,
    settings: AutoencoderConfig | ResNetConfig | MAEConfig,
    saving: Saving,
) -> None:
    """Train by the classes of the images, by two views of each, by what is hidden of them, or by what a code keeps of them."""
    load = configuration.load_split if isinstance(settings, AutoencoderConfig) else configuration.load_labelled
    images = load(cast(ImagesData, config.data), "train")
    given = {name: getattr(settings, name) for name in ("steps", "batch_size", "learning_rate")} | {"seed": config.seed}
    if isinstance(settings, AutoencoderConfig):
        training = train_autoencoder(network, images.images, noise=settings.noise, **given)
    elif isinstance(settings, MAEConfig):
        masked = {field.name: getattr(settings, field.name) for field in fields(MaskedTraining)}
        training = train_mae(cast(MaskedAutoencoder, network), images.images, images.labels, seed=config.seed, **masked)
    elif isinstance(settings, SimCLRConfig):
        with initial_weights(config.seed, "projection"):
            simclr = SimCLR(network, features=cast(ResNet, network).feature_dim, temperature=settings.temperature)
        training = train_simclr(simclr.to(config.device), images.images, views=settings.views, **given)
    else:
        varied = Augmentation(shift=0, rotation=0.0, scale=0.0, views=settings.views)
        training = train_supervised(network, images.images, cast(torch.Tensor, images.labels), augmentation=varied, **given)
    follow(training, saving, what="encoder", batch_size=settings.batch_size)


def _figures(network: Network, config: RunConfig | EncoderRunConfig) -> dict[str, int | float]:
    """Return the numbers of images and, where there are classes, how many of the test images are named right.

    That is by a linear classifier on the features, fitted to training images, and by the logits of a network that learnt classes.
    """
    train, test = (configuration.load_labelled(cast(ImagesData, config.data), split) for split in ("train", "test"))
    figures: dict[str, int | float] = {"num_train_images": len(train.images), "num_test_images": len(test.images)}
    if train.labels is None or test.labels is None:
        return figures
    some = shuffled_indices(len(train.images), 0, min(_PROBED, len(train.images)), stream_seed(config.seed, "linear probe"))
    if len(train.labels[some].unique()) < 2:
        return figures
    embed = partial(in_batches, lambda part: network.embed(part.to(config.device)))
    accuracy = linear_probe(embed(train.images[some]), train.labels[some], embed(test.images), test.labels)
    figures |= {"num_probe_images": len(some), "linear_probe_accuracy": accuracy}
    if isinstance(network, ResNet) and network.num_classes:
        figures["test_accuracy"] = accuracy_of(network, test.images, test.labels)
    return figures
