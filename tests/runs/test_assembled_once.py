"""What a run needs is built once: no network is made, and no file of weights loaded, twice in one run."""

import collections
import dataclasses
import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting import presets, runs
from drifting.checkpoint import save_tensors
from drifting.config import ClassifierConfig, EncoderRunConfig
from drifting.data import InMemorySource, PointsData, StreamSource
from drifting.data.latents_writer import CacheSettings
from drifting.data.pixels import VAE
from drifting.encoders import (
    Autoencoder,
    Frozen,
    MAEConfig,
    MAEFeaturesConfig,
    MaskedAutoencoder,
    ResNet,
    ResNetConfig,
    SimCLRConfig,
)
from drifting.evaluation import Classifier
from drifting.generators import MLP, DecoderMLP, DiT, UNet
from drifting.presets.variants import smoke
from drifting.runs.pictures import draw_pictures
from drifting.runs.smoke import write_convnext
from tests.support.image_folders import write_images
from tests.support.small_runs import shrunk, small_toy
from tests.support.tiny_vae import write_vae

pytestmark = pytest.mark.usefixtures("no_pictures")

BUILT = (MLP, DecoderMLP, UNet, DiT, Autoencoder, ResNet, MaskedAutoencoder, Classifier, Frozen, VAE)
MASKED = {"width": 10, "patch": 2, "depths": (1, 1, 1, 1)}


@pytest.fixture
def counted(monkeypatch) -> collections.Counter:
    """Count what is built, by its class: "MLP", or "MLP on meta" for one without numbers."""
    count: collections.Counter = collections.Counter()
    building: list = []

    def counting(initialize: Callable) -> Callable:
        @functools.wraps(initialize)
        def build(self, *arguments, **named):
            # Parts of a network are not counted.
            if building:
                return initialize(self, *arguments, **named)
            place = torch.empty(0).device.type
            count[type(self).__name__ + ("" if place == "cpu" else f" on {place}")] += 1
            building.append(self)
            try:
                return initialize(self, *arguments, **named)
            finally:
                building.clear()

        return build

    for kind in BUILT:
        monkeypatch.setattr(kind, "__init__", counting(kind.__init__))
    return count


def test_toy_is_built_once(counted, tmp_path):
    runs.train(small_toy(), tmp_path / "run")
    assert counted == {"MLP": 1}


@pytest.mark.parametrize("kind", ["toy", "points", "digits", "images"])
def test_table_of_real_samples_is_made_once(kind, tiny_digits, tiny_images, tmp_path, monkeypatch):
    if kind == "points":
        np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(50, 2)))
    config = {
        "toy": small_toy,
        "points": lambda: dataclasses.replace(small_toy(), data=PointsData(path=str(tmp_path / "own.npy"))),
        "digits": lambda: tiny_digits,
        "images": lambda: presets.adjust(dataclasses.replace(tiny_images, cache_features=False), steps=2),
    }[kind]()
    monkeypatch.setattr("drifting.runs.pictures.draw_pictures", draw_pictures)
    made: list[str] = []
    for table in (InMemorySource, StreamSource):

        def count(self, *parts, build=table.__init__):
            made.append(type(self).__name__)
            build(self, *parts)

        monkeypatch.setattr(table, "__init__", count)
    runs.train(config, tmp_path / "run")
    assert made == ["StreamSource" if kind == "toy" else "InMemorySource"]


def test_digits_are_built_once(counted, tiny_digits, tmp_path):
    runs.train(tiny_digits, tmp_path / "run")
    assert counted == {"MLP": 1}


@pytest.mark.parametrize(
    ("encoder", "built"),
    [
        (None, {"DecoderMLP", "Autoencoder", "AutoencoderFeatures"}),
        (ResNetConfig(width=4, steps=2, batch_size=8), {"DecoderMLP", "ResNet", "ResNetFeatures"}),
        (SimCLRConfig(width=4, steps=2, batch_size=8), {"DecoderMLP", "ResNet", "ResNetFeatures"}),
    ],
)
def test_images_and_the_encoder_that_they_train_are_built_once(counted, tiny_images, tmp_path, encoder, built):
    config = tiny_images if encoder is None else dataclasses.replace(tiny_images, encoder=encoder)
    counted.clear()  # by the preset, which looks for the features of its images
    runs.train(presets.adjust(config, steps=2), tmp_path / "run")
    assert counted == dict.fromkeys(built, 1)
    counted.clear()
    runs.train(presets.adjust(config, steps=4), tmp_path / "run", resume=True)
    assert counted == dict.fromkeys(built, 1)


@pytest.fixture
def masked(tmp_path) -> Path:
    """The weights of a masked auto-encoder of images of 3 channels."""
    torch.manual_seed(0)
    save_tensors(tmp_path / "masked.safetensors", MaskedAutoencoder((3,), **MASKED).state_dict())
    return tmp_path / "masked.safetensors"


def test_features_of_trained_networks_are_built_once(masked, tiny_images, color_folder, tmp_path, counted):
    encoder = MAEFeaturesConfig(weights=str(masked), convnext=str(write_convnext(tmp_path / "convnext")), resize=32, **MASKED)
    data = dataclasses.replace(tiny_images.data, path=str(color_folder))
    config = presets.adjust(dataclasses.replace(tiny_images, data=data, encoder=encoder), steps=2)
    built = dict.fromkeys(("DecoderMLP", "MaskedAutoencoder on meta", "MAEFeatures", "PretrainedFeatures"), 1)
    runs.train(config, tmp_path / "run")
    assert counted == built
    counted.clear()
    runs.train(presets.adjust(config, steps=4), tmp_path / "run", resume=True)
    assert counted == built


def test_recipe_on_latents_that_are_written_first_is_built_once(tmp_path, monkeypatch, counted):
    settings = functools.partial(CacheSettings, image_size=16)
    monkeypatch.setattr(importlib.import_module("drifting.runs.latents"), "CacheSettings", settings)
    images = write_images(tmp_path / "bars", {"train/a": 6, "train/b": 6}, size=16, channels=3)
    weights = tmp_path / "masked.safetensors"
    config = smoke(presets.preset("imagenet256-ablation", data=str(images), vae=str(write_vae(tmp_path / "vae"))))
    sizes = {name: getattr(config.encoder, name) for name in ("width", "patch", "depths")}
    save_tensors(weights, MaskedAutoencoder((4,), **sizes).state_dict())
    counted.clear()
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights=str(weights)))
    runs.train(config, tmp_path / "runs" / "run")
    assert counted == dict.fromkeys(("DiT", "MaskedAutoencoder on meta", "MAEFeatures", "VAE"), 1)


def test_classifier_is_built_once(gray_folder, tmp_path, counted):
    config: ClassifierConfig = shrunk(presets.preset("mnist-classifier", data=str(gray_folder)))
    runs.train(dataclasses.replace(config, steps=2), tmp_path / "run")
    assert counted == {"Classifier": 1}


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        (MAEConfig(width=10, depths=(1, 1, 1, 1), steps=2, batch_size=8), "MaskedAutoencoder"),
        (SimCLRConfig(width=4, steps=2, batch_size=8), "ResNet"),
    ],
)
def test_encoder_that_is_trained_on_its_own_is_built_once(gray_folder, tmp_path, tiny_images, counted, encoder, name):
    runs.train(EncoderRunConfig(data=tiny_images.data, encoder=encoder), tmp_path / "run")
    assert counted == {name: 1}
