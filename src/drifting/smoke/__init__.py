"""A quick try of any preset: two steps of training, a checkpoint and an evaluation, on data that it makes itself.

The code is that of the full preset, in tiny sizes, see `presets.smoke`: it tells in seconds whether a machine can run it. What a
recipe needs is made by the code that makes it at full size: a cache of latents, an encoder, a judge. The figures mean nothing.
"""

import dataclasses
import inspect
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifting import presets, runs
from drifting.config import AnyConfig, ClassifierConfig, ImageFilesData, ImagesData, LatentsData, MAEFeaturesConfig, RunConfig
from drifting.files import check_writable
from drifting.latent_cache import CacheSettings, write_latents
from drifting.presets.imagenet256 import RECIPES, mae
from drifting.presets.smoke import LATENT_IMAGE_SIZE, smoke
from drifting.run_folder import make_room
from drifting.smoke.made import write_convnext, write_images, write_vae

# In the folder of the run, what is made for it.
MADE = "smoke"
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
    folder = Path("runs") / "smoke" / name if save_dir is None else Path(save_dir)
    made = folder / MADE
    if _needs_data(name) and "data" not in choices:
        choices = {**choices, "data": str(made / "images")}
    config = presets.adjust(smoke(presets.preset(name, **choices)), **(settings or {}))
    check_writable(folder, "save_dir")
    make_room(folder, overwrite=overwrite or save_dir is None)
    shutil.rmtree(made, ignore_errors=True)
    config = _with_encoder(_with_data(config, made), made)
    trained = runs.start(config, folder, overwrite=True)
    if isinstance(trained, runs.Run):
        with warnings.catch_warnings():
            # Of so few samples nothing is reliable.
            warnings.simplefilter("ignore", UserWarning)
            runs.load(folder).evaluate(count=_SAMPLES, **_seen_by(trained.config, made))
    return trained


def _needs_data(name: str) -> bool:
    """Return whether a preset cannot be had without data."""
    parameters = inspect.signature(presets.PRESETS[name].make).parameters if name in presets.PRESETS else {}
    return "data" in parameters and parameters["data"].default is inspect.Parameter.empty


def _with_data(config: AnyConfig, made: Path) -> Any:
    """Return a configuration that names its data, made where they were left to it."""
    data, images = config.data, made / "images"
    match data:
        case ImagesData(path=path, name=name) if path in (None, str(images)):
            write_images(images, image_size=_SIDES.get(name, 16), channels=3 if data.colour else 1)
        case ImageFilesData(path=None, image_size=size):
            write_images(images, image_size=size, channels=3)
        case LatentsData(path=None):
            write_images(images, image_size=LATENT_IMAGE_SIZE, channels=3)
            write_latents(images, write_vae(made / "vae"), made / "latents", CacheSettings(image_size=LATENT_IMAGE_SIZE))
            return dataclasses.replace(config, data=dataclasses.replace(data, path=str(made / "latents")))
        case _:
            return config
    return dataclasses.replace(config, data=dataclasses.replace(data, path=str(images)))


def _with_encoder(config: Any, made: Path) -> Any:
    """Return a configuration that names the weights of its encoder, trained on its own data where they were left to it."""
    if not isinstance(config, RunConfig) or not isinstance(config.encoder, MAEFeaturesConfig):
        return config
    encoder = config.encoder
    if encoder.weights is None:
        kind = RECIPES[config.preset.removeprefix("imagenet256-")].encoder
        alone = dataclasses.replace(smoke(mae(kind)), data=config.data)
        encoder = dataclasses.replace(encoder, weights=str(runs.train_encoder(alone, made / "encoder").weights))
    if encoder.convnext is not None:
        encoder = dataclasses.replace(encoder, convnext=str(write_convnext(made / "convnext")))
    return dataclasses.replace(config, encoder=encoder)


def _seen_by(config: RunConfig, made: Path) -> dict[str, Any]:
    """Return who judges a run, and which real images it is compared with where they are not its own data."""
    images = made / "images"
    if not isinstance(config.data, ImagesData | ImageFilesData | LatentsData):
        return {}
    if not images.is_dir():
        return {"judge": "pixels"}
    # A classifier as those of the presets are; a covariance of all pixels would take minutes.
    shown = ImagesData(name="smoke", path=str(images))
    judge = runs.train_judge(smoke(ClassifierConfig(preset="smoke", data=shown)), made / "judge").folder
    return {"judge": str(judge)} | ({"real": str(images)} if isinstance(config.data, LatentsData) else {})
