"""Configurations of images, encoders, banks and classifiers: what is refused, what is built."""

import dataclasses
import os

import pytest
import torch

from drifting import presets
from drifting.config import to_json
from drifting.data import BankConfig, images
from drifting.data.pixels import to_bytes, to_signed
from drifting.encoders import AutoencoderConfig, PixelsConfig
from drifting.encoders.autoencoder import Autoencoder, AutoencoderFeatures
from drifting.encoders.base import identity
from drifting.errors import InputError
from drifting.evaluation.extractors import Classifier
from drifting.generators import MLPConfig
from drifting.runs.train import build_encoder, resolve
from tests.support.image_folders import write_images


@pytest.fixture
def classifier(gray_folder):
    return presets.preset("mnist-classifier", data=str(gray_folder))


def test_json_names_the_kinds_of_all_parts(tiny_images, classifier):
    values = to_json(dataclasses.replace(tiny_images, bank=BankConfig()))
    kinds = {name: values[name]["type"] for name in ("data", "generator", "encoder", "bank", "loss", "schedule")}
    assert list(kinds.values()) == ["ImagesData", "DecoderMLPConfig", "AutoencoderConfig", "BankConfig", "LossConfig", "Schedule"]
    assert (values["type"], to_json(classifier)["type"]) == ("RunConfig", "ClassifierConfig")
    assert to_json(tiny_images)["bank"] is None


@pytest.mark.parametrize("name", ["code_dim", "width", "steps", "batch_size", "learning_rate"])
def test_encoder_that_cannot_work_is_refused_by_name(tiny_images, name):
    with pytest.raises(InputError, match=rf"encoder\.{name} is 0"):
        dataclasses.replace(tiny_images, encoder=dataclasses.replace(tiny_images.encoder, **{name: 0}))


@pytest.mark.parametrize("name", ["capacity_per_class", "unconditional_capacity", "push_per_step"])
def test_bank_that_cannot_work_is_refused_by_name(tiny_images, name):
    with pytest.raises(InputError, match=rf"bank\.{name} is 0: pass at least 1"):
        dataclasses.replace(tiny_images, bank=BankConfig(**{name: 0}))


@pytest.mark.parametrize("kind", ["tiny_toy", "tiny_digits"])
def test_bank_and_encoder_are_for_images(kind, request):
    config = request.getfixturevalue(kind)
    with pytest.raises(InputError, match="bank is set, but the data set has no images"):
        dataclasses.replace(config, bank=BankConfig())
    with pytest.raises(InputError, match="encoder is an auto-encoder, but the data set has no images"):
        dataclasses.replace(config, encoder=AutoencoderConfig()).build_network()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("width", "steps", "batch_size")),
        ("batch_size", 1),
        *(("learning_rate", value) for value in (0.0, -1.0, float("nan"), float("inf"))),
        ("seed", -1),
        ("shift", -1),
        ("rotation", -1.0),
        ("scale", 1.0),
        ("label_smoothing", 1.0),
    ],
)
def test_classifier_that_cannot_work_is_refused_by_name(classifier, name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        dataclasses.replace(classifier, **{name: value})


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
@pytest.mark.parametrize("unconditional", [False, True])
def test_resolving_finds_shape_and_classes_and_happens_once(tmp_path, monkeypatch, shape, unconditional):
    write_images(tmp_path / "own", {"a": 4, "b": 5}, size=shape[1], channels=shape[0])
    monkeypatch.chdir(tmp_path)
    config = presets.preset("images", data="own", unconditional=unconditional)
    with pytest.raises(InputError, match="data is 'own', whose shape is not known yet: resolve the configuration first"):
        config.build_generator()
    resolved = resolve(config)
    assert resolved.data.path == str(tmp_path / "own")
    assert (resolved.data.image_shape, resolved.data.num_classes) == (shape, None if unconditional else 2)
    assert resolve(resolved) == resolved
    generator, source = resolved.build_generator(), resolved.data.source(resolved.seed)
    assert generator.sample_shape == source.sample_shape == shape
    assert generator.num_classes == source.num_classes == resolved.data.num_classes


def test_bytes_and_floats_are_inverse():
    every = torch.arange(256, dtype=torch.uint8)
    signed = to_signed(every)
    assert (signed.dtype, float(signed.min()), float(signed.max())) == (torch.float32, -1, 1)
    assert torch.equal(to_bytes(signed), every)
    kept = torch.tensor([-3.0, 0.5, 7.0])
    assert to_bytes(kept).tolist() == [0, 191, 255]
    assert kept.tolist() == [-3.0, 0.5, 7.0]


def test_real_images_are_drawn_as_floats_and_exported_as_they_were(tiny_images):
    config = resolve(tiny_images)
    drawn = config.data.source(config.seed).draw(torch.tensor([0, 1, 2]), 27, torch.Generator().manual_seed(0))
    stored = config.data.load("train")
    for label in range(3):
        exported = config.data.exporter()(drawn[label]).movedim(-1, 1)
        mine = stored.images[stored.labels == label]
        assert sorted(exported.flatten(1).tolist()) == sorted(mine.flatten(1).tolist())


def test_images_are_read_once(tiny_images, monkeypatch):
    config = resolve(tiny_images)
    monkeypatch.setattr(images, "load_images", None)
    assert config.data.load("train") is config.data.load("train")


def test_networks_are_those_of_the_configuration(tiny_images, tiny_toy, classifier, assert_same_tensors):
    config = resolve(tiny_images)
    network = config.build_network()
    assert isinstance(network, Autoencoder)
    assert (network.image_shape, network.code_dim) == ((1, 8, 8), 8)
    assert_same_tensors(config.build_network().state_dict(), network.state_dict())
    other = dataclasses.replace(config, seed=1).build_network()
    assert not torch.equal(other.to_code.weight, network.to_code.weight)
    extractor = resolve(classifier).build_network()
    assert isinstance(extractor, Classifier)
    assert (extractor.image_shape, extractor.num_classes) == ((1, 8, 8), 3)
    assert tiny_toy.build_network() is None
    assert dataclasses.replace(config, encoder=PixelsConfig()).build_network() is None


def test_feature_space_is_that_of_the_encoder(tiny_images):
    config = resolve(
        dataclasses.replace(tiny_images, encoder=dataclasses.replace(tiny_images.encoder, features=("code", "norm_x")))
    )
    encoder = build_encoder(config, config.build_network())
    assert isinstance(encoder, AutoencoderFeatures)
    features = encoder(torch.zeros(5, 1, 8, 8))
    assert {name: tuple(value.shape) for name, value in features.items()} == {"code": (5, 1, 8), "norm_x": (5, 1, 1)}
    assert build_encoder(dataclasses.replace(config, encoder=PixelsConfig())) is identity


def test_plain_perceptron_makes_images_too(tiny_images):
    config = resolve(dataclasses.replace(tiny_images, generator=MLPConfig(noise_dim=4, width=8, depth=1)))
    assert config.build_generator()(torch.zeros(3, 4), torch.tensor([0, 1, 2])).shape == (3, 1, 8, 8)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("DRIFTING_DATA" not in os.environ, reason="needs the folder that $DRIFTING_DATA names")
def test_mnist_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(images, "_load_split", images._load_split.__wrapped__)
    data = resolve(presets.preset("mnist-pixel")).data
    assert (data.path, data.image_shape, data.num_classes, sum(data.counts)) == (None, (1, 28, 28), 10, 60_000)
    assert data.class_names == tuple("0123456789")
