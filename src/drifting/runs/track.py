"""The tracker of a run: its configuration, its figures, and pictures of its snapshots."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from drifting import config as configuration
from drifting.config import AnyConfig, RunConfig
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.runs.run import Run
from drifting.runs.samples import can_be_drawn, picture_of
from drifting.training.tracking import Tracking, check_tracker

# Most images of a picture. Points are all shown.
_MOST_IMAGES = 100


def check_track(track: str, config: AnyConfig) -> None:
    """Raise InputError unless a training can be tracked."""
    check_tracker(track)
    if config.noun != "generator":
        raise InputError(f"track is '{track}', but only generators are tracked, not a training of {config.noun}: leave it out")


def tracking(track: str, folder: Path, config: RunConfig, generator: Generator, *, resumed: bool) -> Tracking:
    """Return the tracker of a run.

    Args:
        track: name of the tracker.
        folder: folder of the run.
        config: configuration of the run.
        generator: its generator, whose classes stand above the images.
        resumed: whether the run was resumed.

    Raises:
        InputError: if it does not start.
    """
    run, export = Run(folder, config, generator), config.data.exporter()

    def draw(samples: Tensor) -> Image.Image | None:
        shown = export(samples if samples.ndim == 2 else samples[:_MOST_IMAGES])
        return picture_of(run, shown, None) if can_be_drawn(shown.shape[1:]) else None

    return Tracking(track, folder, configuration.to_json(config), draw=draw, resumed=resumed)
