"""Encoders trained on their own: `drifting train-encoder`, from the command line to a run in their features."""

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from drifting._json import load_json
from drifting._progress import TrainingProgress
from drifting.checkpoint import load_tensors
from drifting.cli import main
from drifting.config import EncoderRunConfig, from_json, to_json
from drifting.data import ImagesData
from drifting.encoders import MAEConfig, ResNetConfig, SimCLRConfig
from drifting.encoders.mae import MaskedAutoencoder
from drifting.errors import InputError
from drifting.evaluation.extractors import linear_probe
from drifting.presets.encoders import KINDS, encoder
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.train import build_encoder, resolve
from tests.cli.test_bad_input import refused
from tests.support.image_folders import bars, write_images

__all__ = ["refused"]

RESNET = "--width 4 --feature-dims 16 24 --batch-size 16 --steps 4"
SIZES = {"supervised": RESNET, "simclr": RESNET, "mae": "--width 9 --batch-size 16 --steps 4"}
FILES = ["checkpoints", "config.json", "encoder.json", "encoder.safetensors"]
# What ResNet-18 is called in torchvision, and the projections.
NAMES = r"((conv1|bn1|fc|layer[1-4]\.[01]\.(conv[12]|bn[12]|downsample\.[01]))\.\w+|projections\.stage[34]\.weight)"


def _signed(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def _read(folder: Path) -> tuple[dict, EncoderRunConfig, Any]:
    """Return the figures, the configuration and the network of a folder."""
    config = from_json(load_json(folder / "config.json"), "here")
    assert isinstance(config, EncoderRunConfig)
    network: Any = config.build_network()
    network.eval()
    network.load_state_dict(load_tensors(folder / "encoder.safetensors"))
    return json.loads((folder / "encoder.json").read_text()), config, network


@pytest.fixture(scope="module")
def misnamed(tmp_path_factory) -> Path:
    """A folder whose test images lie in those of other classes, so that a probe cannot be right of both splits."""
    folder = write_images(tmp_path_factory.mktemp("images") / "own", {"train/a": 20, "train/b": 20, "train/c": 20})
    write_images(folder / "test", {"b": 4, "c": 4, "a": 4}, seed=1)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, misnamed) -> dict[str, Path]:
    """The folder of a trained encoder of each kind; copy it before changing it."""
    root = tmp_path_factory.mktemp("encoders")
    for kind, sizes in SIZES.items():
        main(["train-encoder", kind, "--data", str(misnamed), "--save-dir", str(root / kind), *sizes.split()])
    return {kind: root / kind for kind in SIZES}


@pytest.mark.parametrize("kind", SIZES)
def test_figures_are_of_the_saved_weights_and_of_the_test_images(folders, kind):
    assert sorted(path.name for path in folders[kind].iterdir()) == FILES
    figures, config, network = _read(folders[kind])
    train, test = (config.data.load(split) for split in ("train", "test"))
    features = [network.embed(_signed(part.images)).detach() for part in (train, test)]
    labels: list[Any] = [part.labels for part in (train, test)]
    of_train, of_test = (linear_probe(features[0], labels[0], features[split], labels[split]) for split in (0, 1))
    assert figures["linear_probe_accuracy"] == of_test != of_train
    assert {name: value for name, value in figures.items() if name.startswith("num_")} == {
        "num_train_images": 60,
        "num_test_images": 12,
        "num_probe_images": 60,
    }
    assert ("test_accuracy" in figures) == (kind == "supervised")


def test_supervised_encoder_names_classes(command, gray_folder, tmp_path):
    sizes = "--width 4 --batch-size 16 --steps 25 --flip 0"
    result = command("train-encoder", "supervised", "--data", gray_folder, "--save-dir", tmp_path / "x", *sizes.split())
    figures, config, network = _read(tmp_path / "x")
    test: Any = config.data.load("test")
    named = [int(network(_signed(image[None])).argmax()) for image in test.images]
    right = sum(first == second for first, second in zip(named, test.labels.tolist(), strict=True))
    assert figures["test_accuracy"] == right / 9 > 0.8
    probe, accuracy, weights = result.out.splitlines()[-3:]
    assert probe == f"linear probe accuracy {figures['linear_probe_accuracy']:.4f}"
    assert accuracy == f"test accuracy {figures['test_accuracy']:.4f}"
    assert weights == str(tmp_path / "x" / "encoder.safetensors")


@pytest.mark.parametrize("kind", SIZES)
def test_training_depends_on_the_seed_alone(folders, misnamed, tmp_path, command, kind, assert_same_tensors):
    settings = ["--data", misnamed, *SIZES[kind].split()]
    torch.manual_seed(99)
    assert command("train-encoder", kind, *settings, "--save-dir", tmp_path / "same").status == 0
    assert command("train-encoder", kind, *settings, "--save-dir", tmp_path / "other", "--seed", 1).status == 0
    places = (folders[kind], tmp_path / "same", tmp_path / "other")
    first, same, other = (load_tensors(path / "encoder.safetensors") for path in places)
    assert_same_tensors(same, first)
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    network: Any = _read(folders[kind])[1].build_network()
    untrained = network.state_dict()
    assert any(not torch.equal(value, untrained[name]) for name, value in first.items() if value.is_floating_point())


@pytest.mark.parametrize("kind", ["supervised", "simclr"])
def test_weights_are_loaded_by_a_run(folders, tiny_images, tmp_path, kind, assert_same_tensors):
    path = folders[kind] / "encoder.safetensors"
    saved = load_tensors(path)
    assert [name for name in saved if not re.fullmatch(NAMES, name)] == []
    assert ("fc.weight" in saved) == (kind == "supervised")
    names = ("stage3_mean", "stage4_mean", "stage1_mean")
    loaded = ResNetConfig(width=4, feature_dims=(16, 24), features=names, weights=str(path))
    run = resolve(dataclasses.replace(tiny_images, encoder=loaded))
    network: Any = prepare_encoder(run, tmp_path, run.build_network())
    assert_same_tensors(network.state_dict(), {name: value for name, value in saved.items() if not name.startswith("fc.")})
    images = _signed(bars(torch.tensor([0, 1, 2])))
    features = {name: value[:, 0] for name, value in build_encoder(run, network)(images).items()}
    own = _read(folders[kind])[2]
    torch.testing.assert_close(features["stage4_mean"], own.embed(images))
    means = {stage: map.mean((2, 3)) for stage, map in own.maps(images).items()}
    torch.testing.assert_close(features["stage3_mean"], means["stage3"] @ saved["projections.stage3.weight"].T)
    torch.testing.assert_close(features["stage1_mean"], means["stage1"])
    with pytest.raises(InputError, match="do not fit"):
        dataclasses.replace(run, encoder=dataclasses.replace(loaded, feature_dims=(24,))).build_network()


def test_every_setting_reaches_the_configuration(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "own", {"a": 12, "b": 12}, channels=3)
    common = "--data own --steps 1 --batch-size 3 --learning-rate 0.01 --seed 5 --device cpu --image-size 12 --channels 1"
    network = "--width 2 --feature-dims 8 --small-stem False --crop 0.1 --flip 0.2"
    trained = {"steps": 1, "batch_size": 3, "learning_rate": 0.01}
    resnet = {"width": 2, "feature_dims": (8,), "small_stem": False, "crop": 0.1, "flip": 0.2}
    colors = "--jitter 0.3 --gray 0.4 --temperature 0.6 --view-size 9"
    views = {"jitter": 0.3, "gray": 0.4, "temperature": 0.6, "view_size": 9}
    patches = {"width": 10, "patch": 3, "classification_weight": 0.25}
    for kind, given, expected in (
        ("supervised", f"{network} --arch resnet50", ResNetConfig(arch="resnet50", **resnet, **trained)),
        ("simclr", f"{network} {colors}", SimCLRConfig(**resnet, **views, **trained)),
        (
            "mae",
            "--arch resnet50 --width 10 --patch 3 --classification-weight 0.25",
            MAEConfig(depths=(3, 4, 6, 3), **patches, **trained),
        ),
    ):
        assert command("train-encoder", kind, *common.split(), *given.split()).status == 0
        saved = from_json(load_json(tmp_path / "runs" / f"own-{kind}" / "config.json"), "here")
        found = {"image_shape": (1, 12, 12), "num_classes": 2, "class_names": ("a", "b"), "counts": (11, 11)}
        found["fingerprint"] = saved.data.fingerprint
        data = ImagesData(name="own", path=str(tmp_path / "own"), image_size=12, channels=1, **found)
        assert isinstance(saved, EncoderRunConfig)
        assert saved == EncoderRunConfig(data=data, encoder=expected, seed=5, device="cpu")
        assert resolve(saved) == saved
        assert from_json(to_json(saved), "here") == saved


def test_data_sets_are_found_by_name(monkeypatch, tmp_path):
    assert encoder("simclr").data == ImagesData(name="cifar10")
    assert encoder("simclr", data="me/birds").data == ImagesData(name="birds", path="me/birds")
    monkeypatch.setenv("DRIFTING_DATA", str(tmp_path))
    write_images(tmp_path / "mine", {"a": 3, "b": 4, "c": 5})
    data = resolve(encoder("simclr", name="mine")).data
    assert (data.name, data.path, data.image_shape, data.class_names) == ("mine", None, (1, 8, 8), ("a", "b", "c"))
    assert data.counts == (3, 4, 4)


@pytest.mark.parametrize(
    ("kind", "layout"), [("simclr", {".": 20}), ("mae", {"a": 20}), ("simclr", {"train/a": 9, "train/b": 9, "test": 2})]
)
def test_images_without_classes_are_learned_from_without_a_probe(command, tmp_path, kind, layout):
    folder = write_images(tmp_path / "own", layout)
    sizes = ("--steps", 1, "--width", 9, "--batch-size", 4)
    result = command("train-encoder", kind, "--data", folder, "--save-dir", tmp_path / "x", *sizes)
    assert (result.status, result.err) == (0, "")
    assert json.loads((tmp_path / "x" / "encoder.json").read_text()) == {"num_train_images": 18, "num_test_images": 2}
    reason, weights = result.out.splitlines()[-2:]
    assert reason == "no accuracy, because the images do not have two classes or more"
    assert weights == str(tmp_path / "x" / "encoder.safetensors")


SETTINGS = {
    "superwised": ("kind is 'superwised': did you mean 'supervised'? There are supervised, simclr, mae",),
    "supervised --arch resnet19": ("arch is 'resnet19': pass resnet10 or resnet18 or resnet50",),
    "mae --arch vgg": ("arch is 'vgg': pass resnet10 or resnet18 or resnet50",),
    **{f"{kind} --width 0": ("width is 0: pass at least 1",) for kind in KINDS},
    "supervised --width -3": ("width is -3: pass at least 1",),
    "simclr --batch-size 1": ("batch_size is 1, too few to normalize over: pass at least 2",),
    "supervised --batch-size 1": ("batch_size is 1, too few to normalize over: pass at least 2",),
    "mae --batch-size 0": ("batch_size is 0: pass at least 1",),
    "simclr --steps 0": ("steps is 0: pass at least 1",),
    "mae --learning-rate nan": ("learning_rate is nan", "above 0"),
    "supervised --seed -1": ("seed is -1", "pass a whole number from 0"),
    "supervised --device tpu": ("device is 'tpu'", "pass cpu, cuda"),
    "supervised --temperature 0.1": ("temperature is 0.1, which 'supervised' does not take: leave it out",),
    "mae --crop 0.1": ("crop is 0.1, which 'mae' does not take: leave it out",),
    "simclr --patch 2": ("patch is 2, which 'simclr' does not take: leave it out",),
    "supervised --cut-mix 2": ("cut_mix is 2.0: pass a number from 0 to 1",),
    "supervised --optimizer sgd": ("optimizer is 'sgd', not adamw or muon",),
    "simclr --precision float16": ("precision is 'float16', not float32 or bfloat16",),
    "supervised --label-smoothing 1": ("label_smoothing is 1.0: pass a number from 0 to below 1",),
    "simclr --crop 1": ("crop is 1.0: pass a number from 0 to below 1",),
    "supervised --flip 2": ("flip is 2.0: pass a number from 0 to 1.0",),
    "simclr --view-size 0": ("view_size is 0: pass at least 1",),
    "simclr --view-size 9": ("view_size is 9: pass at most 8, the shorter side of the images",),
    "simclr --temperature 0": ("temperature is 0.0: pass a number above 0",),
    "simclr --feature-dims 8 0": ("feature_dims is 0: pass at least 1",),
    "supervised --feature-dims 1 2 3 4 5": ("feature_dims is (1, 2, 3, 4, 5)", "at most 4 stages"),
    "mae --patch 3": ("patch is 3: pass a divisor of both sides of the images, which are 8 x 8",),
    "mae --patch 8": ("patch is 8, which cuts images into 1 x 1 patches", "pass one that leaves an even number"),
    "mae --width 8": ("width is 8, whose last maps are blank", "pass at least 9"),
    "mae --width 3 --patch 1": ("width is 3, whose last maps are blank", "pass at least 5"),
    "mae --classification-weight 2": ("classification_weight is 2.0: pass a number from 0 to 1",),
    "mae --betas 2 2": ("betas is (2.0, 2.0): pass two numbers from 0 to below 1",),
    "simclr --channels 2": ("channels is 2", "pass 1 or 3"),
}


@pytest.mark.parametrize("arguments", SETTINGS)
def test_bad_setting(refused, gray_folder, folders, tmp_path, arguments):
    shutil.copytree(folders["mae"], tmp_path / "x")
    command = f"train-encoder {arguments} --data {gray_folder} --save-dir x --overwrite"
    refused(command, *SETTINGS[arguments])


DATA = {
    "supervised, no labels": ({"x": {".": 20}}, "supervised --data x", ("x', which has no labels", "one sub-folder per class")),
    "mae, no labels": ({"x": {".": 20}}, "mae --classification-weight 0.1 --data x", ("x', which has no labels",)),
    "one class": ({"x": {"a": 20}}, "supervised --data x", ("images are all of one class: add another", "by simclr")),
    "test": ({"x": {"train/a": 9, "train/b": 9, "test": 2}}, "supervised --data x", ("x', which has no labels",)),
    "few": ({"x": {"a": 2, "b": 2}}, "simclr --data x", ("4 images are too few to hold out a tenth: add a folder test/",)),
    "nowhere": ({}, "simclr --data nowhere", ("data is 'nowhere', which does not exist",)),
    "name": ({}, "simclr --name cifar11", ("dataset is 'cifar11': did you mean 'cifar10'?", "pass --data FOLDER")),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data(refused, tmp_path, case):
    layouts, arguments, words = DATA[case]
    for name, layout in layouts.items():
        write_images(tmp_path / name, layout)
    refused(f"train-encoder {arguments}", *words)


def test_encoder_that_is_there_is_replaced_only_when_asked(refused, command, misnamed, folders, tmp_path):
    shutil.copytree(folders["simclr"], tmp_path / "x")
    arguments = f"train-encoder mae --data {misnamed} --save-dir x --width 9 --steps 1"
    refused(arguments, "save_dir is 'x', which already holds a run: pass --resume or --overwrite, or choose another folder")
    assert command(*arguments.split(), "--overwrite").status == 0
    assert isinstance(_read(tmp_path / "x")[1].encoder, MAEConfig)
    (tmp_path / "file").touch()
    refused(arguments.replace("save-dir x", "save-dir file"), "save_dir is 'file'", "choose a folder you may write to")


def test_encoder_in_place_of_a_generator(refused, folders):
    folder = folders["mae"]
    for verb in ("sample", "evaluate"):
        refused([verb, folder], f"run is '{folder}', an encoder, not a generator: name the folder of a generator")
    refused(["train", "toy", "--save-dir", folder, "--resume"], "preset is 'toy', but the run to resume has train-encoder")


@pytest.mark.parametrize("kind", SIZES)
def test_stopped_training_goes_on_bit_for_bit_by_the_command_that_it_names(
    command, misnamed, folders, tmp_path, monkeypatch, assert_same_tensors, kind
):
    advance = TrainingProgress.advance

    def interrupting(self, done, figure=None):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, done, figure)

    arguments = ("train-encoder", kind, "--data", misnamed, "--save-dir", tmp_path / "x", *SIZES[kind].split())
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "advance", interrupting)
        stopped = command(*arguments)
    assert stopped.status != 0
    assert "Stopped at step 3 of 4; everything is saved" in stopped.err
    assert not (tmp_path / "x" / "encoder.safetensors").exists()
    again = stopped.err.split("Go on with: drifting ")[1].split()
    assert again == ["train-encoder", kind, "--save-dir", str(tmp_path / "x"), "--resume"]
    assert command(*again).status == 0
    assert_same_tensors(*(load_tensors(path / "encoder.safetensors") for path in (folders[kind], tmp_path / "x")))
    assert (tmp_path / "x" / "encoder.json").read_text() == (folders[kind] / "encoder.json").read_text()


def test_resumption_of_another_encoder_is_refused(refused, folders, tmp_path):
    shutil.copytree(folders["simclr"], tmp_path / "x")
    refused("train-encoder mae --save-dir x --resume", "kind is 'mae', but the run to resume has simclr")
    refused("train-encoder simclr --save-dir x --resume --width 5", "width is 5, but the run to resume has 4")
    refused("train-encoder simclr --save-dir x --resume --seed 1", "seed is 1, but the run to resume has 0")
    refused(
        "train-encoder simclr --save-dir x --resume --steps 9", "steps is 9, but the run to resume has 4", "device and keep may"
    )
    refused("train-encoder simclr --save-dir x --resume --image-size 9", "image_size is '9', but the run to resume has None")
    refused("train-encoder simclr --save-dir x --resume --data y", "data is 'y', but the run to resume has")
    refused("train-encoder simclr --save-dir x --resume --overwrite", "resume and overwrite are both given")
    refused("train-encoder simclr --save-dir y --resume", "save_dir is 'y', which holds no run to resume")


def test_diverged_training_leaves_nothing_in_the_way(refused, command, misnamed, tmp_path):
    arguments = f"train-encoder simclr --data {misnamed} --save-dir x {RESNET}"
    assert command(*arguments.split(), "--learning-rate", "1e30").status == 1
    assert not (tmp_path / "x").exists()


def test_configurations_of_networks_that_are_not_meant_are_refused(tiny_images):
    with pytest.raises(InputError, match="encoder is MAEConfig, which is trained on its own: pass MAEFeaturesConfig"):
        dataclasses.replace(tiny_images, encoder=MAEConfig())
    with pytest.raises(InputError, match=r"weights is 'x\.pth', but the encoder is to be trained: leave it out"):
        EncoderRunConfig(data=ImagesData(name="cifar10"), encoder=ResNetConfig(weights="x.pth"))


@pytest.mark.parametrize(("patch", "least", "name"), [(1, 5, "layer4"), (2, 9, "layer3")])
def test_masked_autoencoders_that_are_narrower_than_allowed_see_nothing(tiny_images, patch, least, name):
    images = _signed(bars(torch.tensor([0, 1, 2])))
    config = EncoderRunConfig(data=resolve(tiny_images).data, encoder=MAEConfig(patch=patch, width=least))
    networks: list[Any] = [MaskedAutoencoder((1, 8, 8), patch=patch, width=least - 1, depths=(2, 2, 2, 2)), config.build_network()]
    blank, seen = (network.maps(images)[name].mean((2, 3)).std(0).max().item() for network in networks)
    # Of a map of one value nothing is left but rounding, times a thousand.
    assert blank < 1e-3
    assert seen > 0.1
    with pytest.raises(InputError, match=f"width is {least - 1}, .* pass at least {least}"):
        dataclasses.replace(config, encoder=MAEConfig(patch=patch, width=least - 1)).build_network()
