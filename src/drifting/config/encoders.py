"""How the feature spaces of the ImageNet recipes are built: a masked auto-encoder, trained before, and what stands beside it."""

import dataclasses
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.checkpoint import load_state_dict, load_weights
from drifting.config.networks import MAEFeaturesConfig
from drifting.config.schema import AnyConfig, RunConfig
from drifting.encoders.base import FeatureEncoder, Features, compose
from drifting.encoders.identity import identity
from drifting.encoders.mae import MAEFeatures, MaskedAutoencoder
from drifting.encoders.pretrained import CONVNEXT_FEATURES, load_pretrained
from drifting.errors import InputError
from drifting.official.artifact import METADATA, load_encoder
from drifting.official.hub import PREFIX, artifact_folder

Config = TypeVar("Config", bound=AnyConfig)
# A fifth of the weights.
_DECODER = ("bridge", "climb", "head")


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
