"""Feature encoders: networks whose features say in which space samples drift.

A configuration names its encoder by a class of this package whose name ends in "Config".
"""

from drifting.encoders.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderFeatures
from drifting.encoders.base import EncoderConfig, FeatureEncoder, Features, Frozen, PixelsConfig, compose, identity
from drifting.encoders.mae import MAEConfig, MaskedAutoencoder, MaskedTraining
from drifting.encoders.mae_features import MAEFeatures, MAEFeaturesConfig
from drifting.encoders.pretrained import PretrainedFeatures, load_pretrained
from drifting.encoders.resnet import ResNet, ResNetConfig, ResNetFeatures
from drifting.encoders.simclr import SimCLR, SimCLRConfig

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderFeatures",
    "EncoderConfig",
    "FeatureEncoder",
    "Features",
    "Frozen",
    "MAEConfig",
    "MAEFeatures",
    "MAEFeaturesConfig",
    "MaskedAutoencoder",
    "MaskedTraining",
    "PixelsConfig",
    "PretrainedFeatures",
    "ResNet",
    "ResNetConfig",
    "ResNetFeatures",
    "SimCLR",
    "SimCLRConfig",
    "compose",
    "identity",
    "load_pretrained",
]
