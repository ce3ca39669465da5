"""Drifting: generators that sample in one forward pass, trained by a drift field.

Three nouns, three places: the drift field moves samples (`fields`, `loss`), the feature encoder says in which space (`encoders`),
the generator makes them (`generators`).

Source: "Generative Modeling via Drifting", arXiv:2602.04770. An unofficial implementation.
"""

from drifting.errors import InputError
from drifting.fields.diagnostics import KernelStatistics, kernel_statistics, mean_shift_at
from drifting.fields.mean_shift import Field, mean_shift, mean_shift_field
from drifting.guidance import draw_guidance_scale, unconditional_weight
from drifting.loss import DriftingLoss, DriftLoss, FeatureLoss, drifting_loss
from drifting.metrics.two_sample import energy_distance
from drifting.version import __version__

__all__ = [
    "DriftLoss",
    "DriftingLoss",
    "FeatureLoss",
    "Field",
    "InputError",
    "KernelStatistics",
    "__version__",
    "draw_guidance_scale",
    "drifting_loss",
    "energy_distance",
    "kernel_statistics",
    "mean_shift",
    "mean_shift_at",
    "mean_shift_field",
    "unconditional_weight",
]
