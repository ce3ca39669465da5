"""The user's own images: sizes that are chosen by them, and encoders that were trained before."""

import dataclasses
import importlib
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from drifting import presets, runs
from drifting.checkpoint import load_tensors, save_tensors
from drifting.cli import main
from drifting.encoders import AutoencoderConfig, MAEFeaturesConfig, ResNetConfig, SimCLRConfig
from drifting.encoders.autoencoder import Autoencoder
from drifting.encoders.autoencoder import available_features as autoencoder_features
from drifting.encoders.resnet import ResNet
from drifting.encoders.resnet import available_features as resnet_features
from drifting.errors import InputError
from drifting.presets.variants import smoke
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.train import build_encoder, resolve
from tests.cli.test_bad_input import refused
from tests.support.image_folders import write_images

__all__ = ["refused"]

# The package of presets has a function of this name.
own_images = importlib.import_module("drifting.presets.images")

SIZES = "--width 9 --batch-size 16 --steps 3"


def _write(folder: Path, classes: int, each: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Path:
    """Write images of chance, as many of each class."""
    channels, height, width = shape
    pixels = torch.randint(256, (height, width, channels), dtype=torch.uint8).squeeze(-1).numpy()
    for label in range(classes):
        (folder / f"{label:04d}").mkdir(parents=True)
        for index in range(each):
            Image.fromarray(pixels).save(folder / f"{label:04d}" / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("classes", "each", "labels", "generated", "positives"),
    [(1, 20, 1, 128, 126), (2, 20, 2, 64, 72), (3, 100, 3, 42, 84), (10, 40, 4, 32, 36), (300, 2, 8, 16, 16)],
)
def test_sizes_are_chosen_by_the_images(tmp_path, classes, each, labels, generated, positives):
    config = presets.preset("images", data=str(_write(tmp_path / "own", classes, each)))
    found = config.schedule
    assert (found.labels_per_step, found.generated, found.positives) == (labels, generated, positives)
    # A tenth is held out, but no class's only image; of a batch no image is there twice.
    assert config.encoder.batch_size <= min(128, classes * each)
    assert 400 <= config.encoder.steps <= 1000
    resolve(config)


def test_sizes_of_images_that_cannot_be_read_are_the_usual_ones_and_the_run_tells_why(tmp_path):
    config = presets.preset("images", data=str(tmp_path / "nowhere"))
    assert (config.schedule.labels_per_step, config.schedule.generated) == (4, 32)
    with pytest.raises(InputError, match="which does not exist"):
        resolve(config)


@pytest.mark.parametrize(
    ("shape", "absent", "present"),
    [
        ((1, 28, 28), {"chroma_std_4", "stage2_mean_4"}, {"code", "image_std_4"}),
        ((3, 32, 32), set(), {"chroma_std_4", "stage2_std_4"}),
        ((3, 128, 128), {"image_mean_4", "chroma_std_4"}, {"image_mean", "stage2_std_4"}),
    ],
)
def test_features_are_those_that_the_images_have(tmp_path, shape, absent, present):
    config = resolve(presets.preset("images", data=str(_write(tmp_path / "own", 2, 11, shape))))
    names = set(config.encoder.features)
    assert present <= names
    assert not absent & names
    build_encoder(config, config.build_network())


@pytest.mark.parametrize(
    ("images", "classes", "shape", "features"),
    [
        (5000, 10, (3, 64, 64), {"stage4_mean", "stage2_std_4", "stage3_mean_4", "image_mean_8", "chroma_std_8"}),
        (2000, 2, (3, 32, 32), {"stage4_mean_2", "stage3_mean_4", "image_mean_4", "chroma_std_4"}),
        (2000, 2, (1, 28, 28), {"stage4_mean_2", "image_std_4"}),
        (1999, 10, (3, 64, 64), {"code", "stage2_mean_4", "image_mean_8"}),
        (5000, 1, (3, 64, 64), {"code", "stage2_mean_4", "image_mean_8"}),
    ],
)
def test_many_images_with_classes_get_an_encoder_that_learns_the_classes(images, classes, shape, features):
    found = own_images.DataSize(images, classes, shape)
    encoder, generator = own_images._encoder(found), own_images._generator(found)
    learns = images >= 2000 and classes > 1
    assert isinstance(encoder, ResNetConfig if learns else AutoencoderConfig)
    assert features <= set(encoder.features)
    assert not any(name.endswith("_4" if shape[1] == 64 else "_8") and "stage" not in name for name in encoder.features)
    assert getattr(encoder, "resize", None) == (32 if learns and shape[1] == 64 else None)
    assert generator.doublings == (3 if shape[1] == 64 else 2)
    known = resnet_features(_resnet(shape, encoder.resize)) if learns else autoencoder_features(Autoencoder(shape))
    assert set(encoder.features) <= set(known)


def _resnet(shape: tuple[int, int, int], resize: int | None) -> ResNet:
    halves = (0.5,) * shape[0]
    return ResNet("resnet10", shape, num_classes=2, small_stem=True, width=2, resize=resize, statistics=(halves, halves))


def test_steps_of_the_encoder_can_be_chosen(gray_folder):
    config = presets.preset("images", data=str(gray_folder))
    changed = presets.adjust(config, steps=3, encoder_steps=5)
    assert (changed.encoder.steps, changed.schedule.steps) == (5, 3)
    assert dataclasses.replace(changed.encoder, steps=config.encoder.steps) == config.encoder
    given = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights="x"))
    for other in (presets.preset("toy"), presets.preset("mnist-classifier"), given):
        with pytest.raises(InputError, match="encoder_steps is 5, but no encoder is trained before a generator: leave it out"):
            presets.adjust(other, encoder_steps=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, gray_folder) -> dict[str, Path]:
    """Encoders that were trained before, on the images of `gray_folder`."""
    root = tmp_path_factory.mktemp("encoders")
    for kind in ("supervised", "simclr", "mae"):
        main(["train-encoder", kind, "--data", str(gray_folder), "--save-dir", str(root / kind), *SIZES.split()])
    run = smoke(presets.preset("images", data=str(gray_folder)))
    prepare_encoder(resolve(run), root / "autoencoder", resolve(run).build_network())
    return {kind: root / kind for kind in ("supervised", "simclr", "mae", "autoencoder")}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["supervised", "simclr", "mae", "autoencoder"])
def test_encoder_that_was_trained_before_brings_its_settings(folders, gray_folder, tmp_path, kind, assert_same_tensors):
    weights = folders[kind] / "encoder.safetensors"
    configs = [presets.preset("images", data=str(gray_folder), encoder_weights=str(place)) for place in (folders[kind], weights)]
    assert configs[0] == configs[1]
    encoder = configs[0].encoder
    assert encoder.weights == str(weights)
    assert encoder.width == (9 if kind != "autoencoder" else 4)
    run = runs.train(dataclasses.replace(smoke(configs[0]), encoder=encoder), tmp_path / "run")
    original = load_tensors(weights)
    for name, value in load_tensors(run.folder / "encoder.safetensors").items():
        assert torch.equal(value, original[name]), name
    presets.check_choices(run.config, "images", encoder_weights=str(folders[kind]))
    presets.check_choices(run.config, "images", encoder_weights=str(weights))
    with pytest.raises(InputError, match="encoder_weights is 'other', but the run to resume has"):
        presets.check_choices(run.config, "images", encoder_weights="other")


def test_every_preset_with_an_encoder_takes_a_trained_one(folders):
    for name in ("mnist-encoder", "cifar10-multiscale", "images"):
        encoder = presets.preset(name, data="x", encoder_weights=str(folders["simclr"])).encoder
        assert (type(encoder), encoder.width, encoder.crop) == (SimCLRConfig, 9, 0.8)
        assert "stage4_mean" in encoder.features
    assert type(presets.preset("cifar10-simclr", encoder_weights=str(folders["mae"])).encoder) is MAEFeaturesConfig


@pytest.mark.parametrize(("kind", "fits"), [("simclr", True), ("mae", False), ("autoencoder", False)])
def test_encoder_of_other_images_is_refused(folders, tmp_path, kind, fits):
    data = str(write_images(tmp_path / "larger", {"a": 12, "b": 12}, size=16))
    config = presets.preset("images", data=data, encoder_weights=str(folders[kind]))
    if fits:
        assert resolve(config).data.image_shape == (1, 16, 16)
    else:
        with pytest.raises(InputError, match=r"an encoder of 1 x 8 x 8 images, but the data are 1 x 16 x 16: train another"):
            resolve(config)
    colored = str(write_images(tmp_path / "colored", {"a": 12, "b": 12}, channels=3))
    with pytest.raises(InputError, match=r"an encoder of 1 x 8 x 8 images, but the data are 3 x 8 x 8: train another"):
        resolve(presets.preset("images", data=colored, encoder_weights=str(folders[kind])))


def test_weights_without_settings_are_those_of_the_preset(folders, gray_folder, tmp_path):
    shutil.copy(folders["autoencoder"] / "encoder.safetensors", tmp_path / "mine.safetensors")
    config = presets.preset("images", data=str(gray_folder), encoder_weights=str(tmp_path / "mine.safetensors"))
    assert isinstance(config.encoder, AutoencoderConfig)
    assert config.encoder.width == 32
    with pytest.raises(InputError, match=r"mine\.safetensors' do not fit the configuration"):
        resolve(config).build_network()
    fitting = dataclasses.replace(config.encoder, width=4, code_dim=8)
    assert resolve(dataclasses.replace(config, encoder=fitting)).build_network() is not None


def test_bad_encoder_weights(refused, folders, images_run, gray_folder, tmp_path):
    command = f"train images --data {gray_folder} --save-dir x --encoder-weights"
    refused(f"{command} nowhere", "encoder_weights is 'nowhere', where there are none", "name the folder of a trained encoder")
    (tmp_path / "empty").mkdir()
    refused(f"{command} empty", "encoder_weights is 'empty', where there are none")
    refused(
        f"train mnist-pixel --encoder-weights {folders['mae']}",
        "encoder_weights is",
        "'mnist-pixel' has no encoder",
        "leave it out",
    )
    refused(f"train toy --encoder-weights {folders['mae']}", "encoder_weights is", "'toy' has no encoder", "leave it out")
    refused(f"{command} {folders['mae']} --encoder-steps 3", "encoder_steps is 3", "leave it out")
    shutil.copytree(images_run, tmp_path / "classifier")
    text = (tmp_path / "classifier" / "config.json").read_text()
    (tmp_path / "classifier" / "config.json").write_text("{}")
    refused(f"{command} classifier", "config.json' has no version")
    (tmp_path / "classifier" / "config.json").write_text(text)
    save_tensors(tmp_path / "classifier" / "encoder.safetensors", {"x": torch.zeros(1)})
    refused(f"{command} classifier", "do not fit the configuration")


def test_encoder_steps_on_the_command_line(refused, tmp_path, gray_folder):
    refused("train toy --encoder-steps 3", "encoder_steps is 3", "leave it out")
    refused(f"train images --data {gray_folder} --encoder-steps 0", "encoder.steps is 0: pass at least 1")


@pytest.mark.parametrize(("each", "expected"), [(20, "4 test images are too few"), (9, "1 test image is too few"), (30, None)])
def test_test_images_too_few_to_evaluate_on_are_reported_before_training(tmp_path, each, expected):
    data = resolve(presets.preset("images", data=str(write_images(tmp_path / "own", {"a": each, "b": each})))).data
    notes = [line for line in data.report() if "test image" in line and line.startswith("note")]
    assert len(notes) == (expected is not None)
    assert all(expected in note and "which need 6" in note for note in notes)
