"""Feature encoders that are trained on their own, and runs that use them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, cast

from drifting._checks import nearest_name
from drifting._torch import shapes_only
from drifting.config import AnyConfig, EncoderRunConfig, load_config
from drifting.data import ImagesData
from drifting.encoders import AutoencoderConfig, EncoderConfig, MAEConfig, ResNetConfig, SimCLRConfig
from drifting.encoders.resnet import ResNet, available_features, stage_depths
from drifting.errors import InputError
from drifting.presets.cifar10 import FOUR
from drifting.presets.images import features_of
from drifting.presets.settings import Setting, adjust, choices_of

KINDS: dict[str, type[ResNetConfig | SimCLRConfig | MAEConfig]] = {
    "supervised": ResNetConfig,
    "simclr": SimCLRConfig,
    "mae": MAEConfig,
}


# Files in the folder of a trained encoder.
CONFIG, ENCODER_WEIGHTS = "config.json", "encoder.safetensors"


def with_encoder(config: AnyConfig, weights: str) -> AnyConfig:
    """Return the configuration of a run with a pretrained encoder.

    Weights that `drifting train-encoder` or a generator's run left bring the settings of their network, from the file beside them;
    other files are taken for weights of the network that the encoder has.

    Args:
        config: configuration of the run.
        weights: file of weights, or its folder.

    Raises:
        InputError: if the file does not exist, the file beside it is not the configuration of an encoder, or the run does not
            train a generator in the features of an encoder.
    """
    before: Any = getattr(config, "encoder", None)
    if not hasattr(before, "weights"):
        raise InputError(f"encoder_weights is '{weights}', but '{config.preset}' has no encoder: leave it out")
    place = Path(weights).expanduser().resolve()
    file = place / ENCODER_WEIGHTS if place.is_dir() else place
    if not file.is_file():
        kinds = f"the folder of a trained encoder, its {ENCODER_WEIGHTS}, or another file of weights"
        raise InputError(f"encoder_weights is '{weights}', where there are none: name {kinds}")
    saved = trained_by(str(file))
    if saved is None:
        return dataclasses.replace(config, encoder=dataclasses.replace(before, weights=str(file)))
    try:
        trained = saved.encoder.as_trained(str(file), before)
    except InputError as error:
        raise InputError(f"encoder_weights is '{weights}', {error}: name the folder of a trained encoder") from None
    shape = getattr(saved.data, "image_shape", None)
    if isinstance(trained, AutoencoderConfig | ResNetConfig) and shape is not None:
        trained = dataclasses.replace(trained, features=_features(before, trained, shape))
    return dataclasses.replace(config, encoder=trained)  # pyright: ignore[reportCallIssue]


def trained_by(weights: str) -> Any:
    """Return the configuration of the run that trained an encoder; None if the weights are not those of a run.

    Raises:
        InputError: if the file beside it is the configuration of something else.
    """
    settings = Path(weights).parent / CONFIG
    if Path(weights).name != ENCODER_WEIGHTS or not settings.is_file():
        return None
    saved = load_config(settings)
    if not hasattr(saved, "encoder"):
        raise InputError(f"encoder_weights lie beside '{settings}', which is of no encoder: name the folder of a trained encoder")
    return saved


def check_images(config: AnyConfig) -> None:
    """Raise InputError if a pretrained encoder is known to be trained on images of another shape than those of the run."""
    encoder: Any = getattr(config, "encoder", None)
    weights = None if encoder is None else encoder.weights_file
    saved = None if weights is None else trained_by(weights)
    if encoder is None or saved is None:
        return
    trained, own = (getattr(run.data, "image_shape", None) for run in (saved, config))
    if trained is None or own is None:
        return
    fixed = 1 if encoder.any_size else 3
    if tuple(trained)[:fixed] != tuple(own)[:fixed]:
        shapes = [" x ".join(map(str, shape)) for shape in (trained, own)]
        fix = "train another by drifting train-encoder, or convert the images with --image-size and --channels"
        raise InputError(f"encoder_weights is '{weights}', an encoder of {shapes[0]} images, but the data are {shapes[1]}: {fix}")


def _features(before: EncoderConfig, trained: AutoencoderConfig | ResNetConfig, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the features of a run, or those of the presets, that the trained network has."""
    chosen = getattr(before, "features", None) if type(before) is type(trained) else None
    if isinstance(trained, AutoencoderConfig):
        return chosen or features_of(shape)
    halves = (0.5,) * shape[0]
    with shapes_only():
        sizes = {"small_stem": trained.small_stem, "statistics": (halves, halves)}
        known = available_features(ResNet(trained.arch, shape, num_classes=None, width=1, **sizes))
    return tuple(name for name in chosen or FOUR if name in known)


def encoder(
    kind: str,
    name: str | None = None,
    data: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    **settings: Any,
) -> EncoderRunConfig:
    """Return the configuration of an encoder that learns classes, similarity of two views, or hidden parts of images.

    Args:
        kind: supervised, simclr or mae.
        name: name of the images, and of the data set if `data` is not given: cifar10 by default, or the name of `data`.
        data: folder or Hub id.
        image_size: side in pixels; images are cropped and resized.
        channels: 1 or 3 to convert the images.
        seed: seed of the weights, the order and the augmentation.
        device: device to train on.
        settings: fields of `ResNetConfig`, `SimCLRConfig` or `MAEConfig`; for mae `arch` stands for the `depths` of that network.

    Raises:
        InputError: if there is no such kind, or it has no such setting; if a value does not fit.

    Command: drifting train-encoder simclr. Hardware, time, expected: not run.
    """
    images = ImagesData(name=called(name, data), path=data, image_size=image_size, channels=channels)
    return _adjusted(EncoderRunConfig(data=images, encoder=_kind(kind)(), seed=seed, device=device), settings)


def choices(kind: str) -> list[Setting]:
    """Return the arguments of `encoder` that are not settings, or raise InputError if there is no such kind."""
    _kind(kind)
    chosen = choices_of(functools.partial(encoder, kind))
    arch = Setting("arch", str | None, None, "Depths of its stages: those of resnet10, resnet18 or resnet50.")
    return [*chosen, arch] if kind == "mae" else chosen


def called(name: str | None, data: str | None) -> str:
    """Return the name of the images."""
    return name or (Path(data).resolve().stem if data else "cifar10")


def resumed_encoder(
    saved: AnyConfig, kind: str, *, name: str | None = None, data: str | None = None, **settings: Any
) -> EncoderRunConfig:
    """Return the configuration of an encoder whose training is resumed, with some arguments of `encoder` again.

    Raises:
        InputError: as `encoder`; if the saved one is of something else, or of other images.
    """
    images = {key: settings.pop(key) for key in ("image_size", "channels") if key in settings}
    _kind(kind)
    found = getattr(saved, "kind", saved.preset)
    if found != kind:
        raise InputError(f"kind is '{kind}', but the run to resume has {found}: name another --save-dir")
    if name is not None:
        images["name"] = name
    if data is not None:
        images["data"] = str(Path(data).resolve()) if Path(data).exists() else data
    before = {**vars(saved.data), "data": getattr(saved.data, "path", None)}
    for key, value in images.items():
        if value != before.get(key):
            raise InputError(f"{key} is '{value}', but the run to resume has {before.get(key)}: leave it out")
    return _adjusted(cast(EncoderRunConfig, saved), settings)


def _kind(kind: str) -> type[ResNetConfig | SimCLRConfig | MAEConfig]:
    """Return the configuration of a kind of encoder, or raise InputError."""
    if kind not in KINDS:
        raise InputError(f"kind is '{kind}': did you mean '{nearest_name(kind, KINDS)}'? There are {', '.join(KINDS)}")
    return KINDS[kind]


def _adjusted(config: EncoderRunConfig, settings: dict[str, Any]) -> EncoderRunConfig:
    """Return a configuration with some settings changed; `arch` stands for the depths of that network where there are depths."""
    if "arch" in settings and hasattr(config.encoder, "depths"):
        settings = {"depths": stage_depths(settings["arch"]), **{key: settings[key] for key in settings if key != "arch"}}
    return adjust(config, **settings)
