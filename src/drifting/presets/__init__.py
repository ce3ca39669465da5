"""Presets: functions that return a complete configuration, whose settings can be changed by name."""

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifting._checks import nearest_name
from drifting.config import AnyConfig
from drifting.data.points import TOYS
from drifting.errors import InputError
from drifting.presets import cifar10, imagenet256
from drifting.presets.encoders import with_encoder
from drifting.presets.images import images, images_classifier
from drifting.presets.points_and_digits import digits, mnist_classifier, mnist_encoder, mnist_learned, mnist_pixel, toy
from drifting.presets.settings import Setting, adjust, choices_of

__all__ = ["GROUPS", "PRESETS", "Preset", "adjust", "check_choices", "choices", "default_folder", "folder_of_data", "preset"]

_OPTIONAL = inspect.Parameter("data", inspect.Parameter.KEYWORD_ONLY, default=None)


@dataclass(frozen=True)
class Preset:
    """An entry of `drifting presets`: what the preset makes, its data, its time and the expected result."""

    make: Callable[..., AnyConfig]
    what: str
    data: str
    minutes: str
    expected: str


# Heading -> name -> preset.
GROUPS = {
    "Toys and digits": {
        "toy": Preset(toy, "points in the plane", "eight toys, or --data points.csv", "2 to 4", "energy distance of real data"),
        "digits": Preset(
            digits, "8 x 8 handwritten digits by class", "included in scikit-learn", "1", "97 % classified correctly, no copies"
        ),
    },
    "MNIST": {
        "mnist-pixel": Preset(
            mnist_pixel,
            "28 x 28 digits by class, in the space of their pixels",
            "MNIST",
            "28 on one core without AVX-512",
            "1.8 times the distance of real data, 99.4 % classified correctly",
        ),
        "mnist-encoder": Preset(
            mnist_encoder,
            "the same in a 64-D auto-encoder's features",
            "MNIST",
            "27 on one core without AVX-512",
            "2.0 times, 99 %",
        ),
        "mnist-learned": Preset(
            mnist_learned, "the same in features that are learned meanwhile", "MNIST", "not run in full", "not run in full"
        ),
    },
    "CIFAR-10": {
        f"cifar10-{name}{'-gpu' if gpu else ''}": Preset(
            functools.partial(cifar10.system, name, gpu=True) if gpu else functools.partial(cifar10.system, name),
            f"the same, in the {system.what}, for a GPU" if gpu else f"32 x 32 color images by class, in the {system.what}",
            "CIFAR-10",
            "not run in full, needs a GPU" if gpu else system.minutes,
            "not run" if gpu else system.measured,
        )
        for gpu in (False, True)
        for name, system in cifar10.SYSTEMS.items()
    }
    | {
        "cifar10-learned": Preset(
            cifar10.learned, "the same, in features that are learned meanwhile", "CIFAR-10", "not run in full", "not run in full"
        )
    },
    "Your own images": {
        "images": Preset(
            images, "your own small images", "--data FOLDER or Hub id", "7 on one core", "1.2 times real data's distance"
        ),
    },
    "ImageNet": {
        f"imagenet256-{name}": Preset(
            functools.partial(imagenet256.recipe, name),
            f"256 x 256 {'pixels' if recipe.pixels else 'latents'} of ImageNet by class, {recipe.parameters} M parameters",
            "--data IMAGENET" + ("" if recipe.pixels else ", or its latents"),
            "not run, needs GPUs",
            f"FID {recipe.frechet_distance:g} (paper), not run",
        )
        for name, recipe in imagenet256.RECIPES.items()
    },
    "Classifiers for evaluation": {
        "mnist-classifier": Preset(
            mnist_classifier,
            "the classifier that evaluates MNIST generators",
            "MNIST",
            "3",
            "99.6 % test accuracy",
        ),
        "cifar10-classifier": Preset(
            cifar10.classifier,
            "the classifier that evaluates CIFAR-10 generators",
            "CIFAR-10",
            "2",
            "79 % test accuracy",
        ),
        "images-classifier": Preset(
            images_classifier,
            "the classifier that evaluates generators of your own images",
            "--data FOLDER or Hub id, with classes",
            "1 to 5",
            "see docs/results.md",
        ),
    },
    "Encoders": {
        f"mae-{name}": Preset(
            functools.partial(imagenet256.mae, name),
            f"the masked auto-encoder of the ImageNet recipes, {settings.width} channels wide",
            "--data IMAGENET" + ("" if name.startswith("pixel") else ", or its latents"),
            "not run, needs GPUs",
            "not run",
        )
        for name, settings in imagenet256.ENCODERS.items()
    },
}
PRESETS = {name: preset for group in GROUPS.values() for name, preset in group.items()}


def preset(name: str, **settings: Any) -> Any:
    """Return a preset's configuration by name.

    Args:
        name: one of `PRESETS`.
        settings: arguments of the preset, such as the dataset of a toy, and settings of its configuration by their dotted names, as
            in `preset("cifar10-resnet18", steps=500, **{"encoder.width": 32})`; see `adjust`.

    Raises:
        InputError: if the preset or a setting does not exist.
    """
    make = _entry(name).make
    accepted = inspect.signature(make).parameters
    weights = None if "encoder_weights" in accepted else settings.pop("encoder_weights", None)
    choices = {key: value for key, value in settings.items() if key in accepted}
    changes = {key: value for key, value in settings.items() if key not in accepted}
    every = {argument for entry in PRESETS.values() for argument in inspect.signature(entry.make).parameters}
    for key, value in changes.items():
        if key in every:
            raise InputError(f"{key} is '{value}', which the preset '{name}' does not take: leave it out")
    if "data" not in choices and accepted.get("data", _OPTIONAL).default is inspect.Parameter.empty:
        raise InputError("data is missing: pass --data FOLDER, or a Hub id such as owner/name")
    config = make(**choices)
    config = config if weights is None else with_encoder(config, weights)
    return adjust(config, **changes) if changes else config


def choices(name: str) -> list[Setting]:
    """Return the arguments of a preset, see `preset`, or raise InputError if there is no such preset."""
    chosen = choices_of(_entry(name).make)
    if "encoder_weights" in (each.name for each in chosen):
        return chosen
    weights = "A trained encoder: the folder of `drifting train-encoder` or its file, which brings its settings."
    return [*chosen, Setting("encoder_weights", str | None, None, weights)]


def _entry(name: str) -> Preset:
    if name not in PRESETS:
        raise InputError(f"preset is '{name}': did you mean '{nearest_name(name, PRESETS)}'? There are {', '.join(PRESETS)}")
    return PRESETS[name]


def default_folder(name: str, **choices: Any) -> Path:
    """Return the default run folder of a preset, named after the preset, the toy, or the user's own points or images."""
    if choices.get("data") and name in ("toy", "images"):
        return folder_of_data(Path(choices["data"]).resolve().stem, name, {*PRESETS, *TOYS})
    return Path("runs") / (choices.get("dataset") or name)


def check_choices(config: AnyConfig, name: str, **choices: Any) -> None:
    """Raise InputError unless a saved configuration has this preset and these arguments."""
    wanted = {"preset": name, **choices}
    saved = {"preset": config.preset, **vars(config.data), "data": getattr(config.data, "path", None)}
    saved["encoder_weights"] = weights = getattr(getattr(config, "encoder", None), "weights", None)
    if weights is not None and choices.get("encoder_weights") is not None:
        path = Path(choices["encoder_weights"]).expanduser().resolve()
        if weights in (str(path), str(path / Path(weights).name)):
            wanted["encoder_weights"] = weights
    saved["unconditional"] = not getattr(config.data, "conditional", True)
    for key, value in wanted.items():
        before = saved.get(key)
        if value != before and not (key == "data" and before and Path(value).resolve() == Path(before)):
            raise InputError(f"{key} is '{value}', but the run to resume has {before}: leave it out, or name another --save-dir")


def folder_of_data(name: str, kind: str, taken: Collection[str]) -> Path:
    """Return runs/NAME for a run on the user's own data, or runs/KIND-NAME if the name is one of `taken`."""
    return Path("runs") / (f"{kind}-{name}" if name in taken or not name else name)
