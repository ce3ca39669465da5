"""SimCLR: two views of an image should be more similar than views of different images.

    loss = mean over the 2b views i of  -log [ exp(s_ij / temperature) / sum over k != i of exp(s_ik / temperature) ]

with s the cosine similarity of two projections and j the other view of the image of i. The trunk learns to ignore what differs
between views: trained on views with changed colors, it is blind to color, and so is a generator trained in its features.

Source: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations" (2020).

Shapes: b images, c channels, h x w pixels, f features of the trunk, d projections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from drifting._checks import check_counts, check_temperature, full_precision
from drifting.data.augmentation import Views
from drifting.encoders.base import Weights
from drifting.encoders.resnet import ResNet, ResNetConfig, ResNetFeatures
from drifting.errors import InputError

Images = Float[Tensor, "b c h w"]


class SimCLR(nn.Module):
    """Two views of the same images -> the loss. Only the trunk is used afterwards; the projection has lost information.

    Args:
        trunk: a network with a method `embed`, images -> [b, f].
        features: length f of the features that `embed` returns.
        hidden: units between the two layers of the projection head; None for as many as features.
        projection: length of the projections.
        temperature: temperature of the loss, see `nt_xent`.

    Raises:
        InputError: if the trunk has no `embed`, or the temperature is not positive.
    """

    def __init__(
        self, trunk: nn.Module, *, features: int, hidden: int | None = None, projection: int = 128, temperature: float = 0.5
    ) -> None:
        super().__init__()
        if not hasattr(trunk, "embed"):
            raise InputError(f"trunk is a {type(trunk).__name__}: pass a network with a method embed(images)")
        check_temperature(temperature)
        self.trunk, self.temperature = trunk, temperature
        hidden = features if hidden is None else hidden
        # No bias: the normalization adds one.
        self.project = nn.Sequential(
            nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, projection)
        )

    def embed(self, images: Images) -> Float[Tensor, "b f"]:
        """Return the features of the trunk."""
        return cast(Callable[[Tensor], Tensor], self.trunk.embed)(images)

    def forward(self, first: Images, second: Images) -> Float[Tensor, ""]:
        """Return the loss. Both views pass through the network as one batch, so they share the statistics of batch normalization.

        Raises:
            InputError: if there are fewer than two images, or not two views of each.
        """
        _check_pairs(first, second)
        projections = self.project(self.embed(torch.cat([first, second])))
        return nt_xent(*projections.chunk(2), temperature=self.temperature)


def nt_xent(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], *, temperature: float = 0.5) -> Float[Tensor, ""]:
    """Return the normalized, temperature-scaled cross-entropy of two views, in float32 or better.

    If all projections are equal, it is log(2b - 1) at any temperature.

    Args:
        first: projections of one view of every image.
        second: projections of the other view, in the same order.
        temperature: divisor of the cosine similarities, above 0.

    Raises:
        InputError: if there are fewer than two images, or not two views of each; if the temperature is not positive.
    """
    _check_pairs(first, second)
    check_temperature(temperature)
    with torch.autocast(first.device.type, enabled=False):
        # bfloat16 has two digits, and dividing by a small temperature would magnify the rounding error.
        views = normalize(full_precision(torch.cat([first, second])), dim=1)
        similarity = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
        partners = torch.arange(len(views), device=views.device).roll(len(first))
        return cross_entropy(similarity, partners)


def _check_pairs(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or len(first) < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise InputError(f"views have shapes {shapes}: pass two views of each of two images or more")


class SimCLRFeatures(ResNetFeatures):
    """Feature encoder: chosen features of the trunk of a trained SimCLR network, a ResNet, which is frozen in place.

    Args:
        network: the trained network; its projection head is not used.
        names: names of the features, see `ResNetFeatures`.

    Raises:
        InputError: if the trunk is not a ResNet, or for the reasons of `ResNetFeatures`.
    """

    def __init__(self, network: SimCLR, names: Sequence[str] = ("stage4_mean",)) -> None:
        if not isinstance(network.trunk, ResNet):
            raise InputError(f"network has a {type(network.trunk).__name__} as its trunk: pass a SimCLR over a ResNet")
        super().__init__(network.trunk, names)


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(ResNetConfig):
    """Drift in the features of a `ResNet` that the run trains first by SimCLR, without labels.

    Attributes:
        crop: largest share of the area of an image that a view leaves out, from 0 to below 1; see `data.augmentation.Views`.
        jitter: probability of changing the colors of a view. The network learns to ignore colors that differ between views.
        gray: probability of a view without color.
        temperature: temperature of the contrastive loss.
        view_size: side in pixels of the views; None for the size of the images. Smaller views take less time, and the network
            is used at the size of the images all the same.
    """

    objective: ClassVar[str | None] = "views"
    kind: ClassVar[str | None] = "simclr"

    crop: float = 0.8
    jitter: float = 0.8
    gray: float = 0.2
    temperature: float = 0.5
    view_size: int | None = None

    @property
    def views(self) -> Views:
        """The augmentation that makes the views of an image."""
        return Views(crop=self.crop, flip=self.flip, jitter=self.jitter, gray=self.gray, size=self.view_size)

    def build_network(self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]) -> ResNet:
        """Return the network; raises InputError too if views are larger than the images. See `EncoderConfig.build_network`."""
        side = min(image_shape[1:])
        if self.view_size is not None and self.view_size > side:
            raise InputError(f"view_size is {self.view_size}: pass at most {side}, the shorter side of the images")
        return super().build_network(image_shape, num_classes=num_classes, read=read)

    @property
    def learns_classes(self) -> bool:
        """Whether the training needs labels; SimCLR never does."""
        return False

    def check(self, prefix: str = "") -> None:
        """Raise InputError if training cannot work with a setting; see `EncoderConfig.check`."""
        if self.view_size is not None:
            check_counts({f"{prefix}view_size": self.view_size})
        super().check(prefix)
        check_temperature(self.temperature, f"{prefix}temperature")
