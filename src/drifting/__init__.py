"""Drifting: generators that sample in one forward pass, trained by a drift field.

Three nouns, three places: the drift field moves samples (`fields`, `loss`), the feature encoder says in which space (`encoders`),
the generator makes them (`generators`). The life of a run is here: `preset`, `train`, `load`.

Source: "Generative Modeling via Drifting", arXiv:2602.04770. An unofficial implementation.
"""

from typing import TYPE_CHECKING

from drifting._lazy import lazy_names as _lazy_names
from drifting.errors import InputError

if TYPE_CHECKING:
    from drifting.loss import DriftingLoss, DriftLoss, FeatureLoss, drifting_loss
    from drifting.presets import preset
    from drifting.runs import Run, load, train
    from drifting.training import Schedule, Trainer

__all__ = [
    "DriftLoss",
    "DriftingLoss",
    "FeatureLoss",
    "InputError",
    "Run",
    "Schedule",
    "Trainer",
    "__version__",
    "drifting_loss",
    "load",
    "preset",
    "train",
]

__version__ = "0.1.0"

# Loaded when they are first used: torch takes seconds, in which a command could not yet be stopped in a sentence.
__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "loss": ("DriftLoss", "DriftingLoss", "FeatureLoss", "drifting_loss"),
        "presets": ("preset",),
        "runs": ("Run", "load", "train"),
        "training": ("Schedule", "Trainer"),
    },
)
