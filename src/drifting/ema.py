"""Exponential moving average of a generator's weights: what is sampled from and evaluated."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from drifting.distributed import local


def exponential_average(generator: nn.Module, decay: float) -> AveragedModel:
    """Return an average of the generator that follows it by `update_parameters`; its `module` is the network.

    After k updates the decay in force is min(decay, (1 + k) / (10 + k)), so that a short run does not remember its start.

    Args:
        generator: the network being trained; the first update copies it.
        decay: share of the old average kept at each step in the long run, in [0, 1).
    """

    def update(average: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        kept = torch.as_tensor((1 + updates) / (10 + updates)).clamp(max=decay)
        for old, new in zip(average, current, strict=True):
            mine = local(old)
            mine.lerp_(local(new), 1 - kept.to(mine))

    with torch.no_grad():
        return AveragedModel(generator, multi_avg_fn=update).requires_grad_(False)
