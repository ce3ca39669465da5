"""Pre-training of the networks that are not generators: auto-encoders by reconstruction, classifiers by labels.

Trainings without files or logs, each a function of its arguments and of the network's initial weights alone. The
learning rate rises linearly over the first fifth of the steps, then falls along half a cosine.

Shapes: b images, c channels, h x w pixels in [-1, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, mse_loss, pad

from drifting._seeds import stream_seed
from drifting.data.augmentation import Views, augment
from drifting.data.pixels import to_signed
from drifting.data.shuffle import shuffled_indices
from drifting.errors import InputError
from drifting.training.network import NetworkState, NetworkTraining, device_of

_BLACK = -1.0

Images = Float[Tensor, "b c h w"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How the images and labels of a classifier are varied in training; 0 switches a part off.

    Attributes:
        shift: largest shift in whole pixels, along each axis.
        rotation: largest rotation in degrees.
        scale: largest relative change of size, below 1.
        label_smoothing: probability spread evenly over all classes, in [0, 1).
        views: crops, mirrors and colours before all that; None for none.
    """

    shift: int = 2
    rotation: float = 10.0
    scale: float = 0.1
    label_smoothing: float = 0.0
    views: Views | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value out of its range."""
        ranges = {"shift": math.inf, "rotation": math.inf, "scale": 1, "label_smoothing": 1}
        for name, limit in ranges.items():
            if not 0 <= getattr(self, name) < limit:
                raise InputError(f"{name} is {getattr(self, name)}: pass a number from 0 to below {limit}")

    def __call__(self, images: Images, rng: torch.Generator) -> Images:
        """Return every image as another view, turned and scaled about its centre, then shifted, each by its own draw."""
        if self.views is not None:
            images = augment(images, self.views, rng)
        if self.rotation or self.scale:
            images = random_affine(images, rng, rotation=self.rotation, scale=self.scale)
        return random_shift(images, rng, pixels=self.shift) if self.shift else images


def random_shift(images: Images, rng: torch.Generator, *, pixels: int = 2) -> Images:
    """Return every image shifted by up to `pixels` along each axis; what comes in from outside is black (-1)."""
    count, channels, height, width = images.shape
    padded = pad(images, (pixels,) * 4, value=_BLACK)
    down, right = torch.randint(2 * pixels + 1, (2, count, 1), generator=rng, device=rng.device).to(images.device)
    rows = (down + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=images.device))[:, None, None, :]
    shifted = padded.gather(2, rows.expand(-1, channels, -1, padded.shape[3]))
    return shifted.gather(3, columns.expand(-1, channels, height, -1))


def random_affine(images: Images, rng: torch.Generator, *, rotation: float = 10.0, scale: float = 0.1) -> Images:
    """Return every image turned by up to `rotation` degrees and scaled by a factor in [1 - scale, 1 + scale], bilinearly.

    What comes in from outside is black (-1). Both draws are uniform.
    """
    height, width = images.shape[2:]
    turn, size = (2 * torch.rand(2, len(images), generator=rng, device=rng.device) - 1).to(images)
    angle, inverse = math.radians(rotation) * turn, 1 / (1 + scale * size)
    cosine, sine, zero = inverse * angle.cos(), inverse * angle.sin(), torch.zeros_like(angle)
    # Grid coordinates run over [-1, 1] along both axes: the aspect ratio keeps a turned rectangle a rectangle.
    matrix = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], 1)
    grid = affine_grid(matrix.unflatten(1, (2, 3)), list(images.shape), align_corners=False)
    return grid_sample(images - _BLACK, grid, align_corners=False) + _BLACK


def train_autoencoder(
    autoencoder: nn.Module,
    images: Shaped[Tensor, "s c h w"],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    noise: float = 0.0,
) -> NetworkTraining:
    """Return the training of a network (images) -> (reconstruction, code) to minimise the mean squared error.

    Every epoch is a new order of all images, so that each is seen as often as any other.

    Args:
        autoencoder: trained in place, on its device.
        images: all training images, uint8 in 0..255 or float in [-1, 1].
        steps: number of optimiser steps.
        batch_size: images of a step.
        learning_rate: the highest of the schedule, of AdamW.
        seed: of the order and of the noise.
        noise: standard deviation of Gaussian noise added to the input and not to the target; 0 for none.

    Raises:
        InputError: if there is no image.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    draw, device = in_order(images, batch_size, seed), device_of(autoencoder)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        clean = to_signed(images[draw(number)].to(device))
        draws = noise * torch.randn(clean.shape, generator=rng, device=device) if noise else 0
        return mse_loss(autoencoder(clean + draws)[0], clean)

    return NetworkTraining(NetworkState(autoencoder, learning_rate=learning_rate, seed=seed), loss, steps=steps)


def train_supervised(
    model: nn.Module,
    images: Shaped[Tensor, "s c h w"],
    labels: Int[Tensor, " s"],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    augmentation: Augmentation = Augmentation(),
) -> NetworkTraining:
    """Return the training of a classifier (images) -> logits by cross-entropy; every epoch is a new order of all images.

    Args:
        model: trained in place, on its device.
        images: all training images, uint8 in 0..255 or float in [-1, 1].
        labels: their classes.
        steps: number of optimiser steps.
        batch_size: images of a step.
        learning_rate: the highest of the schedule, of AdamW.
        seed: of the order and of the augmentation.
        augmentation: how images and labels are varied.

    Raises:
        InputError: if there is not one label for every image.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise InputError(f"data has {len(images)} images and {len(labels)} labels: pass one label for every image")
    draw, device = in_order(images, batch_size, seed), device_of(model)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        chosen = draw(number)
        varied = augmentation(to_signed(images[chosen].to(device)), rng)
        targets = labels.to(images.device)[chosen].long().to(device)
        return cross_entropy(model(varied), targets, label_smoothing=augmentation.label_smoothing)

    return NetworkTraining(NetworkState(model, learning_rate=learning_rate, seed=seed), loss, steps=steps)


def in_order(images: Tensor, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """Return the function (number of a step) -> indices of its images; every epoch is a new order of all."""
    if len(images) == 0:
        raise InputError("data is empty: pass at least one image")

    order = stream_seed(seed, "encoder batches")

    def indices(number: int) -> Tensor:
        chosen = torch.as_tensor(shuffled_indices(len(images), (number - 1) * batch_size, batch_size, order))
        return chosen.to(images.device)

    return indices
