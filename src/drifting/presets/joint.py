"""One population of images in place of one for each class."""

import dataclasses

from drifting.config import RunConfig


def joint(config: RunConfig) -> RunConfig:
    """Return a run of images with one population, as large as those of the labels of a step together, without guidance."""
    schedule = config.schedule
    sizes = {name: schedule.labels_per_step * getattr(schedule, name) for name in ("generated", "positives")}
    together = dataclasses.replace(schedule, labels_per_step=1, guidance_scale=1.0, **sizes)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, conditional=False), schedule=together)
