"""A small convolutional auto-encoder, trained on the images of the run itself: a feature space without pre-trained weights.

Two convolutions of stride 2 and one matrix product make the code; a `drifting.nn.Decoder` decodes it. There are no normalization
layers, because their gradient is unbounded at the constant images that an untrained generator makes.

Shapes: b images, c channels, h x h pixels (h divisible by 4), w width, z code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from drifting._checks import check_counts, check_learning_rate, check_positive
from drifting.checkpoint import load_weights
from drifting.encoders.base import EncoderConfig, Features, Frozen, Weights, checked_names
from drifting.encoders.pooling import KINDS, feature_name, image_features, image_names, multi_scale, pooled_names
from drifting.nn import Decoder, check_square

Images = Float[Tensor, "b c h h"]


class Autoencoder(nn.Module):
    """Images in [-1, 1] -> code -> images.

    Args:
        image_shape: channels, height and width of one image; square, with a side divisible by 4.
        code_dim: length of the code.
        width: channels of the first stage; the second has twice as many.
    """

    def __init__(self, image_shape: Sequence[int], *, code_dim: int = 64, width: int = 32) -> None:
        super().__init__()
        channels, side = check_square(image_shape)
        self.image_shape, self.code_dim = (channels, side, side), code_dim
        self.map_shapes = {"stage1": (width, side // 2, side // 2), "stage2": (2 * width, side // 4, side // 4)}
        self.down1 = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.down2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.to_code = nn.Linear(prod(self.map_shapes["stage2"]), code_dim)
        self.from_code = Decoder(code_dim, image_shape, width)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - faster on a CPU

    def maps(self, images: Images) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return the intermediate feature maps: "stage1" [b, w, h/2, h/2] and "stage2" [b, 2w, h/4, h/4]."""
        stage1 = silu(self.down1(images.contiguous(memory_format=torch.channels_last)))
        return {"stage1": stage1, "stage2": silu(self.down2(stage1))}

    def encode(self, images: Images) -> Float[Tensor, "b z"]:
        """Return the code of every image."""
        return self.to_code(self.maps(images)["stage2"].flatten(1))

    def decode(self, code: Float[Tensor, "b z"]) -> Images:
        """Return the image of every code; values can lie slightly outside [-1, 1]."""
        return self.from_code(code)

    def forward(self, images: Images) -> tuple[Images, Float[Tensor, "b z"]]:
        """Return reconstructions and codes."""
        code = self.encode(images)
        return self.decode(code), code


class AutoencoderFeatures(Frozen):
    """Feature encoder: chosen features of a trained auto-encoder, which is frozen in place.

    Args:
        autoencoder: the trained network.
        names: names of the features: "code", the maps "stage1" and "stage2" in the kinds of `pooling.multi_scale`, such as "stage2"
            or "stage2_mean", and the features of the images themselves, see `pooling.image_features`.

    Raises:
        InputError: if a name is unknown or repeated, if its windows do not divide the map, or if there is no name.
    """

    def __init__(self, autoencoder: Autoencoder, names: Sequence[str] = ("code", "stage2", "stage2_mean", "stage2_std")) -> None:
        super().__init__(autoencoder)
        self.names = checked_names(names, available_features(autoencoder))
        self._kinds = {map: [kind for kind in KINDS if feature_name(map, kind) in names] for map in autoencoder.map_shapes}

    @property
    def autoencoder(self) -> Autoencoder:
        """The network."""
        return cast(Autoencoder, self.module)

    def forward(self, samples: Images) -> Features:
        """Return the chosen features in the order of `names`."""
        maps = self.autoencoder.maps(samples)
        code = self.autoencoder.to_code(maps["stage2"].flatten(1))
        features = {"code": code[:, None], **image_features(samples, self.names)}
        for map, kinds in self._kinds.items():
            features.update(multi_scale(map, maps[map], kinds))
        return {name: features[name] for name in self.names}


def available_features(autoencoder: Autoencoder) -> tuple[str, ...]:
    """Return the names of all features that an auto-encoder offers."""
    return ("code", *pooled_names(autoencoder.map_shapes), *image_names(autoencoder.image_shape))


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(EncoderConfig):
    """Drift in the features of an `Autoencoder` that the run trains first, on its own images.

    Attributes:
        code_dim: length of the code.
        width: number of channels of the first maps.
        features: names of the features that samples drift in, see `AutoencoderFeatures`.
        weights: file of the weights of a trained auto-encoder; None to train it.
        steps: number of optimizer steps of its training.
        batch_size: number of images in a step of its training.
        learning_rate: highest learning rate of its training.
        noise: standard deviation of the noise added to the input, but not to the target, in its training; 0 for none.
    """

    objective: ClassVar[str | None] = "reconstruction"
    noun: ClassVar[str] = "an auto-encoder"

    code_dim: int = 64
    width: int = 32
    features: tuple[str, ...] = ("code",)
    weights: str | None = None
    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    noise: float = 0.0

    def build_network(
        self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]
    ) -> Autoencoder:
        """Return the network; see `EncoderConfig.build_network`."""
        network = Autoencoder(image_shape, code_dim=self.code_dim, width=self.width)
        checked_names(self.features, available_features(network))
        if self.weights is not None:
            load_weights(network, read(self.weights), self.weights)
        return network

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> AutoencoderFeatures:
        """Return the features over a trained network."""
        return AutoencoderFeatures(cast(Autoencoder, network), self.features)

    def check(self, prefix: str = "") -> None:
        """Raise InputError if training cannot work with a setting; see `EncoderConfig.check`."""
        check_counts({f"{prefix}{name}": getattr(self, name) for name in ("code_dim", "width", "steps", "batch_size")})
        check_learning_rate(self.learning_rate, f"{prefix}learning_rate")
        check_positive(f"{prefix}noise", self.noise, 0.1, or_zero=True)
