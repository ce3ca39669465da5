"""What a feature encoder is: samples -> named feature maps, frozen, with gradients passing through it."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

# name -> [samples, locations, channels]; every location is a drifting problem of its own.
Features = dict[str, Float[Tensor, "b k _"]]
FeatureEncoder = Callable[[Float[Tensor, "b *sample"]], Features]
