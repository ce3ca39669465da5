"""Feature encoders: networks whose features are the space in which samples drift.

A configuration stores its encoder as the name of a class of this package that ends in "Config".
"""

from drifting.encoders.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderFeatures
from drifting.encoders.base import EncoderConfig, FeatureEncoder, Features, Frozen, Identity, PixelsConfig, compose, identity
from drifting.encoders.learned import LearnedConfig, LearnedFeatures
from drifting.encoders.mae import MaskedAutoencoder, MaskedTraining
from drifting.encoders.mae_features import MAEConfig, MAEFeatures, MAEFeaturesConfig
from drifting.encoders.pretrained import PretrainedFeatures, load_pretrained
from drifting.encoders.resnet import ResNet, ResNetConfig, ResNetFeatures
from drifting.encoders.simclr import SimCLR, SimCLRConfig, SimCLRFeatures
from drifting.encoders.tiles import TileFeatures, TilesConfig

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderFeatures",
    "EncoderConfig",
    "FeatureEncoder",
    "Features",
    "Frozen",
    "Identity",
    "LearnedConfig",
    "LearnedFeatures",
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
    "SimCLRFeatures",
    "TileFeatures",
    "TilesConfig",
    "compose",
    "identity",
    "load_pretrained",
]
