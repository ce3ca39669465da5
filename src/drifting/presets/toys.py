"""Presets for points in the plane: the smallest runs, which show the field at work."""

import dataclasses

from drifting.config import LossConfig, RunConfig
from drifting.data import PointsData, ToyData
from drifting.data.toys import toy as check_toy
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.generators import MLPConfig
from drifting.training.schedule import Schedule

# Toys trained with the settings of the authors' notebook.
ANCHORS = ("swiss_roll", "checker")


def toy(dataset: str | None = None, data: str | None = None) -> RunConfig:
    """Train on a toy distribution or on the user's own points.

    Args:
        dataset: one of `data.toys.TOYS`; moons by default.
        data: path of a .npy file of shape [n, 2] or of a text table, instead of a toy.

    Command: drifting train toy --dataset moons. Hardware: two CPU cores. Time: two minutes; four for the toys that are no anchors.
    Expected: energy distance of 10,000 samples to the data at most 1.5 times that of real points.
    Measured: docs/results.md, 2026-11-25.

    Source: the authors' notebook for swiss_roll and checker; the rest is ours.
    """
    if dataset is not None and data is not None:
        raise InputError(f"dataset is '{dataset}' and data is '{data}': pass one of them")
    dataset = dataset or "moons"
    check_toy(dataset)
    source = ToyData(dataset=dataset) if data is None else PointsData(path=data)
    if data is None and dataset in ANCHORS:
        return anchor(source) if dataset == "swiss_roll" else _faster(anchor(source))
    # The field cannot resolve shapes thinner than its smallest temperature. Sets with more separate parts need fewer noise
    # dimensions.
    if data is None and dataset == "spirals":
        return disconnected(source, temperatures=(0.05, 0.2), noise_dim=2)
    if data is None and dataset == "circles":
        return disconnected(source, temperatures=(0.05, 0.3))
    return disconnected(source)


def anchor(data: ToyData | PointsData) -> RunConfig:
    """Return the settings of the notebook: one small temperature, no normalization, Adam at 1e-3.

    The start and the end are ours. At 0.05, mass moves slowly along the roll. Therefore the network is more nonlinear from the
    first step on, and Adam's second moment forgets the large gradients of the start. At the end, when the drift is only noise, the
    learning rate decays.
    """
    return RunConfig(
        preset="toy",
        data=data,
        generator=MLPConfig(noise_dim=32, width=256, depth=3, gain=1.3),
        loss=LossConfig(temperatures=(0.05,), field=MeanShift(affinity_floor=0.0), normalize_features=False, normalize_drift=False),
        schedule=Schedule(
            steps=2000,
            generated=2048,
            positives=2048,
            learning_rate=1e-3,
            decay_after=1200,
            decay_power=3.0,
            betas=(0.9, 0.99),
            max_grad_norm=None,
            ema_decay=0.96,
        ),
    )


def _faster(config: RunConfig) -> RunConfig:
    """Return an anchor with more and larger steps, because mass moves between the cells of a checkerboard only at their corners."""
    faster = dataclasses.replace(config.schedule, learning_rate=2e-3, decay_after=1600, decay_power=2.0, ema_decay=0.99)
    return dataclasses.replace(config, schedule=faster)


def disconnected(data: ToyData | PointsData, *, temperatures: tuple[float, ...] = (0.1, 0.3), noise_dim: int = 4) -> RunConfig:
    """Return settings for points in separate parts.

    At a temperature of 0.05 no mass moves between distant parts, so the temperatures are larger. The network must split its noise,
    which it learns fast enough only with few noise dimensions, large initial weights and large steps. The steps shrink later,
    because at the end the normalized drift is only noise. docs/log.md lists what was tried.
    """
    config = anchor(data)
    return dataclasses.replace(
        config,
        generator=MLPConfig(noise_dim=noise_dim, width=256, depth=3, gain=3.0),
        loss=dataclasses.replace(config.loss, temperatures=temperatures, normalize_drift=True),
        schedule=dataclasses.replace(config.schedule, learning_rate=6e-3, decay_after=1000, betas=(0.9, 0.95), ema_decay=0.998),
    )
