"""What a feature encoder is: samples -> named feature maps, frozen, with gradients passing through it.

Shapes: b samples, k locations; every location is a drifting problem of its own.

Source: paper, appendix A.5.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import nearest_name
from drifting.errors import InputError

# name -> [samples, locations, channels]
Features = dict[str, Float[Tensor, "b k _"]]
FeatureEncoder = Callable[[Float[Tensor, "b *sample"]], Features]


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


def identity(samples: Float[Tensor, "b *sample"]) -> Features:
    """Return each sample, flattened, as one location of the feature "sample".

    This is enough for points and small images, not for natural ones: their distances are so alike that the kernel goes flat.
    """
    return {"sample": samples.flatten(1)[:, None, :]}
