"""Drifting: generators that sample in one forward pass, trained by a drift field.

The drift field moves samples (`fields`, `loss`), the feature encoder defines the space in which they move (`encoders`), and the
generator makes them (`generators`). A run is made and used with `preset`, `train` and `load`.

Source: "Generative Modeling via Drifting", arXiv:2602.04770. An unofficial implementation.
"""

import importlib.util
from typing import TYPE_CHECKING

from drifting.errors import InputError

if TYPE_CHECKING:
    from drifting.diagnosis import diagnose
    from drifting.loss import DriftingLoss, DriftLoss, FeatureLoss, drifting_loss
    from drifting.presets import preset
    from drifting.runs import Run, load, train
    from drifting.sampling import sample
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
    "sample",
    "train",
]

__version__ = "0.1.0"

# Module -> the names that it offers here.
_MODULES = {
    "diagnosis": ("diagnose",),
    "loss": ("DriftLoss", "DriftingLoss", "FeatureLoss", "drifting_loss"),
    "presets": ("preset",),
    "runs": ("Run", "load", "train"),
    "sampling": ("sample",),
    "training": ("Schedule", "Trainer"),
}


def __getattr__(name: str) -> object:
    """Return a public name or a submodule, imported on first use (PEP 562).

    Importing torch takes seconds, in which Ctrl-C would end a command with a traceback.
    """
    for module, names in _MODULES.items():
        if name in names:
            try:
                value = getattr(importlib.import_module(f"drifting.{module}"), name)
            except ModuleNotFoundError as error:
                from drifting._extras import missing_extra

                if (sentence := missing_extra(error)) is None:
                    raise
                raise ModuleNotFoundError(f"drifting.{name} cannot be imported: {sentence}", name=error.name) from error
            globals()[name] = value
            return value
    if not name.startswith("_") and importlib.util.find_spec(f"drifting.{name}") is not None:
        return importlib.import_module(f"drifting.{name}")
    raise AttributeError(f"module 'drifting' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
