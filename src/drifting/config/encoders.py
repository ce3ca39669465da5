"""Encoders that were trained before: where their weights are, what settings these bring, how masked auto-encoders are built."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.checkpoint import load_json, load_state_dict, load_weights
from drifting.config.networks import Encoder, MAEConfig, MAEFeaturesConfig, ResNetConfig, TrainedEncoder
from drifting.config.run import AnyConfig, EncoderRunConfig, RunConfig
from drifting.encoders.base import FeatureEncoder, Features, compose, identity
from drifting.encoders.mae import MAEFeatures, MaskedAutoencoder
from drifting.encoders.pretrained import CONVNEXT_FEATURES, load_pretrained
from drifting.errors import InputError
from drifting.hub.artifact import METADATA, load_encoder
from drifting.hub.download import PREFIX, artifact_folder

Config = TypeVar("Config", bound=AnyConfig)
# A fifth of the weights.
_DECODER = ("bridge", "climb", "head")


# What `runs.folder` calls the files of a trained encoder.
_SETTINGS, _WEIGHTS = "config.json", "encoder.safetensors"


def with_weights(encoder: Encoder, weights: str) -> tuple[Encoder, tuple[int, int, int] | None]:
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
        return dataclasses.replace(encoder, weights=str(file)), None
    saved = _saved_run(settings)
    shape = getattr(saved.data, "image_shape", None)
    if isinstance(saved.encoder, MAEConfig):
        sizes = {name: getattr(saved.encoder, name) for name in ("width", "patch", "depths")}
        own = encoder if isinstance(encoder, MAEFeaturesConfig) else MAEFeaturesConfig()
        return dataclasses.replace(own, weights=str(file), **sizes), shape
    if not isinstance(saved.encoder, TrainedEncoder):
        raise InputError(f"encoder_weights is '{weights}', a run that trains no encoder: name the folder of a trained encoder")
    return dataclasses.replace(saved.encoder, weights=str(file)), shape


def check_images(config: AnyConfig) -> None:
    """Raise InputError unless a trained encoder was trained on images of the shape that the run's have, as far as that is known."""
    if not isinstance(config, RunConfig):
        return
    weights = getattr(config.encoder, "weights", None)
    settings = Path(weights or "").parent / _SETTINGS
    if weights is None or Path(weights).name != _WEIGHTS or not settings.is_file():
        return
    trained, own = (getattr(run.data, "image_shape", None) for run in (_saved_run(settings), config))
    if trained is None or own is None:
        return
    # The maps of a ResNet have any size.
    fixed = 1 if isinstance(config.encoder, ResNetConfig) else 3
    if tuple(trained)[:fixed] != tuple(own)[:fixed]:
        shapes = [" x ".join(map(str, shape)) for shape in (trained, own)]
        mend = "train another by drifting train-encoder, or convert the images with --image-size and --channels"
        raise InputError(f"encoder_weights is '{weights}', an encoder of {shapes[0]} images, but the data are {shapes[1]}: {mend}")


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
    if not isinstance(config, RunConfig) or not isinstance(config.encoder, MAEFeaturesConfig):
        return config
    encoder = config.encoder
    weights = encoder.weights
    if weights is None:
        name = f"{'latent' if encoder.patch == 1 else 'pixel'}-{encoder.width}"
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


def load_mae(data: Any, encoder: MAEFeaturesConfig) -> MaskedAutoencoder:
    """Return a trained masked auto-encoder for data of a shape, without its decoder and logits, which features do not need.

    Raises:
        InputError: if the data are no images, or the weights are missing or of another network.
    """
    shape = getattr(data, "image_shape", None)
    if shape is None or encoder.weights is None:
        missing = "the data are no images of a known shape" if shape is None else "its weights are not named"
        raise InputError(f"encoder is a masked auto-encoder, but {missing}: pass both")
    # Without initial values, which of the largest take longer to draw than to read.
    with torch.device("meta"):
        network = MaskedAutoencoder(shape, width=encoder.width, patch=encoder.patch, depths=encoder.depths)
    for part in _DECODER:
        delattr(network, part)
    place = artifact_folder(encoder.weights)
    weights = load_encoder(place).autoencoder.state_dict() if place.is_dir() else load_state_dict(place)
    needed = {name: value for name, value in weights.items() if not name.startswith((*_DECODER, "classify"))}
    load_weights(network.to_empty(device="cpu"), needed, encoder.weights)
    return network


def recipe_features(settings: MAEFeaturesConfig, network: MaskedAutoencoder, device: str) -> FeatureEncoder:
    """Return the features of a trained masked auto-encoder, the sample itself as "global" and, if asked for, ConvNeXt-V2's."""
    parts: dict[str, FeatureEncoder] = {"": _with_sample(MAEFeatures(network, settings.features, every=settings.every))}
    if settings.convnext is not None:
        shape = network.image_shape
        convnext = load_pretrained(settings.convnext, CONVNEXT_FEATURES, image_shape=shape, resize=settings.resize)
        parts["convnext"] = convnext.to(device)
    return compose(parts)


def _with_sample(encoder: FeatureEncoder) -> FeatureEncoder:
    def encode(samples: Float[Tensor, "b *sample"]) -> Features:
        return {**encoder(samples), "global": identity(samples)["sample"]}

    return encode
