"""Training of the networks that are not generators: feature encoders and classifiers."""

from drifting.pretraining.loop import HeldRows, NetworkStep, NetworkTraining, batches_of, read_ahead
from drifting.pretraining.objectives import (
    Augmentation,
    train_autoencoder,
    train_masked,
    train_network,
    train_simclr,
    train_supervised,
)

__all__ = [
    "Augmentation",
    "HeldRows",
    "NetworkStep",
    "NetworkTraining",
    "batches_of",
    "read_ahead",
    "train_autoencoder",
    "train_masked",
    "train_network",
    "train_simclr",
    "train_supervised",
]
