"""Pre-training of masked auto-encoders: for as short as one likes, or as the encoders of the paper were trained.

    loss = (1 - w) mean over masked entries (reconstruction - image)^2  +  w cross_entropy(logits, labels)

The weight w of the classes may be left for the end of the training, where it rises from 0.

Shapes: b images, c channels, h x w pixels.

Source: paper, appendix A.3. The squares and the share that are hidden are those of `encoders.mae.random_mask`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from drifting._checks import check_counts, check_learning_rate, full_precision
from drifting.data.pixels import to_signed
from drifting.encoders.mae import MaskedAutoencoder, mae_loss, random_mask
from drifting.errors import InputError
from drifting.training.network import NetworkState, NetworkTraining, Optimisation, device_of
from drifting.training.precision import PRECISIONS, computing_in

# (number of a step, rng) -> its images, uint8 in 0..255, floats in [-1, 1] or latents; and their labels, where there are any.
Batches = Callable[[int, torch.Generator], tuple[Shaped[Tensor, "b c h w"], Int[Tensor, " b"] | None]]


@dataclass(frozen=True, kw_only=True)
class MaskedTraining(Optimisation):
    """How a masked auto-encoder is trained.

    Attributes:
        steps: number of optimiser steps.
        batch_size: images of a step.
        micro_batch: images of one pass, to bound memory; None for all. It changes nothing else.
        learning_rate: the highest, of AdamW.
        precision: of the network in training, "float32" or "bfloat16"; weights, loss and averages are float32 either way.
        classification_weight: share of the classes in the loss, from 0 to 1.
        classified_steps: last steps in which they have it; None for all.
        classification_warmup: of those, steps over which it rises linearly from 0.
    """

    steps: int = 2000
    batch_size: int = 128
    micro_batch: int | None = None
    learning_rate: float = 1e-3
    precision: str = "float32"
    classification_weight: float = 0.0
    classified_steps: int | None = None
    classification_warmup: int = 0

    def weight_at(self, number: int) -> float:
        """Return the share of the classes in the loss of a step, counted from 1."""
        since = number if self.classified_steps is None else number - (self.steps - self.classified_steps)
        return self.classification_weight * min(1.0, max(0, since) / max(1, self.classification_warmup))


def check_masked_training(settings: MaskedTraining, prefix: str = "") -> None:
    """Raise InputError naming a setting, after the prefix, with which the training could not work."""
    counted = {name: getattr(settings, name) for name in ("steps", "batch_size", "micro_batch")}
    check_counts({f"{prefix}{name}": value for name, value in counted.items() if value is not None})
    check_learning_rate(settings.learning_rate, f"{prefix}learning_rate")
    if settings.precision not in PRECISIONS:
        raise InputError(f"{prefix}precision is '{settings.precision}': pass {' or '.join(PRECISIONS)}")
    if settings.ema_decay is not None and not 0 <= settings.ema_decay < 1:
        raise InputError(f"{prefix}ema_decay is {settings.ema_decay}: pass a number from 0 to below 1")
    if not 0 <= settings.classification_weight <= 1:
        raise InputError(f"{prefix}classification_weight is {settings.classification_weight}: pass a number from 0 to 1")


def masked_state(autoencoder: MaskedAutoencoder, settings: MaskedTraining, seed: int) -> NetworkState:
    """Return the state at the start of a training; the seed is of the masks, and of what batches draw."""
    return NetworkState(autoencoder, learning_rate=settings.learning_rate, seed=seed, settings=settings)


def train_masked(state: NetworkState, batches: Batches, settings: MaskedTraining) -> NetworkTraining:
    """Return the training of a masked auto-encoder to fill in what is hidden, and to name classes where they have a weight.

    Args:
        state: of `masked_state`, or one restored; advanced in place.
        batches: the images of every step; labels are asked for where classification has a weight.
        settings: of the training.

    Raises:
        InputError: if labels are missing where they are needed, those of a step when it is taken.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    autoencoder = cast(MaskedAutoencoder, state.model)
    device = device_of(autoencoder)
    if settings.classification_weight and autoencoder.classify is None:
        raise InputError(f"classification_weight is {settings.classification_weight}, but the network names no classes: pass 0")

    def loss(number: int, rng: torch.Generator) -> Iterator[Tensor]:
        images, labels = batches(number, rng)
        weight = settings.weight_at(number)
        if weight and labels is None:
            raise InputError(f"classification_weight is {settings.classification_weight}: pass one label for every image")
        batch, mask = to_signed(images.to(device)), random_mask(len(images), autoencoder.grid, rng)
        named = labels.long().to(device) if weight and labels is not None else None
        for rows in torch.arange(len(batch), device=device).split(settings.micro_batch or len(batch)):
            with computing_in(settings.precision, device):
                reconstruction, logits = autoencoder(batch[rows], mask[rows])
            # Shares of the means of the whole batch: over its hidden entries, and over its images.
            error = mae_loss(reconstruction, autoencoder.patches(batch[rows]), mask[rows])
            part = (1 - weight) * error * mask[rows].sum() / mask.sum().clamp_min(1)
            if named is not None:
                part = part + weight * cross_entropy(full_precision(cast(Tensor, logits)), named[rows]) * len(rows) / len(batch)
            yield part

    return NetworkTraining(state, loss, steps=settings.steps)
