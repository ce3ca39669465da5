"""The life of a run: train it, resume it, load it, sample from it, evaluate it, compare and share it.

The functions that are used most are here; each file tells one part of the story.
"""

from drifting.runs.run import Run, TrainedNetwork, load_run
from drifting.runs.samples import check_output, write_samples
from drifting.runs.share import ReleasedGenerator, load
from drifting.runs.train import train
from drifting.training.loop import Interrupted

__all__ = [
    "Interrupted",
    "ReleasedGenerator",
    "Run",
    "TrainedNetwork",
    "check_output",
    "load",
    "load_run",
    "train",
    "write_samples",
]
