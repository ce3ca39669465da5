"""The parts of a run, assembled once and in this order: weights and data, networks, real samples.

If the data of a recipe on latents are images, their latents are written first, once, beside the folder of the run.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from drifting._checks import check_device
from drifting._files import check_writable
from drifting._progress import print_lines, show_encoding
from drifting.config import AnyConfig, RunConfig
from drifting.data import ImagesData, Source
from drifting.data.latents import INDEX, open_vae
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.pixels import to_signed
from drifting.data.vae import DEFAULT
from drifting.distributed import Processes, join
from drifting.encoders.base import FeatureEncoder, identity
from drifting.errors import InputError
from drifting.hub.artifact import METADATA, PREFIX, artifact_folder
from drifting.presets.encoders import trained_by
from drifting.runs.folder import check_room
from drifting.training.positives import FeatureCache, Positives
from drifting.training.step import computed_in

Config = TypeVar("Config", bound=AnyConfig)


def with_network(config: Config, folder: Path, processes: Processes, *, overwrite: bool) -> tuple[Config, nn.Module | None]:
    """Return the complete configuration and the network that it builds, without writing into the folder.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        processes: the processes that train it.
        overwrite: whether a run in the folder would be deleted.

    Raises:
        InputError: if a part cannot be found, built or loaded, or lacks the images it needs.
    """
    config, network = with_latents(find_weights(config), folder, processes, overwrite=overwrite)
    config = _with_data(config)
    network = config.build_network() if network is None else network
    if network is not None and config.data.loads_images:
        # The labels only measure an encoder that learns without them.
        only_probed = config.finds_labels and not config.learns_classes
        cast(ImagesData, config.data).load("test", labeled=only_probed)
    return config, network


def with_latents(config: Config, folder: Path, processes: Processes, *, overwrite: bool) -> tuple[Config, nn.Module | None]:
    """Return a configuration on cached latents; those of a folder of images are written to FOLDER/../IMAGES-latents first.

    Runs beside each other, such as an encoder and the generator that drifts in its features, share it. Stopped on the way it goes
    on, when the run is started again.

    Args:
        config: configuration of the run, with the weights of its encoder.
        folder: folder of the run.
        processes: the processes that train it; the first one writes.
        overwrite: whether a run in the folder would be deleted.

    Returns:
        The configuration, and the trained network of its encoder, if it had to be looked at before hours of work.

    Raises:
        InputError: if there is a run in the folder, or its encoder does not fit; else as `latents_writer.write_latents` does.
    """
    data: Any = config.data
    if not data.latent or data.files is not None or data.path is None:
        return config, None
    images = Path(data.path).expanduser().resolve()
    if not images.is_dir() or (images / INDEX).exists():
        return config, None
    check_room(folder, overwrite=overwrite, fix="pass --resume or --overwrite")
    check_writable(folder, "save_dir")
    cache, network = folder.resolve().parent / f"{images.name}-latents", None
    settings, encoder = CacheSettings(device=config.device), getattr(config, "encoder", None)
    with processes.main_process_first():
        if processes.is_main_process:
            vae, _ = open_vae(data.vae or DEFAULT)
            if encoder is not None and encoder.weights_file is not None:
                shape = vae.latent_shape(settings.image_size)
                network = dataclasses.replace(config, data=dataclasses.replace(data, image_shape=shape)).build_network()
            print(f"{images} holds images: their latents go to {cache} first", flush=True)
            write_latents(images, vae, cache, settings)
    return dataclasses.replace(config, data=dataclasses.replace(data, path=str(cache))), network


def resolve(config: Config) -> Config:
    """Return the complete and checked configuration, with all facts about the data."""
    return _with_data(find_weights(config))


def _with_data(config: Config) -> Config:
    """Return the configuration with all facts about the data; the weights of its encoder are known already."""
    check_device(config.device)
    data = config.data.find(labeled=config.finds_labels)
    if data != config.data:
        config = dataclasses.replace(config, data=data)
        _check_images(config)
    return config


def find_weights(config: Config) -> Config:
    """Return the configuration with the weights of its pretrained encoder: by default those of the authors.

    Raises:
        InputError: if they are not there, or cannot be downloaded.
    """
    encoder: Any = getattr(config, "encoder", None)
    if encoder is None or encoder.published is None:
        return config
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
        raise InputError(f"encoder_weights is '{weights}', which is no file: name {kinds}")
    return config


def _check_images(config: AnyConfig) -> None:
    """Raise InputError if a pretrained encoder is known to be trained on images of another shape than those of the run."""
    encoder: Any = getattr(config, "encoder", None)
    weights = None if encoder is None else encoder.weights_file
    saved = None if weights is None else trained_by(weights)
    if encoder is None or saved is None:
        return
    trained, own = (getattr(run.data, "image_shape", None) for run in (saved, config))
    if trained is None or own is None:
        return
    fixed = 1 if encoder.any_size else 3
    if tuple(trained)[:fixed] != tuple(own)[:fixed]:
        shapes = [" x ".join(map(str, shape)) for shape in (trained, own)]
        fix = "train another by drifting train-encoder, or convert the images with --image-size and --channels"
        raise InputError(f"encoder_weights is '{weights}', an encoder of {shapes[0]} images, but the data are {shapes[1]}: {fix}")


def build_encoder(config: RunConfig, network: nn.Module | None = None) -> FeatureEncoder:
    """Return the feature encoder of a run, around its trained network if it has one."""
    encoder = identity if network is None else config.encoder.build_features(network, config.device)
    encoder = torch.compile(encoder) if config.schedule.compile else encoder
    return computed_in(config.schedule.precision, encoder, config.device)


def build_positives(
    config: RunConfig, encoder: FeatureEncoder, folder: Path | None = None, *, source: Source | None = None
) -> Positives:
    """Return the source of features of real samples: from the whole data set or a bank, encoded anew or from a cache.

    Args:
        config: configuration of the run.
        encoder: feature encoder of the run.
        folder: folder for a cache of features that is too large for memory.
        source: source of real samples, used unless they come from a bank or a cache; None to make it here.
    """
    cache, data, device = None, config.data, config.device
    if config.cache_features and config.encoder.objective is not None and data.loads_images:
        images = cast(ImagesData, data).load("train").images
        with show_encoding(len(images), quiet=not join().is_main_process) as progress:
            prepare = functools.partial(_prepare_on, device)
            cache = FeatureCache(encoder, images, prepare=prepare, folder=folder, on_progress=progress.advance)
    if source is None or config.bank is not None or cache is not None:
        tell = print_lines("reading real samples into the memory bank")
        source = data.source(config.seed, config.bank, device=device, indexed=cache is not None, tell=tell)
    schedule = config.schedule
    return Positives(source, encoder, cache, batch_size=schedule.microbatch_size, later=schedule.labels_per_microbatch is not None)


def _prepare_on(device: str, images: Tensor) -> Tensor:
    return to_signed(images.to(device))
