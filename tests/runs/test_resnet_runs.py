"""Runs in the features of a ResNet: trained by classes, by SimCLR, or given as a file."""

import dataclasses
import json

import pytest
import torch

from drifting import presets, runs
from drifting.checkpoint import load_tensors, save_tensors
from drifting.config import RunConfig, from_json, to_json
from drifting.data import ImagesData, images
from drifting.data.readers.find import LabelError
from drifting.encoders import ResNetConfig, SimCLRConfig
from drifting.errors import InputError
from drifting.runs.folder import make_room
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.train import build_encoder, resolve
from tests.support.image_folders import write_images
from tests.support.small_runs import shrunk

SIZES = {"width": 4, "feature_dims": (24,), "steps": 12, "batch_size": 16}
CLASSES = ResNetConfig(**SIZES, features=("stage4_mean", "stage1_mean", "image_mean_4"))
VIEWS = SimCLRConfig(**SIZES)


def _with(config: RunConfig, encoder: ResNetConfig) -> RunConfig:
    return resolve(dataclasses.replace(config, encoder=encoder))


@pytest.fixture(params=[CLASSES, VIEWS], ids=["classes", "simclr"])
def config(request, tiny_images) -> RunConfig:
    return _with(tiny_images, request.param)


def test_configuration_comes_back_from_json(config):
    assert from_json(to_json(config), "x") == config


def test_network_is_trained_once_and_its_probe_is_kept(config, tmp_path, assert_same_tensors):
    network = prepare_encoder(config, tmp_path, config.build_network())
    before = config.build_network().state_dict()
    assert not torch.equal(network.state_dict()["layer4.0.conv1.weight"], before["layer4.0.conv1.weight"])
    assert not network.training
    facts = json.loads((tmp_path / "encoder.json").read_text())
    assert 0 <= facts["linear_probe_accuracy"] <= 1
    assert (facts["num_train_images"], facts["num_test_images"]) == (81, 9)
    (tmp_path / "encoder.json").unlink()
    assert_same_tensors(prepare_encoder(config, tmp_path, config.build_network()).state_dict(), network.state_dict())
    assert not (tmp_path / "encoder.json").exists()


def test_classes_that_are_easy_are_found_by_the_probe(tiny_images, tmp_path):
    config = _with(tiny_images, dataclasses.replace(CLASSES, steps=60))
    prepare_encoder(config, tmp_path, config.build_network())
    assert json.loads((tmp_path / "encoder.json").read_text())["linear_probe_accuracy"] == 1


def test_same_seed_gives_the_same_network(config, tmp_path, assert_same_tensors):
    first, second = (prepare_encoder(config, tmp_path / name, config.build_network()) for name in _folders(tmp_path, "a", "b"))
    assert_same_tensors(first.state_dict(), second.state_dict())


def _folders(root, *names):
    for name in names:
        make_room(root / name, overwrite=False)
    return names


@pytest.mark.usefixtures("no_pictures")
def test_generator_is_trained_in_its_features(config, tmp_path):
    run = runs.train(config, tmp_path / "run")
    line = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name.split("/")[1] for name in line if name.startswith("drift_norm/")} == set(config.encoder.features)
    features = build_encoder(config, config.build_network())(torch.zeros(2, 1, 8, 8))
    assert features["stage4_mean"].shape == (2, 1, 24)
    with pytest.raises(InputError, match="already holds a run"):
        runs.train(config, tmp_path / "run")


@pytest.mark.usefixtures("no_pictures")
def test_joint_population_still_learns_from_the_classes(gray_folder, tmp_path):
    config = presets.adjust(presets.preset("images", data=str(gray_folder), unconditional=True), steps=2, batch_size=8)
    config = _with(dataclasses.replace(config, snapshot_samples=20), CLASSES)
    assert config.data.num_classes is None
    assert config.build_network().num_classes == 3
    runs.train(config, tmp_path / "run")


def test_labels_that_cannot_be_used_are_left_out_and_damaged_images_are_reported(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "own", {"train/a": 12, "train/b": 12, "test/a": 4, "test/c": 4})
    data = ImagesData(name="own", path=str(folder))
    with pytest.raises(LabelError, match=r"class 2 \('c'\) has no images"):
        data.load("train")
    train, test = (data.load(split, labeled=True) for split in ("train", "test"))
    assert (train.labels, len(train.images)) == (None, 24)
    assert test.labels.tolist() == [0] * 4 + [2] * 4
    (folder / "train" / "a" / "003.png").write_bytes(b"no image")
    monkeypatch.setattr(images, "_load_split", images._load_split.__wrapped__)
    with pytest.raises(InputError, match=r"003\.png', which is truncated or corrupted"):
        data.load("train", labeled=True)


@pytest.mark.parametrize("names", [("a",), (".",)], ids=["one class", "no labels"])
def test_where_there_are_no_two_classes_there_is_no_probe(tmp_path, names):
    folder = write_images(tmp_path / "own", dict.fromkeys(names, 20))
    config = _with(shrunk(presets.preset("images", data=str(folder), unconditional=True)), VIEWS)
    prepare_encoder(config, tmp_path, config.build_network())
    assert json.loads((tmp_path / "encoder.json").read_text()) == {"num_train_images": 18, "num_test_images": 2}


def test_published_weights_are_used_as_they_are(tiny_images, tmp_path, assert_same_tensors):
    published = _with(tiny_images, CLASSES).build_network()
    save_tensors(tmp_path / "published.safetensors", published.state_dict())
    config = _with(tiny_images, dataclasses.replace(CLASSES, weights=str(tmp_path / "published.safetensors")))
    make_room(tmp_path / "run", overwrite=False)
    network = prepare_encoder(config, tmp_path / "run", config.build_network())
    kept = {name: value for name, value in published.state_dict().items() if not name.startswith("fc.")}
    assert_same_tensors(network.state_dict(), kept)
    assert_same_tensors(load_tensors(tmp_path / "run" / "encoder.safetensors"), kept)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tiny_images, tmp_path):
    save_tensors(
        tmp_path / "other.safetensors", _with(tiny_images, dataclasses.replace(CLASSES, width=8)).build_network().state_dict()
    )
    for path, reason in ((tmp_path / "other.safetensors", "do not fit"), (tmp_path / "none.pth", "which is not a file")):
        config = _with(tiny_images, dataclasses.replace(CLASSES, weights=str(path)))
        with pytest.raises(InputError, match=reason):
            runs.train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": 0}, r"encoder\.steps is 0"),
        ({"width": 0}, r"encoder\.width is 0"),
        ({"learning_rate": 0.0}, r"encoder\.learning_rate is 0"),
        ({"features": ("stage9",)}, "features has 'stage9': did you mean 'stage"),
        ({"arch": "resnet19"}, "resnet19"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny_images, tmp_path, change, reason):
    with pytest.raises(InputError, match=reason):
        runs.train(_with(tiny_images, dataclasses.replace(CLASSES, **change)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_points_have_no_resnet(tiny_toy, tmp_path):
    with pytest.raises(InputError, match="encoder is a ResNet, but the data set has no images"):
        runs.train(dataclasses.replace(tiny_toy, encoder=CLASSES), tmp_path / "run")
