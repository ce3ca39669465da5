"""What a feature encoder is: samples -> named feature maps, frozen, with gradients passing through it.

Shapes: b samples, k locations; every location is a drifting problem of its own.

Source: paper, appendix A.5.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import nearest_name
from drifting.errors import InputError

# name -> [samples, locations, channels]
Features = dict[str, Float[Tensor, "b k _"]]
FeatureEncoder = Callable[[Float[Tensor, "b *sample"]], Features]


# Of the steps of a training that is not told how long its learning rate rises.
_WARMUP = 0.2


class Frozen(nn.Module):
    """Hold a network whose weights and statistics no longer change; gradients still flow through it to its input.

    Args:
        module: the network; it is frozen in place, and `train()` of whatever contains it leaves it in evaluation mode.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever is asked for."""
        del mode
        return super().train(False)

    def forward(self, samples: Float[Tensor, "b *sample"]) -> Any:
        """Return what the network returns."""
        return self.module(samples)


def compose(encoders: Mapping[str, FeatureEncoder]) -> FeatureEncoder:
    """Return an encoder with the features of several, each under its encoder's prefix: "prefix.name".

    Args:
        encoders: prefix -> encoder; an empty prefix leaves names as they are.

    Raises:
        InputError: if there is no encoder; when the result is called, if two features have the same name.
    """
    if not encoders:
        raise InputError("encoders is empty: pass at least one")

    def encode(samples: Tensor) -> Features:
        features: Features = {}
        for prefix, encoder in encoders.items():
            for name, value in encoder(samples).items():
                full = f"{prefix}.{name}" if prefix else name
                if full in features:
                    raise InputError(f"encoders give the feature '{full}' twice: use other prefixes than {list(encoders)}")
                features[full] = value
        return features

    return encode


def floats_for(network: nn.Module, samples: Tensor) -> Tensor:
    """Return samples in the precision of a network's weights, or raise InputError if they are whole numbers."""
    if not samples.is_floating_point():
        raise InputError(f"images are {samples.dtype}: pass floats, pixels in [-1, 1]")
    return samples.to(next(network.parameters()).dtype)


def checked_names(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of features, or raise InputError if one is unknown or double, or there is none."""
    for name in names:
        if name not in known:
            raise InputError(f"features has '{name}': did you mean '{nearest_name(name, known)}'? There are {', '.join(known)}")
    if len(set(names)) != len(names) or not names:
        raise InputError(f"features is {list(names)}: name at least one, each once")
    return tuple(names)


class Identity(nn.Module):
    """Feature encoder that returns each sample, flattened, as one location of the feature "sample".

    This is enough for points and small images, not for natural ones: their distances are so alike that the kernel goes flat.
    """

    def forward(self, samples: Float[Tensor, "b *sample"]) -> Features:
        """Return the samples as features."""
        return {"sample": samples.flatten(1)[:, None, :]}


identity = Identity()


Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ABC):
    """The settings of a feature encoder, which build its network and, over the trained network, the features.

    Attributes:
        objective: what the network is trained for, of `pretraining.objectives.OBJECTIVES`; None for one that is not trained here.
        kind: what `drifting train-encoder` calls its training on its own; None where there is no such training.
        noun: what messages call it.
        alone: whether the network is trained on its own alone, for another encoder to use.
        any_size: whether the network takes images of other sizes than it was trained on.
    """

    objective: ClassVar[str | None] = None
    kind: ClassVar[str | None] = None
    noun: ClassVar[str] = "an encoder"
    alone: ClassVar[bool] = False
    any_size: ClassVar[bool] = False

    @abstractmethod
    def build_network(
        self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]
    ) -> nn.Module | None:
        """Return the network on the CPU, with fresh weights or those of its file; None for an encoder without a network.

        Args:
            image_shape: channels, height and width of an image; other shapes for samples that are no images.
            num_classes: number of labels, where the network learns them.
            read: returns the weights of a file that the settings name.

        Raises:
            InputError: if the images or the weights do not fit.
        """

    @abstractmethod
    def build_features(self, network: nn.Module, device: str = "cpu") -> FeatureEncoder:
        """Return the features over a trained network on a device; the network is frozen in place."""

    @property
    def weights_file(self) -> str | None:
        """The file, or the published artifact, of the weights; None for those of a training."""
        return getattr(self, "weights", None)

    @property
    def published(self) -> str | None:
        """Name of the authors' network of this size, for an encoder that is never trained with a run; None for any other."""
        return None

    @property
    def learns_classes(self) -> bool:
        """Whether the training needs labels."""
        return False

    def check(self, prefix: str = "") -> None:
        """Raise InputError naming a setting, after the prefix, with which the training could not work."""
        del prefix

    def as_trained(self, weights: str, before: "EncoderConfig") -> "EncoderConfig":
        """Return the encoder over the network that was trained by these settings, in the place of another one.

        Args:
            weights: file of the trained weights.
            before: the encoder that the run had.
        """
        if self.objective is None:
            raise InputError("a run that trains no encoder")
        del before
        return replace(self, weights=weights)  # pyright: ignore[reportCallIssue] - a field of all that are trained


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(EncoderConfig):
    """Drifting in the space of the samples themselves: `identity`."""

    def build_network(self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]) -> None:
        """Return None: there is no network."""
        del image_shape, num_classes, read

    def build_features(self, network: nn.Module, device: str = "cpu") -> FeatureEncoder:
        """Return the samples themselves."""
        del network, device
        return identity


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How AdamW is kept steady, beside its learning rate; as it stands, for trainings of a few thousand steps.

    Attributes:
        betas: decay rates of the moments of AdamW.
        weight_decay: weight decay of AdamW; 0 for none.
        max_grad_norm: norm that gradients are scaled down to.
        warmup_steps: number of steps over which the learning rate rises linearly, to stay there; None for `schedule_factor`.
        ema_decay: decay of the average of the weights that the network has in the end, by `exponential_average`; None for the last
            weights.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_steps: int | None = None
    ema_decay: float | None = None

    def factor(self, number: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 1, as a share of the highest."""
        return schedule_factor(number, steps) if self.warmup_steps is None else min(1.0, number / max(1, self.warmup_steps))


def schedule_factor(number: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the highest: linear rise, then half a cosine that ends near 0."""
    rise = max(1.0, _WARMUP * steps)
    if number <= rise:
        return number / rise
    return 0.5 * (1 + math.cos(math.pi * (number - rise) / (steps + 1 - rise)))
