"""Encoders that were trained before: where their weights are, and what settings these bring."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from drifting.checkpoint import load_json, load_state_dict
from drifting.config.run import AnyConfig, EncoderRunConfig, RunConfig
from drifting.encoders.base import EncoderConfig
from drifting.errors import InputError
from drifting.hub.artifact import METADATA, load_encoder
from drifting.hub.download import PREFIX, artifact_folder

Config = TypeVar("Config", bound=AnyConfig)
# What `runs.folder` calls the files of a trained encoder.
_SETTINGS, _WEIGHTS = "config.json", "encoder.safetensors"


def with_weights(encoder: EncoderConfig, weights: str) -> tuple[EncoderConfig, tuple[int, int, int] | None]:
    """Return the configuration of an encoder that is trained already, and the shape of the images that it knows.

    Weights that `drifting train-encoder` or a generator's run left bring the settings of their network, from the file beside them;
    other files are taken for weights of the network that the encoder has, for images of an unknown shape.

    Args:
        encoder: what it takes the place of.
        weights: the file, or the folder that it lies in.

    Raises:
        InputError: if there is no such file, or what lies beside it is not the configuration of an encoder.
    """
    place = Path(weights).expanduser().resolve()
    file = place / _WEIGHTS if place.is_dir() else place
    if not file.is_file():
        kinds = f"the folder of a trained encoder, its {_WEIGHTS}, or another file of weights"
        raise InputError(f"encoder_weights is '{weights}', where there are none: name {kinds}")
    settings = file.parent / _SETTINGS
    if file.name != _WEIGHTS or not settings.is_file():
        return dataclasses.replace(encoder, weights=str(file)), None  # pyright: ignore[reportCallIssue]
    saved = _saved_run(settings)
    shape = getattr(saved.data, "image_shape", None)
    try:
        return saved.encoder.as_trained(str(file), encoder), shape
    except InputError as error:
        raise InputError(f"encoder_weights is '{weights}', {error}: name the folder of a trained encoder") from None


def check_images(config: AnyConfig) -> None:
    """Raise InputError unless a trained encoder was trained on images of the shape that the run's have, as far as that is known."""
    if not isinstance(config, RunConfig):
        return
    weights = config.encoder.weights_file
    settings = Path(weights or "").parent / _SETTINGS
    if weights is None or Path(weights).name != _WEIGHTS or not settings.is_file():
        return
    trained, own = (getattr(run.data, "image_shape", None) for run in (_saved_run(settings), config))
    if trained is None or own is None:
        return
    fixed = 1 if config.encoder.any_size else 3
    if tuple(trained)[:fixed] != tuple(own)[:fixed]:
        shapes = [" x ".join(map(str, shape)) for shape in (trained, own)]
        fix = "train another by drifting train-encoder, or convert the images with --image-size and --channels"
        raise InputError(f"encoder_weights is '{weights}', an encoder of {shapes[0]} images, but the data are {shapes[1]}: {fix}")


def _saved_run(settings: Path) -> RunConfig | EncoderRunConfig:
    """Return the configuration of a run that trained an encoder, or raise InputError."""
    from drifting.config.json_io import from_json  # which knows all configurations, and so those that this file builds

    saved = from_json(load_json(settings), str(settings))
    if not isinstance(saved, RunConfig | EncoderRunConfig):
        raise InputError(f"encoder_weights lie beside '{settings}', which is of no encoder: name the folder of a trained encoder")
    return saved


def find_weights(config: Config) -> Config:
    """Return the configuration with the weights of an encoder that is trained before: the authors', where none are named.

    Raises:
        InputError: if they are not there, or cannot be downloaded.
    """
    encoder = getattr(config, "encoder", None)
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


def read_weights(origin: str) -> Mapping[str, Tensor]:
    """Return the weights of an encoder's network: of a file, or of the authors' artifact, which may be named hub:NAME."""
    place = artifact_folder(origin)
    return load_encoder(place).autoencoder.state_dict() if place.is_dir() else load_state_dict(place)
