"""A quick try of a preset: its tiny version is trained and evaluated in seconds, on data and networks that are made here.

The images are noise of three classes, and the networks, a VAE and a backbone, are untrained and have a few kilobytes.
"""

import dataclasses
import importlib
import inspect
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drifting import presets
from drifting._checks import check_device
from drifting._extras import install_hint, quietly
from drifting._files import check_writable
from drifting._torch import initial_weights
from drifting.config import ClassifierConfig, RunConfig
from drifting.data import ImagesData
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.distributed import ALONE, join
from drifting.errors import InputError
from drifting.presets.imagenet256 import RECIPES, mae
from drifting.presets.variants import LATENT_IMAGE_SIZE, smoke
from drifting.runs.folder import ENCODER_WEIGHTS, make_room
from drifting.runs.run import Run, TrainedNetwork, load_run
from drifting.runs.train import train, train_network

# Folder inside that of a tiny run for the inputs that are made for it. Version 0.1 called the extractor a judge.
_INPUTS = "smoke"
_PARTS = {"images", "vae", "latents", "encoder", "convnext", "extractor", "judge"}
_SAMPLES = 16

# Name of a data set -> side of its images in pixels.
_SIDES = {"mnist": 28, "cifar10": 32}


def try_preset(
    name: str,
    save_dir: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    **choices: Any,
) -> Run | TrainedNetwork:
    """Train the tiny version of a preset, evaluate it and return it.

    Args:
        name: name of the preset.
        save_dir: folder of the run; by default runs/smoke/NAME, whose content is replaced.
        overwrite: replace a run in `save_dir`.
        settings: changes of the tiny version, see `presets.adjust`.
        choices: arguments of the preset; data and encoder are made unless they are among them.

    Raises:
        InputError: as the full preset does.
    """
    folder, processes = Path("runs") / "smoke" / name if save_dir is None else Path(save_dir), join()
    inputs = folder / _INPUTS
    needed = [each.name for each in presets.choices(name) if each.value is inspect.Parameter.empty]
    if "data" in needed and "data" not in choices:
        choices = {**choices, "data": str(inputs / "images")}
    tiny = presets.adjust(smoke(presets.preset(name, **choices)), **(settings or {}))
    config = _with_paths(tiny, inputs)
    check_device(tiny.device)
    check_writable(folder, "save_dir")
    with processes.main_process_first():
        if processes.is_main_process:
            replace = overwrite or save_dir is None
            _check_inputs(inputs, overwrite=replace)
            make_room(folder, overwrite=replace)
            shutil.rmtree(inputs, ignore_errors=True)
            _make_inputs(tiny, config, inputs)
    trained = train(config, folder, overwrite=True)
    if isinstance(trained, Run) and processes.is_main_process:
        with warnings.catch_warnings():
            # Figures of so few samples are not reliable.
            warnings.simplefilter("ignore", UserWarning)
            load_run(folder).evaluate(count=_SAMPLES, **_evaluation_options(trained.config, inputs))
    processes.barrier()
    return trained


def _check_inputs(inputs: Path, *, overwrite: bool) -> None:
    """Raise InputError unless the inputs of a quick try may replace what is there."""
    found = {path.name for path in inputs.iterdir()} if inputs.is_dir() else set()
    if found - _PARTS:
        raise InputError(f"save_dir is '{inputs.parent}', whose folder '{inputs.name}' is not of a quick try: name another")
    if found and not overwrite:
        raise InputError(f"save_dir is '{inputs.parent}', which already holds a run: pass --overwrite, or choose another folder")


def _with_paths(config: Any, inputs: Path) -> Any:
    """Return a configuration with paths of the data and of what its encoder needs, where it names none; see `_make_inputs`."""
    # Digits have no path to set: scikit-learn includes them.
    if getattr(config.data, "path", "") is None and "path" in (field.name for field in dataclasses.fields(config.data)):
        place = inputs / ("latents" if config.data.latent else "images")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(place)))
    if _has_masked_features(config):
        weights = config.encoder.weights or str(inputs / "encoder" / ENCODER_WEIGHTS)
        convnext = None if config.encoder.convnext is None else str(inputs / "convnext")
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights=weights, convnext=convnext))
    return config


def _make_inputs(tiny: Any, config: Any, inputs: Path) -> None:
    """Make what the configuration with paths names and the tiny one does not."""
    images, own = inputs / "images", getattr(config.data, "path", None) in (str(inputs / "images"), str(inputs / "latents"))
    data = config.data
    if own and data.latent:
        write_images(images, image_size=LATENT_IMAGE_SIZE, channels=3)
        write_latents(images, write_vae(inputs / "vae"), inputs / "latents", CacheSettings(image_size=LATENT_IMAGE_SIZE))
    elif own and data.on_disk:
        write_images(images, image_size=data.image_size, channels=3)
    elif own:
        write_images(images, image_size=_SIDES.get(data.name, 16), channels=3 if data.color else 1)
    if _has_masked_features(config):
        if tiny.encoder.weights is None:
            kind = RECIPES[config.preset.removeprefix("imagenet256-")].encoder
            _train_alone(dataclasses.replace(smoke(mae(kind)), data=config.data), inputs / "encoder")
        if config.encoder.convnext is not None:
            write_convnext(Path(config.encoder.convnext))


def _train_alone(config: Any, folder: Path) -> Path:
    """Train a network in the first of all processes, and return its folder."""
    return train_network(config, folder, ALONE, resume=False, overwrite=False).folder


def _has_masked_features(config: Any) -> bool:
    return config.noun == "generator" and config.encoder.published is not None


def _evaluation_options(config: RunConfig, inputs: Path) -> dict[str, Any]:
    """Return the arguments of the evaluation: the extractor and, unless they are the run's own data, the real images."""
    images = inputs / "images"
    if not config.data.makes_images:
        return {}
    if not images.is_dir():
        return {"extractor": "pixels"}
    # A classifier, because a covariance of all pixels would take minutes.
    data = ImagesData(name="smoke", path=str(images))
    extractor = _train_alone(smoke(ClassifierConfig(preset="smoke", data=data)), inputs / "extractor")
    return {"extractor": str(extractor)} | ({"real": str(images)} if config.data.latent else {})


CLASSES = ("bright", "dark", "striped")

# Number of images of each class.
_COUNTS = {"train": 8, "test": 6}
_SEED = 0


def write_images(folder: Path, *, image_size: int, channels: int) -> Path:
    """Write noisy PNG images of three classes into train/CLASS and test/CLASS, and return the folder."""
    rng = np.random.default_rng(_SEED)
    shape = (image_size, image_size, channels)
    levels = {"bright": 200.0, "dark": 60.0, "striped": 255.0 * (np.arange(image_size) // 2 % 2)[:, None, None]}
    for split, count in _COUNTS.items():
        for name in CLASSES:
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = (levels[name] + 20 * rng.standard_normal(shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(place / f"{index}.png")
    return folder


def write_vae(folder: Path) -> Path:
    """Write an untrained auto-encoder with latents of four channels and half the side, and return its folder."""
    diffusers = _library("diffusers", "vae")
    with initial_weights(_SEED, "smoke auto-encoder"):
        network = diffusers.AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=4,
        )
    network.save_pretrained(folder)
    return folder


def write_convnext(folder: Path) -> Path:
    """Write an untrained ConvNeXt-V2 of four stages in the format of a published one, and return its folder."""
    transformers = _library("transformers", "encoders")
    with initial_weights(_SEED, "smoke backbone"):
        sizes = transformers.ConvNextV2Config(depths=[1, 1, 1, 1], hidden_sizes=[4, 8, 16, 32], image_size=32)
        with quietly("transformers"):
            transformers.ConvNextV2Model(sizes).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"smoke is given, which needs the library {name} here: {install_hint(extra)}") from None
