"""Training of encoders and classifiers into a folder, with progress, checkpoints, figures and pictures.

An encoder is trained before a generator, into the folder of its run, or on its own; a classifier always on its own. Masked
auto-encoders can be trained on images or latents that do not fit into memory and are read in batches from the disk.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from drifting import config as configuration
from drifting._json import save_json
from drifting._progress import TrainingProgress, print_stage
from drifting._torch import stream_seed
from drifting.checkpoint import checkpoints, load_checkpoint, load_tensors, load_weights, save_checkpoint, save_tensors, steps_done
from drifting.config import AnyConfig, ClassifierConfig, EncoderRunConfig, RunConfig
from drifting.data import ImagesData, StreamedData
from drifting.data.pixels import to_signed
from drifting.data.sources import shuffled_indices
from drifting.data.streamed import Rows
from drifting.distributed import join
from drifting.encoders.autoencoder import Autoencoder
from drifting.encoders.mae import MaskedAutoencoder, mae_loss, random_mask
from drifting.encoders.resnet import ResNet
from drifting.errors import InputError
from drifting.evaluation.extractors import (
    CLASSIFIER_WEIGHTS,
    DIGESTS,
    TRAINED_ON,
    Classifier,
    accuracy_of,
    in_batches,
    linear_probe,
)
from drifting.evaluation.statistics import digests, images_in_shares
from drifting.hub.artifact import METADATA, PREFIX, artifact_folder
from drifting.plotting import draw_reconstruction
from drifting.pretraining import HeldRows, NetworkTraining, batches_of, read_ahead, train_network, train_supervised
from drifting.runs.folder import CONFIG, ENCODER_CHECKPOINTS, ENCODER_METRICS, ENCODER_WEIGHTS, METRICS, command_to_go_on
from drifting.runs.run import TrainedNetwork
from drifting.training.loop import Interrupted, polite_stop
from drifting.training.recorder import CHECKPOINTS

Config = TypeVar("Config", bound=AnyConfig)

# Number of steps between two readings of a loss, which wait for the device.
_READ_EVERY = 50


def follow(
    training: NetworkTraining,
    config: AnyConfig,
    folder: Path,
    *,
    what: str,
    batch_size: int,
    every: int,
    keep: int,
    kept_in: str = CHECKPOINTS,
) -> None:
    """Run a training from its newest checkpoint, if there is one, to its last step; save it at intervals and when it is stopped.

    The configuration is written with the first checkpoint, so that a training that fails before leaves nothing behind.

    Args:
        training: the training; its state is advanced in place.
        config: configuration of the run.
        folder: folder of the run.
        what: name of the network in the progress bar.
        batch_size: number of images in a step.
        every: number of steps between checkpoints.
        keep: number of checkpoints to keep.
        kept_in: name of the folder of checkpoints.

    Raises:
        InputError: if a checkpoint is damaged, or of another network or beyond the last step.
        DivergenceError: if the loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    facts, state = configuration.to_json(config), training.state
    for newest in checkpoints(folder / kept_in)[-1:]:
        done = steps_done(newest, training.steps)
        state.restore(load_checkpoint(newest)[0], done, str(newest))
    with TrainingProgress(training.steps, state.step, batch_size, what=what) as progress, polite_stop() as stop:
        for step in training:
            last = step.number == training.steps
            progress.advance(step.number, float(step.loss) if last or step.number % _READ_EVERY == 0 else None)
            if stop or last or step.number % every == 0:
                state.check_faults()
                save_json(folder / CONFIG, facts)
                save_checkpoint(folder / kept_in, step.number, state.tensors(), facts, keep=keep)
            # Also after the last step: what follows, such as a linear probe, may take long.
            if stop:
                raise Interrupted(step.number, training.steps, command_to_go_on(config, folder, join().size))


_RECONSTRUCTED = 64

# Largest number of training images that a linear probe is fitted to.
_PROBED = 10_000
Network = ResNet | MaskedAutoencoder


def prepare_encoder(config: RunConfig, folder: Path, network: Any) -> Any:
    """Return the encoder network of a run on its device, with weights from the folder, or trained into it.

    The training is saved in the folder at intervals and continues from there.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        network: network that the configuration built; None for an encoder without one.

    Raises:
        InputError: if the weights in the folder do not fit the configuration.
        DivergenceError: if its loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop in its training; the state is saved.
    """
    if network is None:
        return None
    if config.encoder.learns:  # its weights are a part of the state of the training
        return network.to(config.device)
    weights, settings = folder / ENCODER_WEIGHTS, cast(Any, config.encoder)
    if weights.exists():
        load_weights(network, load_tensors(weights), str(weights))
        return network.to(config.device)
    network.to(config.device)
    if config.trains_encoder:
        print_stage(1, 2, "auto-encoder" if settings.objective == "reconstruction" else "encoder", settings.steps)
        _train(network, config, folder, keep=1, kept_in=ENCODER_CHECKPOINTS)
    if settings.objective == "reconstruction":
        _draw_reconstruction(network, config, folder)
    elif settings.objective is not None:
        save_json(folder / ENCODER_METRICS, _figures(network.eval(), config))
    network.eval()
    save_tensors(weights, network.state_dict())
    shutil.rmtree(folder / ENCODER_CHECKPOINTS, ignore_errors=True)
    return network


def train_alone(config: ClassifierConfig | EncoderRunConfig, network: Any, folder: Path) -> TrainedNetwork:
    """Train the network of an encoder or a classifier into a folder of its own, from its newest checkpoint if there is one.

    Raises:
        DivergenceError: if its loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    return _TRAINERS[config.noun](config, network.to(config.device), folder)


def _train_encoder(config: EncoderRunConfig, network: Any, folder: Path) -> TrainedNetwork:
    _train(network, config, folder, keep=config.keep)
    figures = (_figures if config.data.loads_images else _streamed_figures)(network.eval(), config)
    save_json(folder / CONFIG, configuration.to_json(config))
    save_json(folder / ENCODER_METRICS, figures)
    save_tensors(folder / ENCODER_WEIGHTS, network.state_dict())
    shown = {name: value for name, value in figures.items() if name.endswith(("accuracy", "error"))}
    return TrainedNetwork(folder / ENCODER_WEIGHTS, shown)


# One out of this many training images is held out of the training of a classifier.
_HELD_OUT = 5

# Steps between checkpoints of a classifier in training.
_CHECKPOINT_EVERY = 500


def _train_classifier(config: ClassifierConfig, network: Classifier, folder: Path) -> TrainedNetwork:
    """Train a classifier on four images in five and save their digests, because it treats them unlike new images."""
    train = config.data.load("train")
    labels = cast(Tensor, train.labels)
    chosen = ~_held_out(labels)
    training = train_supervised(
        network,
        batches_of(HeldRows(train.images[chosen], labels[chosen]), config.batch_size, config.seed),
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=config.seed,
        augmentation=config.augmentation(),
    )
    follow(training, config, folder, what="classifier", batch_size=config.batch_size, every=_CHECKPOINT_EVERY, keep=1)
    test = config.data.load("test")
    accuracy = accuracy_of(network.eval(), test.images, cast(Tensor, test.labels))
    save_json(folder / CONFIG, configuration.to_json(config))
    counts = {"num_training_images": int(chosen.sum()), "num_test_images": len(test.images)}
    save_json(folder / METRICS, {"test_accuracy": accuracy, **counts})
    save_tensors(folder / TRAINED_ON, {DIGESTS: digests(train.images[chosen])})
    save_tensors(folder / CLASSIFIER_WEIGHTS, network.state_dict())
    return TrainedNetwork(folder / CLASSIFIER_WEIGHTS, {"test_accuracy": accuracy})


def _held_out(labels: Int[Tensor, " s"]) -> Bool[Tensor, " s"]:
    """Return which images are held out, in equal shares of every class; the only image of a class never is."""
    chosen = images_in_shares(labels, labels, len(labels) // _HELD_OUT)
    chosen = chosen[labels.bincount()[labels[chosen]] > 1]
    return torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, chosen, True)


# Kind of network -> function that trains it on its own.
_TRAINERS: Mapping[str, Callable[..., TrainedNetwork]] = {"encoder": _train_encoder, "classifier": _train_classifier}


def _draw_reconstruction(network: Autoencoder, config: RunConfig, folder: Path) -> None:
    data = cast(ImagesData, config.data)
    network.eval()
    test = data.load("test").images
    # Shuffled, because the files are in the order of the classes.
    images = test[shuffled_indices(len(test), 0, min(_RECONSTRUCTED, len(test)), stream_seed(config.seed, "reconstruction"))]
    reconstructed = in_batches(lambda part: network(part.to(config.device))[0], images)
    title = f"{data.name}: {len(images)} test images through a code of {network.code_dim} numbers"
    draw_reconstruction(folder, title=title, images=to_signed(images), reconstructed=reconstructed)


def _train(network: nn.Module, config: RunConfig | EncoderRunConfig, folder: Path, **kept: Any) -> None:
    """Train the network of an encoder with its objective, from its newest checkpoint if there is one."""
    settings: Any = config.encoder
    batches = batches_of(_rows(config), settings.batch_size, config.seed)
    with ThreadPoolExecutor(1) as thread:
        training = train_network(network, settings, read_ahead(batches, settings.steps, thread), seed=config.seed)
        size, every = settings.batch_size, config.checkpoint_every
        follow(training, config, folder, what="encoder", batch_size=size, every=every, **kept)


def _rows(config: RunConfig | EncoderRunConfig) -> Rows:
    """Return the training images of an encoder, in memory or on disk."""
    if not config.data.loads_images:
        return cast(StreamedData, config.data).rows(config.seed)
    images = cast(ImagesData, config.data).load("train", labeled=config.encoder.objective != "reconstruction")
    return HeldRows(images.images, images.labels)


def _figures(network: Network, config: RunConfig | EncoderRunConfig) -> dict[str, int | float]:
    """Return the numbers of images and, for images with classes, accuracies on the test images.

    The accuracies are those of a linear classifier on the features and, if the network learned classes, of its logits.
    """
    train, test = (cast(ImagesData, config.data).load(split, labeled=True) for split in ("train", "test"))
    figures: dict[str, int | float] = {"num_train_images": len(train.images), "num_test_images": len(test.images)}
    if train.labels is None or test.labels is None:
        return figures
    probed = shuffled_indices(len(train.images), 0, min(_PROBED, len(train.images)), stream_seed(config.seed, "linear probe"))
    if len(train.labels[probed].unique()) < 2:
        return figures
    embed = partial(in_batches, lambda part: network.embed(part.to(config.device)))
    accuracy = linear_probe(embed(train.images[probed]), train.labels[probed], embed(test.images), test.labels)
    figures |= {"num_probe_images": len(probed), "linear_probe_accuracy": accuracy}
    if isinstance(network, ResNet) and network.num_classes:
        figures["test_accuracy"] = accuracy_of(network, test.images, test.labels)
    return figures


# Largest number of rows that are measured, and how many at a time.
_MEASURED, _AT_ONCE = 2048, 64


@torch.no_grad()
def _streamed_figures(network: MaskedAutoencoder, config: EncoderRunConfig) -> dict[str, int | float]:
    """Return `num_train_images`, `masked_error` and, for a network that learned classes, `train_accuracy`.

    They are the mean squared error of hidden patches and the share of whole images that are classified correctly, both on training
    images.
    """
    rows = _rows(config)
    rng = torch.Generator(config.device).manual_seed(stream_seed(config.seed, "masks of figures"))
    errors, hidden, hits = list[Tensor](), list[Tensor](), list[Tensor]()
    for images, labels in _measured(rows, config.seed):
        batch = to_signed(images.to(config.device))
        mask = random_mask(len(batch), network.grid, rng)
        errors.append(mae_loss(network(batch, mask)[0], network.patches(batch), mask))
        hidden.append(mask.sum())
        if network.classify is not None and labels is not None:
            hits.append(cast(Tensor, network(batch)[1]).argmax(1).cpu() == labels)
    shares = torch.stack(hidden) / torch.stack(hidden).sum()
    figures = {"num_train_images": len(rows), "masked_error": float((torch.stack(errors) * shares).sum())}
    return figures | ({"train_accuracy": float(torch.cat(hits).double().mean())} if hits else {})


def _measured(rows: Rows, seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield batches of the first rows in the order of the training, each row once."""
    batches = batches_of(rows, _AT_ONCE, seed)
    for number, count in enumerate(torch.arange(min(_MEASURED, len(rows))).split(_AT_ONCE), 1):
        images, labels = batches(number)
        yield images[: len(count)], None if labels is None else labels[: len(count)]


def with_published(config: Config) -> Config:
    """Return the configuration with the weights of its encoder: by default those of the authors.

    Raises:
        InputError: if they are not there, or cannot be downloaded.
    """
    encoder: Any = getattr(config, "encoder", None)
    weights, name = encoder.weights_file, encoder.published
    if weights is None:
        published, ways = f"{PREFIX}mae_{name.replace('-', '_')}", f"`drifting train mae-{name}`, and pass --encoder-weights FILE"
        try:
            artifact_folder(published)
        except InputError as error:
            raise InputError(f"encoder_weights is missing, and the authors' {error}; or train an encoder by {ways}") from None
        return dataclasses.replace(config, encoder=dataclasses.replace(encoder, weights=published))
    place = artifact_folder(weights)
    if not place.is_file() and not (place / METADATA).is_file():
        kinds = "the encoder.safetensors of a trained encoder, a folder of the authors', or hub:NAME"
        raise InputError(f"encoder_weights is '{weights}', which is not a file: name {kinds}")
    return config
