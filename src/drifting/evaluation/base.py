"""What all evaluations share."""

from collections.abc import Callable, Sequence

from torch import Tensor

# (count, seed) -> samples
Sampler = Callable[[int, int], Tensor]
Metrics = dict[str, int | float | Sequence[float]]
