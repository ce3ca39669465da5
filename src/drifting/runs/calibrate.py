"""Propose temperatures for a preset or a run from its real data, in its features and at the sizes of its groups."""

import dataclasses
from pathlib import Path
from typing import cast

import torch

from drifting._checks import check_seed
from drifting._torch import stream_seed
from drifting.config import AnyConfig, RunConfig
from drifting.errors import InputError
from drifting.runs.folder import ENCODER_WEIGHTS
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.train import build_encoder, build_positives, find_weights, resolve
from drifting.training.calibration import Calibration, calibrate_temperatures


def calibrate(config: AnyConfig, folder: str | Path | None = None, *, seed: int = 0) -> Calibration:
    """Return proposed temperatures of a run, from the real samples of one step.

    Args:
        config: configuration of the run, such as a preset.
        folder: folder of a run, whose trained encoder is used; None if the run trains none.
        seed: seed of the draw.

    Raises:
        InputError: if the encoder is not trained yet, or a step has fewer than 4 positives of a label.
    """
    check_seed(seed)
    if config.noun != "generator":
        raise InputError(f"preset is '{config.preset}', which trains no generator and has no temperatures: name another")
    config = dataclasses.replace(cast(RunConfig, resolve(find_weights(config))), cache_features=False)
    weights = None if folder is None else Path(folder) / ENCODER_WEIGHTS
    if config.trains_encoder and (weights is None or not weights.exists()):
        way = "name the folder of a run that has trained it, or pass --encoder-weights"
        raise InputError(f"encoder is {type(config.encoder).__name__}, which is not trained yet: {way}")
    network = config.build_network()
    if network is not None and config.trains_encoder and weights is not None:
        network = prepare_encoder(config, weights.parent, network)
    schedule, encoder = config.schedule, build_encoder(config, network)
    positives = build_positives(config, encoder, source=config.data.source(config.seed))
    rng = torch.Generator(config.device).manual_seed(stream_seed(seed, "calibration"))
    labels = None
    if positives.num_classes is not None:
        labels = torch.randperm(positives.num_classes, generator=rng, device=rng.device)[: schedule.labels_per_step]
    drawn = positives.draw(labels, schedule.generated + schedule.positives, rng)
    return calibrate_temperatures(
        {name: value.cpu() for name, value in drawn.items()},
        generated=schedule.generated,
        field=config.loss.field,
        normalize_features=config.loss.normalize_features,
        present=config.loss.temperatures,
    )


def lines(calibration: Calibration) -> list[tuple[str, str, str]]:
    """Return the aim of each temperature, the temperature, and the effective number of positives over the features, as text."""
    return [
        (proposal.aim, f"{proposal.temperature:g}", _range(list(proposal.neighbors.values())))
        for proposal in (*calibration.proposals, *calibration.present)
    ]


def flags(calibration: Calibration) -> str:
    """Return the flags that set the proposed temperatures."""
    return "--temperatures " + " ".join(f"{temperature:g}" for temperature in calibration.temperatures)


def _range(numbers: list[float]) -> str:
    least, most = (f"{number:.0f}" if number >= 10 else f"{number:.2g}" for number in (min(numbers), max(numbers)))
    return least if least == most else f"{least} to {most}"
