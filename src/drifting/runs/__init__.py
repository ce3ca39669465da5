"""The life of a run: train it, resume it, load it, sample from it, evaluate it, compare and share it.

The functions that are used most are here; each file tells one part of the story.
"""

from drifting.runs.run import Run, TrainedNetwork, check_output, load, write_samples
from drifting.runs.train import start, train, train_encoder, train_judge
from drifting.training.signals import Interrupted

__all__ = [
    "Interrupted",
    "Run",
    "TrainedNetwork",
    "check_output",
    "load",
    "start",
    "train",
    "train_encoder",
    "train_judge",
    "write_samples",
]
