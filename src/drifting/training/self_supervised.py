"""Pre-training of encoders without labels: SimCLR on pairs of views, masked auto-encoders on hidden patches.

Trainings as in `training.encoder`, each a function of its arguments and of the network's initial weights alone.

Source: SimCLR, arXiv:2002.05709; the masked auto-encoder is that of the paper, appendix A.3.
"""

from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from drifting.data.augmentation import Views, augment
from drifting.data.pixels import to_signed
from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.simclr import SimCLR
from drifting.errors import InputError
from drifting.training.encoder import in_order
from drifting.training.masked import MaskedTraining, masked_state, train_masked
from drifting.training.network import NetworkState, NetworkTraining, device_of

_VIEWS = Views()


def train_simclr(
    simclr: SimCLR,
    images: Shaped[Tensor, "s c h w"],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    views: Views = _VIEWS,
) -> NetworkTraining:
    """Return the training of a trunk and its head to know two views of an image among those of all others.

    Args:
        simclr: trained in place, on its device; its trunk is what is kept.
        images: all training images, uint8 in 0..255 or float in [-1, 1].
        steps: number of optimiser steps.
        batch_size: images of a step, at least 2; each is seen twice.
        learning_rate: the highest of the schedule, of AdamW.
        seed: of the order and of the views.
        views: how a view differs from its image. What they vary, the trunk learns not to see: colour, above all.

    Raises:
        InputError: if there is no image, or fewer than two in a step.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    if batch_size < 2:
        raise InputError(f"batch_size is {batch_size}: pass at least 2, since a view is known among those of other images")
    draw, device = in_order(images, batch_size, seed), device_of(simclr)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        batch = to_signed(images[draw(number)].to(device))
        return simclr(augment(batch, views, rng), augment(batch, views, rng))

    return NetworkTraining(NetworkState(simclr, learning_rate=learning_rate, seed=seed), loss, steps=steps)


def train_mae(
    autoencoder: MaskedAutoencoder,
    images: Shaped[Tensor, "s c h w"],
    labels: Int[Tensor, " s"] | None = None,
    *,
    seed: int,
    **settings: Any,
) -> NetworkTraining:
    """Return the training of a masked auto-encoder on images in memory by `masked.train_masked`.

    Args:
        autoencoder: trained in place, on its device.
        images: all training images, uint8 in 0..255 or float in [-1, 1].
        labels: their classes, where classification has a weight.
        seed: of the order and of the masks.
        settings: of the training, fields of `masked.MaskedTraining`.

    Raises:
        InputError: if there is no image, or no label for every image where they are needed.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    training = MaskedTraining(**settings)
    if training.classification_weight and (labels is None or len(labels) != len(images)):
        raise InputError(f"classification_weight is {training.classification_weight}: pass one label for every image")
    draw = in_order(images, training.batch_size, seed)

    def batches(number: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        del rng
        chosen = draw(number)
        return images[chosen], labels[chosen] if labels is not None else None

    return train_masked(masked_state(autoencoder, training, seed), batches, training)
