"""A factor of all temperatures that is learned during training, by an optimizer of its own.

It starts at 1. Its objective is in `fields.temperature`; of several features, the mean of their slopes counts. The factor has no
weight decay and no warm-up, and does not fall below a thousandth.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting.loss import FeatureLoss

SMALLEST_FACTOR = 1e-3


class LearnedTemperature(nn.Module):
    """The factor and its optimizer.

    Args:
        learning_rate: learning rate of the factor; Adam moves it by about so much in a step.
        device: device of the training.

    Attributes:
        factor: the factor of all temperatures.
    """

    def __init__(self, learning_rate: float, device: torch.device) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), device=device))
        self.optimizer = torch.optim.AdamW([self.factor], lr=learning_rate, weight_decay=0.0, fused=True)

    @property
    def value(self) -> Float[Tensor, ""]:
        """The factor, without gradient."""
        return self.factor.detach().clone()

    @torch.no_grad()
    def learn(self, report: FeatureLoss) -> None:
        """Move the factor by the slopes in the report of a step."""
        slopes = [feature.temperature_slope for feature in report.features.values() if feature.temperature_slope is not None]
        self.factor.grad = (torch.stack(slopes).mean() / self.factor).to(self.factor)
        self.optimizer.step()
        self.factor.clamp_(min=SMALLEST_FACTOR)
