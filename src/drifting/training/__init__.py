"""Training: one pure step, a loop that yields steps, and what is kept of them."""

from drifting.training.calibration import calibrate_temperatures
from drifting.training.loop import Interrupted, Step
from drifting.training.positives import Positives
from drifting.training.schedule import Schedule
from drifting.training.state import DivergenceError, TrainingState
from drifting.training.step import Batch, drifting_step
from drifting.training.tracking import Tracking
from drifting.training.trainer import Trainer

__all__ = [
    "Batch",
    "DivergenceError",
    "Interrupted",
    "Positives",
    "Schedule",
    "Step",
    "Tracking",
    "Trainer",
    "TrainingState",
    "calibrate_temperatures",
    "drifting_step",
]
