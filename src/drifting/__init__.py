"""Drifting: generators that sample in one forward pass, trained by a drift field.

The drift field moves samples (`fields`, `loss`), the feature encoder defines the space in which they move (`encoders`), and the
generator makes them (`generators`). A run is made and used with `preset`, `train` and `load`.

Source: "Generative Modeling via Drifting", arXiv:2602.04770. An unofficial implementation.
"""

from typing import TYPE_CHECKING

from drifting._lazy import lazy_names as _lazy_names
from drifting.errors import InputError

if TYPE_CHECKING:
    from drifting.diagnosis import diagnose
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
    "diagnose",
    "drifting_loss",
    "load",
    "preset",
    "train",
]

__version__ = "0.1.0"

# Loaded on first use: importing torch takes seconds, in which Ctrl-C would end a command with a traceback.
__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "diagnosis": ("diagnose",),
        "loss": ("DriftLoss", "DriftingLoss", "FeatureLoss", "drifting_loss"),
        "presets": ("preset",),
        "runs": ("Run", "load", "train"),
        "training": ("Schedule", "Trainer"),
    },
)
