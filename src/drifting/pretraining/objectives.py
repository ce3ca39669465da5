"""Training objectives of encoders and classifiers: reconstruction, classes, two views of an image, or hidden patches.

The trainings write no files or logs. Each depends only on its arguments and the initial weights of the network. The learning rate
rises linearly over the first fifth of the steps, then falls along half a cosine.

A masked auto-encoder has settings of its own, which can be those of the paper's encoders:

    loss = (1 - w) mean over masked entries (reconstruction - image)^2  +  w cross_entropy(logits, labels)

The weight w of the classes can stay 0 until the last steps of the training, and then rise linearly.

Shapes: b images, c channels, h x w pixels in [-1, 1].

Source: SimCLR, arXiv:2002.05709; the masked auto-encoder is that of the paper, appendix A.3, with `encoders.mae.random_mask`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, mse_loss, pad

from drifting._checks import check_computes, full_precision
from drifting._torch import initial_weights
from drifting.data.augmentation import Views, augment
from drifting.data.pixels import to_signed
from drifting.encoders.base import STEADY, EncoderConfig, Optimization
from drifting.encoders.mae import MaskedAutoencoder, MaskedTraining, mae_loss, random_mask
from drifting.encoders.simclr import SimCLR
from drifting.errors import InputError
from drifting.pretraining.loop import Batches, NetworkState, NetworkTraining, device_of
from drifting.training.step import computed_in, computing_in

_BLACK = -1.0
Images = Float[Tensor, "b c h w"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation of images and labels in the training of a classifier; 0 switches a part off.

    Attributes:
        shift: largest shift in whole pixels, along each axis.
        rotation: largest rotation in degrees.
        scale: largest relative change of size, below 1.
        label_smoothing: probability spread evenly over all classes, in [0, 1).
        cut_mix: probability that the images of a step, and their labels, are mixed by `cut_mix`, in [0, 1].
        views: crops, mirrors and colors, applied first; None for none.
    """

    shift: int = 2
    rotation: float = 10.0
    scale: float = 0.1
    label_smoothing: float = 0.0
    cut_mix: float = 0.0
    views: Views | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value out of its range."""
        ranges = {"shift": math.inf, "rotation": math.inf, "scale": 1, "label_smoothing": 1}
        for name, limit in ranges.items():
            if not 0 <= getattr(self, name) < limit:
                raise InputError(f"{name} is {getattr(self, name)}: pass a number from 0 to below {limit}")
        if not 0 <= self.cut_mix <= 1:
            raise InputError(f"cut_mix is {self.cut_mix}: pass a probability, from 0 to 1")

    def __call__(self, images: Images, rng: torch.Generator) -> Images:
        """Return every image as another view, rotated and scaled about its center, then shifted, with its own random numbers."""
        if self.views is not None:
            images = augment(images, self.views, rng)
        if self.rotation or self.scale:
            images = random_affine(images, rng, rotation=self.rotation, scale=self.scale)
        return random_shift(images, rng, pixels=self.shift) if self.shift else images

    def mixes(self, rng: torch.Generator) -> bool:
        """Return whether the images of a step are mixed."""
        return self.cut_mix > 0 and float(torch.rand((), generator=rng, device=rng.device)) < self.cut_mix


def random_shift(images: Images, rng: torch.Generator, *, pixels: int = 2) -> Images:
    """Return every image shifted by up to `pixels` along each axis; the area outside of the image is black (-1)."""
    count, channels, height, width = images.shape
    padded = pad(images, (pixels,) * 4, value=_BLACK)
    down, right = torch.randint(2 * pixels + 1, (2, count, 1), generator=rng, device=rng.device).to(images.device)
    rows = (down + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=images.device))[:, None, None, :]
    shifted = padded.gather(2, rows.expand(-1, channels, -1, padded.shape[3]))
    return shifted.gather(3, columns.expand(-1, channels, height, -1))


def random_affine(images: Images, rng: torch.Generator, *, rotation: float = 10.0, scale: float = 0.1) -> Images:
    """Return every image rotated by up to `rotation` degrees and scaled by a factor in [1 - scale, 1 + scale], bilinearly.

    The area outside of the image is black (-1). Both random numbers are uniform.
    """
    height, width = images.shape[2:]
    turn, size = (2 * torch.rand(2, len(images), generator=rng, device=rng.device) - 1).to(images)
    angle, inverse = math.radians(rotation) * turn, 1 / (1 + scale * size)
    cosine, sine, zero = inverse * angle.cos(), inverse * angle.sin(), torch.zeros_like(angle)
    # Grid coordinates are in [-1, 1] along both axes, so a rotation of a rectangle needs the aspect ratio.
    matrix = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], 1)
    grid = affine_grid(matrix.unflatten(1, (2, 3)), list(images.shape), align_corners=False)
    return grid_sample(images - _BLACK, grid, align_corners=False) + _BLACK


def cut_mix(images: Images, rng: torch.Generator) -> tuple[Images, Int[Tensor, " b"], float]:
    """Return images with a rectangle of another image each, the indices of the others, and their share of the area.

    All rectangles of a call have the same location and the proportions of the image; their share is uniform in [0, 1]. A classifier
    that learns both labels from such images fits its training images less closely, so their features resemble those of new images.

    Source: Yun et al., "CutMix", arXiv:1905.04899, where rectangles may extend beyond the image.
    """
    height, width = images.shape[2:]
    share, down, right = torch.rand(3, generator=rng, device=rng.device).tolist()
    tall, wide = (round(math.sqrt(share) * side) for side in (height, width))
    top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
    others = torch.randperm(len(images), generator=rng, device=rng.device).to(images.device)
    mixed, place = images.clone(), (..., slice(top, top + tall), slice(left, left + wide))
    mixed[place] = images[others][place]
    return mixed, others, tall * wide / (height * width)


def train_autoencoder(
    autoencoder: nn.Module, batches: Batches, *, steps: int, learning_rate: float, seed: int, noise: float = 0.0
) -> NetworkTraining:
    """Return the training of a network (images) -> (reconstruction, code) to minimize the mean squared error.

    Args:
        autoencoder: network, trained in place on its device.
        batches: images of every step.
        steps: number of optimizer steps.
        learning_rate: highest learning rate of AdamW.
        seed: seed of the noise.
        noise: standard deviation of Gaussian noise added to the input and not to the target; 0 for none.

    Raises:
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    device = device_of(autoencoder)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        clean = to_signed(batches(number)[0].to(device))
        draws = noise * torch.randn(clean.shape, generator=rng, device=device) if noise else 0
        return mse_loss(autoencoder(clean + draws)[0], clean)

    return NetworkTraining(NetworkState(autoencoder, learning_rate=learning_rate, seed=seed), loss, steps=steps)


def train_supervised(
    model: nn.Module,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    augmentation: Augmentation = Augmentation(),
    settings: Optimization = STEADY,
) -> NetworkTraining:
    """Return the training of a classifier (images) -> logits by cross-entropy.

    Args:
        model: network, trained in place on its device.
        batches: images of every step and their labels.
        steps: number of optimizer steps.
        learning_rate: highest learning rate of the optimizer.
        seed: seed of the augmentation.
        augmentation: augmentation of images and labels.
        settings: further settings of the training.

    Raises:
        InputError: for an unknown optimizer, and a precision that the device lacks; in a step without labels.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    device, smoothing = device_of(model), augmentation.label_smoothing
    network = computed_in(settings.precision, model, device)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        images, labels = batches(number)
        if labels is None:
            raise InputError("labels are missing: pass one label for every image")
        varied, classes = augmentation(to_signed(images.to(device)), rng), labels.long().to(device)
        if not augmentation.mixes(rng):
            return cross_entropy(network(varied), classes, label_smoothing=smoothing)
        varied, others, share = cut_mix(varied, rng)
        logits = network(varied)
        own, other = (cross_entropy(logits, targets, label_smoothing=smoothing) for targets in (classes, classes[others]))
        return (1 - share) * own + share * other

    return NetworkTraining(NetworkState(model, learning_rate=learning_rate, seed=seed, settings=settings), loss, steps=steps)


_VIEWS = Views()


def train_simclr(
    simclr: SimCLR,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    views: Views = _VIEWS,
    settings: Optimization = STEADY,
) -> NetworkTraining:
    """Return the training of a trunk and its head to recognize two views of an image among the views of other images.

    Args:
        simclr: network, trained in place on its device; only its trunk is used afterwards.
        batches: images of every step, at least 2; each is used in two views.
        steps: number of optimizer steps.
        learning_rate: highest learning rate of the optimizer.
        seed: seed of the views.
        views: augmentation that makes the views. The trunk learns to ignore what differs between views, above all color.
        settings: further settings of the training.

    Raises:
        InputError: for an unknown optimizer, and a precision that the device lacks; in a step with fewer than two images.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    device = device_of(simclr)
    network = computed_in(settings.precision, simclr, device)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        batch = to_signed(batches(number)[0].to(device))
        return network(augment(batch, views, rng), augment(batch, views, rng))

    return NetworkTraining(NetworkState(simclr, learning_rate=learning_rate, seed=seed, settings=settings), loss, steps=steps)


def train_masked(autoencoder: MaskedAutoencoder, batches: Batches, settings: MaskedTraining, *, seed: int) -> NetworkTraining:
    """Return the training of a masked auto-encoder to fill in hidden patches and, if they have a weight, to learn classes.

    Args:
        autoencoder: network, trained in place on its device.
        batches: images of every step, with labels if the classification has a weight.
        settings: settings of the training.
        seed: seed of the masks.

    Raises:
        InputError: if the network has no classes but needs them, or in a step without labels that needs them.
        DivergenceError: in a step, if the loss becomes NaN or infinite.
    """
    device = device_of(autoencoder)
    check_computes(settings.precision, device)
    if settings.classification_weight and autoencoder.classify is None:
        raise InputError(f"classification_weight is {settings.classification_weight}, but the network has no classes: pass 0")

    def loss(number: int, rng: torch.Generator) -> Iterator[Tensor]:
        images, labels = batches(number)
        weight = settings.weight_at(number)
        if weight and labels is None:
            raise InputError(f"classification_weight is {settings.classification_weight}: pass one label for every image")
        batch, mask = to_signed(images.to(device)), random_mask(len(images), autoencoder.grid, rng)
        classes = labels.long().to(device) if weight and labels is not None else None
        for rows in torch.arange(len(batch), device=device).split(settings.microbatch_size or len(batch)):
            with computing_in(settings.precision, device):
                reconstruction, logits = autoencoder(batch[rows], mask[rows])
            # The parts add up to the means over the hidden entries and over the images of the whole batch.
            error = mae_loss(reconstruction, autoencoder.patches(batch[rows]), mask[rows])
            part = (1 - weight) * error * mask[rows].sum() / mask.sum().clamp_min(1)
            if classes is not None:
                part = part + weight * cross_entropy(full_precision(cast(Tensor, logits)), classes[rows]) * len(rows) / len(batch)
            yield part

    state = NetworkState(autoencoder, learning_rate=settings.learning_rate, seed=seed, settings=settings)
    return NetworkTraining(state, loss, steps=settings.steps)


def _reconstruct(network: Any, settings: Any, batches: Batches, seed: int) -> NetworkTraining:
    return train_autoencoder(network, batches, noise=settings.noise, **_sizes(settings), seed=seed)


def _classify(network: Any, settings: Any, batches: Batches, seed: int) -> NetworkTraining:
    names = ("views", "label_smoothing", "cut_mix")
    augmentation = Augmentation(shift=0, rotation=0.0, scale=0.0, **{name: getattr(settings, name) for name in names})
    return train_supervised(network, batches, augmentation=augmentation, **_further(settings), seed=seed)


def _contrast_views(network: Any, settings: Any, batches: Batches, seed: int) -> NetworkTraining:
    with initial_weights(seed, "projection"):
        simclr = SimCLR(network, features=network.feature_dim, temperature=settings.temperature)
    return train_simclr(simclr.to(device_of(network)), batches, views=settings.views, **_further(settings), seed=seed)


def _fill_in(network: Any, settings: Any, batches: Batches, seed: int) -> NetworkTraining:
    return train_masked(network, batches, settings, seed=seed)


def _sizes(settings: Any) -> dict[str, Any]:
    return {"steps": settings.steps, "learning_rate": settings.learning_rate}


def _further(settings: Any) -> dict[str, Any]:
    return {**_sizes(settings), "settings": Optimization(optimizer=settings.optimizer, precision=settings.precision)}


# Objective of an encoder, see `encoders.base.EncoderConfig` -> its training.
OBJECTIVES: Mapping[str, Callable[[Any, Any, Batches, int], NetworkTraining]] = {
    "reconstruction": _reconstruct,
    "classes": _classify,
    "views": _contrast_views,
    "masked": _fill_in,
}


def train_network(network: nn.Module, settings: EncoderConfig, batches: Batches, *, seed: int) -> NetworkTraining:
    """Return the training of an encoder's network for its objective.

    Args:
        network: network built from the settings, trained in place on its device.
        settings: settings of an encoder with an objective.
        batches: images of every step and, for objectives that need them, their labels.
        seed: seed of the views, the noise and the masks.
    """
    return OBJECTIVES[str(settings.objective)](network, settings, batches, seed)
