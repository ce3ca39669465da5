"""A quick try of any preset: two steps of training, a checkpoint and an evaluation, on data that it makes itself.

The code is that of the full preset, in tiny sizes, see `presets.settings`: it tells in seconds whether a machine can run it. The
code of full size makes what a recipe needs: a cache of latents, an encoder, a classifier. The figures mean nothing.
"""

import dataclasses
import inspect
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifting import presets, runs
from drifting._checks import check_device
from drifting._files import check_writable
from drifting.config import ClassifierConfig, RunConfig
from drifting.data import ImagesData
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.synthetic import write_convnext, write_images, write_vae
from drifting.distributed import join
from drifting.errors import InputError
from drifting.presets.imagenet256 import RECIPES, mae
from drifting.presets.settings import LATENT_IMAGE_SIZE, smoke
from drifting.runs.folder import ENCODER_WEIGHTS, make_room

# In the folder of the run, what is made for it; version 0.1 called the extractor a judge.
MADE = "smoke"
_PARTS = {"images", "vae", "latents", "encoder", "convnext", "extractor", "judge"}
_SAMPLES = 16

# Pixels to a side of images in memory, by the name of their data set.
_SIDES = {"mnist": 28, "cifar10": 32}


def try_preset(
    name: str,
    save_dir: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    **choices: Any,
) -> runs.Run | runs.TrainedNetwork:
    """Train the tiny version of a preset, evaluate it and return it.

    Args:
        name: of the preset.
        save_dir: the run folder; by default runs/smoke/NAME, where what is there is replaced.
        overwrite: replace a run in `save_dir`.
        settings: what may differ from the tiny version, see `presets.adjust`.
        choices: what the preset lets one choose; data and encoder are made where they are not among them.

    Raises:
        InputError: as the full preset does.
    """
    folder, processes = Path("runs") / "smoke" / name if save_dir is None else Path(save_dir), join()
    made = folder / MADE
    if _needs_data(name) and "data" not in choices:
        choices = {**choices, "data": str(made / "images")}
    given = presets.adjust(smoke(presets.preset(name, **choices)), **(settings or {}))
    config = _with_names(given, made)
    check_device(given.device)
    check_writable(folder, "save_dir")
    with processes.main_process_first():
        if processes.is_main_process:
            replace = overwrite or save_dir is None
            _check_made(made, overwrite=replace)
            make_room(folder, overwrite=replace)
            shutil.rmtree(made, ignore_errors=True)
            _make(given, config, made)
    trained = runs.train(config, folder, overwrite=True)
    if isinstance(trained, runs.Run) and processes.is_main_process:
        with warnings.catch_warnings():
            # Figures of so few samples are not reliable.
            warnings.simplefilter("ignore", UserWarning)
            runs.load_run(folder).evaluate(count=_SAMPLES, **_seen_by(trained.config, made))
    processes.barrier()
    return trained


def _needs_data(name: str) -> bool:
    """Return whether a preset cannot be had without data."""
    parameters = inspect.signature(presets.PRESETS[name].make).parameters if name in presets.PRESETS else {}
    return "data" in parameters and parameters["data"].default is inspect.Parameter.empty


def _check_made(made: Path, *, overwrite: bool) -> None:
    """Raise InputError unless what a quick try makes may take the place of what is there."""
    found = {path.name for path in made.iterdir()} if made.is_dir() else set()
    if found - _PARTS:
        raise InputError(f"save_dir is '{made.parent}', whose folder '{made.name}' is not of a quick try: name another")
    if found and not overwrite:
        raise InputError(f"save_dir is '{made.parent}', which already holds a run: pass --overwrite, or choose another folder")


def _with_names(config: Any, made: Path) -> Any:
    """Return a configuration that names its data and what its encoder needs, where they were left to it; `_make` makes them."""
    if getattr(config.data, "path", "") is None:
        place = made / ("latents" if config.data.latent else "images")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(place)))
    if _has_masked_features(config):
        weights = config.encoder.weights or str(made / "encoder" / ENCODER_WEIGHTS)
        convnext = None if config.encoder.convnext is None else str(made / "convnext")
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights=weights, convnext=convnext))
    return config


def _make(given: Any, config: Any, made: Path) -> None:
    """Make what a configuration names and was not given."""
    images, own = made / "images", getattr(config.data, "path", None) in (str(made / "images"), str(made / "latents"))
    data = config.data
    if own and data.latent:
        write_images(images, image_size=LATENT_IMAGE_SIZE, channels=3)
        write_latents(images, write_vae(made / "vae"), made / "latents", CacheSettings(image_size=LATENT_IMAGE_SIZE))
    elif own and data.kind == "streamed":
        write_images(images, image_size=data.image_size, channels=3)
    elif own:
        write_images(images, image_size=_SIDES.get(data.name, 16), channels=3 if data.color else 1)
    if _has_masked_features(config):
        if given.encoder.weights is None:
            kind = RECIPES[config.preset.removeprefix("imagenet256-")].encoder
            runs.train(dataclasses.replace(smoke(mae(kind)), data=config.data), made / "encoder")
        if config.encoder.convnext is not None:
            write_convnext(Path(config.encoder.convnext))


def _has_masked_features(config: Any) -> bool:
    return config.noun == "generator" and config.encoder.published is not None


def _seen_by(config: RunConfig, made: Path) -> dict[str, Any]:
    """Return the extractor of a run, and which real images it is compared with where they are not its own data."""
    images = made / "images"
    if config.data.kind not in ("images", "streamed"):
        return {}
    if not images.is_dir():
        return {"extractor": "pixels"}
    # A classifier as those of the presets are; a covariance of all pixels would take minutes.
    shown = ImagesData(name="smoke", path=str(images))
    extractor = runs.train(smoke(ClassifierConfig(preset="smoke", data=shown)), made / "extractor").folder
    return {"extractor": str(extractor)} | ({"real": str(images)} if config.data.latent else {})
