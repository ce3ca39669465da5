"""The interface of a feature encoder: samples -> named feature maps. It is frozen, and gradients pass through it.

Shapes: b samples, k locations. Every location is a drifting problem of its own.

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


# Share of the steps over which the learning rate rises if a training does not set it.
_WARMUP = 0.2


class Frozen(nn.Module):
    """A network whose weights and statistics no longer change. Gradients still flow through it to its input.

    Args:
        module: the network. It is frozen in place and stays in evaluation mode when `train()` is called on a parent module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode; `mode` has no effect."""
        return super().train(False)

    def forward(self, samples: Float[Tensor, "b *sample"]) -> Any:
        """Return what the network returns."""
        return self.module(samples)


def compose(encoders: Mapping[str, FeatureEncoder]) -> FeatureEncoder:
    """Return an encoder with the features of several encoders, named "prefix.name".

    Args:
        encoders: prefix -> encoder; an empty prefix leaves names as they are.

    Raises:
        InputError: if there is no encoder, or if two features have the same name when the result is called.
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
    """Return samples in the precision of a network's weights, or raise InputError if they are integers."""
    if not samples.is_floating_point():
        raise InputError(f"images are {samples.dtype}: pass floats, pixels in [-1, 1]")
    return samples.to(next(network.parameters()).dtype)


def checked_names(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of features, or raise InputError if a name is unknown or repeated, or there is none."""
    for name in names:
        if name not in known:
            raise InputError(f"features has '{name}': did you mean '{nearest_name(name, known)}'? There are {', '.join(known)}")
    if len(set(names)) != len(names) or not names:
        raise InputError(f"features is {list(names)}: name at least one, each once")
    return tuple(names)


class Identity(nn.Module):
    """Feature encoder that returns each sample, flattened, as one location of the feature "sample".

    This works for points and small images. Natural images need an encoder: their distances are so similar that the kernel is flat.
    """

    def forward(self, samples: Float[Tensor, "b *sample"]) -> Features:
        """Return the samples as features."""
        return {"sample": samples.flatten(1)[:, None, :]}


identity = Identity()


Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ABC):
    """The settings of a feature encoder. They build its network and, from the trained network, the encoder.

    Attributes:
        objective: training objective of the network, a key of `pretraining.objectives.OBJECTIVES`; None if it is not trained here.
        kind: name of the encoder in `drifting train-encoder`; None if that command does not train it.
        noun: name of the encoder in messages.
        plain: whether the features are the samples themselves, so that there is nothing to build.
        alone: whether only `drifting train-encoder` trains the network, for another encoder to use.
        any_size: whether the network accepts images of other sizes than it was trained on.
        learns: whether the network is trained together with the generator, so that its features change at every step.
    """

    objective: ClassVar[str | None] = None
    kind: ClassVar[str | None] = None
    noun: ClassVar[str] = "an encoder"
    plain: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    @abstractmethod
    def build_network(
        self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]
    ) -> nn.Module | None:
        """Return the network on the CPU, with initial weights or those of its file; None for an encoder without a network.

        Features that the network does not have are refused here, before it is trained.

        Args:
            image_shape: channels, height and width of an image; samples that are not images have other shapes.
            num_classes: number of labels, if the network learns them.
            read: reads the weights of a file named in the settings.

        Raises:
            InputError: if the images, the features or the weights do not fit.
        """

    @abstractmethod
    def build_features(self, network: nn.Module | None, device: str = "cpu") -> FeatureEncoder:
        """Return the encoder over a trained network on a device. The network is frozen in place."""

    @property
    def weights_file(self) -> str | None:
        """The file or the published artifact of the weights; None if the run trains them."""
        return getattr(self, "weights", None)

    @property
    def published(self) -> str | None:
        """Name of the authors' network of this size, for an encoder that a run never trains; None for any other encoder."""
        return None

    @property
    def learns_classes(self) -> bool:
        """Whether the training needs labels."""
        return False

    def check(self, prefix: str = "") -> None:  # noqa: B027 - the pixels have nothing to check
        """Raise InputError if training cannot work with a setting; the error names the setting after the prefix."""

    def as_trained(self, weights: str, before: "EncoderConfig") -> "EncoderConfig":
        """Return the encoder over the network trained with these settings, to replace the encoder of a run.

        Args:
            weights: file of the trained weights.
            before: the encoder to replace.
        """
        if self.objective is None:
            raise InputError("a run that trains no encoder")
        return replace(self, weights=weights)  # pyright: ignore[reportCallIssue] - a field of all that are trained


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(EncoderConfig):
    """Drift in the space of the samples themselves, see `Identity`."""

    plain: ClassVar[bool] = True

    def build_network(self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]) -> None:
        """Return None: there is no network."""

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> FeatureEncoder:
        """Return the encoder that leaves samples as they are."""
        return identity


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """Settings of a training other than its length and learning rate. The defaults suit trainings of a few thousand steps.

    Attributes:
        optimizer: train with "adamw" or with "muon", see `training.state`.
        precision: compute precision of the network during training: float32 or bfloat16; weights, loss and averages stay float32.
        betas: decay rates of the moments of AdamW.
        weight_decay: weight decay of the optimizer; 0 for none.
        max_grad_norm: norm that gradients are scaled down to.
        warmup_steps: number of steps over which the learning rate rises linearly, after which it is constant; None for a rise and a
            cosine decay, see `schedule_factor`.
        ema_decay: decay of the exponential average of the weights, which the trained network takes; None for the last weights.
    """

    optimizer: str = "adamw"
    precision: str = "float32"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_steps: int | None = None
    ema_decay: float | None = None

    def factor(self, number: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 1, divided by the highest learning rate."""
        return schedule_factor(number, steps) if self.warmup_steps is None else min(1.0, number / max(1, self.warmup_steps))


STEADY = Optimization()


def schedule_factor(number: int, steps: int) -> float:
    """Return the learning rate of a step divided by the highest one: a linear rise, then half a cosine that ends near 0."""
    rise = max(1.0, _WARMUP * steps)
    if number <= rise:
        return number / rise
    return 0.5 * (1 + math.cos(math.pi * (number - rise) / (steps + 1 - rise)))
