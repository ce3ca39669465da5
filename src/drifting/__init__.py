"""Drifting: generators that sample in one forward pass, trained by a drift field.

Three nouns, three places: the drift field moves samples (`fields`, `loss`), the feature encoder says in which space (`encoders`),
the generator makes them (`generators`).

Source: "Generative Modeling via Drifting", arXiv:2602.04770. An unofficial implementation.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

from drifting.errors import InputError

if TYPE_CHECKING:
    from drifting.fields.base import Field
    from drifting.fields.diagnostics import KernelStatistics, kernel_statistics, mean_shift_at
    from drifting.fields.mean_shift import mean_shift, mean_shift_field
    from drifting.guidance import draw_guidance_scale, unconditional_weight
    from drifting.loss import DriftingLoss, DriftLoss, FeatureLoss, drifting_loss
    from drifting.metrics.two_sample import energy_distance

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

__version__ = "0.1.0"

# Loaded when they are first used: torch takes seconds, in which a command could not yet be stopped in a sentence.
_MODULES = {
    "drifting.fields.diagnostics": ("KernelStatistics", "kernel_statistics", "mean_shift_at"),
    "drifting.fields.base": ("Field",),
    "drifting.fields.mean_shift": ("mean_shift", "mean_shift_field"),
    "drifting.guidance": ("draw_guidance_scale", "unconditional_weight"),
    "drifting.loss": ("DriftLoss", "DriftingLoss", "FeatureLoss", "drifting_loss"),
    "drifting.metrics.two_sample": ("energy_distance",),
}


def __getattr__(name: str) -> object:
    """Return a public name, or a module, that is not loaded yet."""
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(importlib.import_module(module), name)
            return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *__all__})
