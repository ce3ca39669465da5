"""A feature encoder that is learned while the generator is trained, without any pre-trained weights.

The network adds a correction to the image, E(x) = x + R(x). R is a convolution, four residual blocks and a convolution that starts
at zero; it has no normalization layers, whose gradient is unbounded at constant images. Its maps are pooled as in `pooling`.

The encoder learns to tell real samples from generated ones by densities in its features. For each feature of D channels, and with
the kernel densities p and q of the real and the generated samples of a label,

    p(x) = mean over real y of exp(-|f(x) - f(y)| / (temperature sqrt(D))),    score(x) = log p(x) - log q(x)
    loss = mean over real x of softplus(-score(x)) + mean over generated x of softplus(score(x))

where no sample counts in the density at itself. The loss is the mean over all features. It is 2 log 2 where both densities agree.

Shapes: b images, c channels, h x w pixels, g groups (label x location), n generated, p positives, d feature channels.

Source: arXiv:2610.04703. The temperature there is 0.05, the width 128; the learning rate 1e-4 and the norm of gradients 1 are those
of `training.encoder`. The generator's step is that of this library: distances are relative to the mean distance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from drifting._checks import check_counts, check_learning_rate, check_positive, check_temperature, exact_products, full_precision
from drifting.encoders.base import EncoderConfig, Features, Weights, checked_names
from drifting.encoders.pooling import KINDS, feature_name, image_features, image_names, multi_scale, pooled_names
from drifting.errors import InputError

_DILATIONS = (1, 2, 4, 1)
# Features of the image, of shallow and of deep maps, for all sides that 4 divides.
_FEATURES = ("pixels", "stem_mean", "stem_std", "block2_mean_4", "block4_mean_4", "output_mean_4", "output_std_4")
# Squares of distances below this have no gradient.
_SMALLEST_SQUARE = 1e-12

Images = Float[Tensor, "b c h w"]


class LearnedFeatures(nn.Module):
    """Feature encoder whose network is trained together with the generator.

    Args:
        image_shape: channels, height and width of one image.
        width: channels of the network.
        names: names of the features: the maps "stem", "block1" to "block4" and "output" in the kinds of `pooling.multi_scale`, such
            as "block2_mean" or "output", and features of the images themselves, see `pooling.image_features`.

    Raises:
        InputError: if a name is unknown or repeated, if its windows do not divide the map, or if there is no name.
    """

    def __init__(self, image_shape: Sequence[int], *, width: int = 128, names: Sequence[str] = ("output_mean",)) -> None:
        super().__init__()
        if len(image_shape) != 3:
            raise InputError(f"encoder is learned from images, but a sample has the shape {tuple(image_shape)}: use PixelsConfig")
        channels, *sides = image_shape
        blocks = [f"block{index}" for index in range(1, len(_DILATIONS) + 1)]
        maps = {**dict.fromkeys(("stem", *blocks), (width, *sides)), "output": tuple(image_shape)}
        self.names = checked_names(names, (*pooled_names(maps), *image_names(tuple(image_shape))))
        kinds = {map: [kind for kind in KINDS if feature_name(map, kind) in names] for map in maps}
        self._kinds = {map: chosen for map, chosen in kinds.items() if chosen}
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation) for dilation in _DILATIONS)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - faster on a CPU

    def forward(self, samples: Images) -> Features:
        """Return the chosen features in the order of `names`."""
        map = self.stem(samples.contiguous(memory_format=torch.channels_last))
        maps = {"stem": map}
        for index, block in enumerate(self.blocks, 1):
            map = map + block(silu(map))
            maps[f"block{index}"] = map
        maps["output"] = samples + self.last(silu(map))
        features = image_features(samples, self.names)
        for name, kinds in self._kinds.items():
            features.update(multi_scale(name, maps[name], kinds))
        return {name: features[name] for name in self.names}


def density_loss(real: Float[Tensor, "g p d"], generated: Float[Tensor, "g n d"], *, temperature: float) -> Float[Tensor, ""]:
    """Return the loss by which an encoder learns to tell real features from generated ones; both have gradients.

    Args:
        real: features of real samples, at least 2 in each group.
        generated: features of generated samples, at least 2 in each group.
        temperature: bandwidth of the densities, times the root of the number of channels; above 0.

    Raises:
        InputError: if a group has fewer than 2 samples of a kind, or the temperature is not positive.
    """
    check_temperature(temperature)
    for name, samples in (("positives", real), ("generated", generated)):
        if samples.shape[1] < 2:
            raise InputError(f"{name} is {samples.shape[1]} per label, too few for a density: pass at least 2")
    real, generated = full_precision(real), full_precision(generated)
    center = torch.cat([real, generated], 1).detach().mean(1, keepdim=True)
    sets = (real - center, generated - center)
    bandwidth = temperature * math.sqrt(real.shape[2])
    # [of real | of generated] at the places of each set
    of_real, of_generated = ([_log_density(place, samples, bandwidth) for samples in sets] for place in sets)
    return softplus(of_real[1] - of_real[0]).mean() + softplus(of_generated[0] - of_generated[1]).mean()


def _log_density(places: Float[Tensor, "g q d"], samples: Float[Tensor, "g m d"], bandwidth: float) -> Float[Tensor, "g q"]:
    """Return the logarithm of the kernel density at places; a sample does not count at itself."""
    with exact_products():
        squares = places.square().sum(2)[:, :, None] + samples.square().sum(2)[:, None] - 2 * places @ samples.transpose(1, 2)
    logits = squares.clamp(min=_SMALLEST_SQUARE).sqrt() / -bandwidth
    count = samples.shape[1]
    if places is samples:
        logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device=logits.device), -torch.inf)
        count -= 1
    return logits.logsumexp(2) - math.log(count)


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(EncoderConfig):
    """Drift in features that are learned in the same training, see `LearnedFeatures`.

    Attributes:
        width: number of channels of the network.
        features: names of the features that samples drift in, see `LearnedFeatures`.
        temperature: bandwidth of the densities by which the encoder learns, relative to the root of the number of channels.
        learning_rate: learning rate of the encoder.
        max_grad_norm: norm that the gradients of the encoder are scaled down to.
    """

    noun: ClassVar[str] = "a learned encoder"
    learns: ClassVar[bool] = True

    width: int = 128
    features: tuple[str, ...] = _FEATURES
    temperature: float = 0.05
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0

    def build_network(
        self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]
    ) -> LearnedFeatures:
        """Return the network, which is the encoder itself; see `EncoderConfig.build_network`."""
        del num_classes, read
        return LearnedFeatures(image_shape, width=self.width, names=self.features)

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> LearnedFeatures:
        """Return the network on a device. Its weights are not frozen."""
        return cast(LearnedFeatures, network).to(device)

    def check(self, prefix: str = "") -> None:
        """Raise InputError if training cannot work with a setting; see `EncoderConfig.check`."""
        check_counts({f"{prefix}width": self.width})
        check_temperature(self.temperature, f"{prefix}temperature")
        check_learning_rate(self.learning_rate, f"{prefix}learning_rate")
        check_positive(f"{prefix}max_grad_norm", self.max_grad_norm, 2.0)
