"""The feature space of the recipes: a trained masked auto-encoder, the sample itself, and ConvNeXt-V2."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting.checkpoint import load_tensors, save_tensors
from drifting.config import RunConfig
from drifting.data import LatentsData
from drifting.encoders import MAEFeaturesConfig
from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.mae_features import MAEFeatures
from drifting.encoders.pretrained import CONVNEXT_FEATURES, load_pretrained
from drifting.errors import InputError
from drifting.presets import preset
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.share import convert
from drifting.runs.smoke import write_convnext
from drifting.runs.train import build_encoder, resolve
from tests.support.artifacts import REFERENCE, needs_reference

SIZES = {"width": 10, "patch": 2, "depths": (2, 2, 2, 2)}


@pytest.fixture
def network() -> MaskedAutoencoder:
    """One that learned classes."""
    torch.manual_seed(0)
    return MaskedAutoencoder((3, 16, 16), num_classes=5, **SIZES)


@pytest.fixture
def run(tiny_images, color_folder, network, tmp_path) -> RunConfig:
    """A run on color images in the features of that network."""
    save_tensors(tmp_path / "encoder.safetensors", network.state_dict())
    encoder = MAEFeaturesConfig(weights=str(tmp_path / "encoder.safetensors"), **SIZES)
    data = dataclasses.replace(tiny_images.data, path=str(color_folder))
    return resolve(dataclasses.replace(tiny_images, data=data, encoder=encoder))


def _images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _features(run: RunConfig) -> dict[str, torch.Tensor]:
    return build_encoder(run, run.build_network())(_images())


def test_features_are_those_of_the_network_and_the_sample_itself(run, network):
    features = _features(run)
    expected = MAEFeatures(network)(_images())
    assert {"norm_x", "conv1", "layer1_blk2", "layer4_mean", "layer2_std_4"} <= expected.keys()
    assert not {"layer1_blk1", "layer2_blk1"} & expected.keys()
    assert list(features) == [*expected, "global"]
    for name, value in expected.items():
        assert torch.equal(features[name], value), name
    assert torch.equal(features["global"], _images().flatten(1)[:, None])


def test_features_may_be_chosen(run):
    chosen = dataclasses.replace(run, encoder=dataclasses.replace(run.encoder, features=("layer3_std", "conv1_mean")))
    assert list(_features(chosen)) == ["layer3_std", "conv1_mean", "global"]
    every = dataclasses.replace(run, encoder=dataclasses.replace(run.encoder, every=1))
    assert {"layer1_blk1", "layer1_blk2"} <= _features(every).keys()


def test_convnext_stands_beside_them(run, tmp_path):
    folder = write_convnext(tmp_path / "convnext")
    encoder = dataclasses.replace(run.encoder, convnext=str(folder), resize=32)
    features, alone = _features(dataclasses.replace(run, encoder=encoder)), _features(run)
    convnext = load_pretrained(folder, CONVNEXT_FEATURES, image_shape=(3, 16, 16), resize=32)(_images())
    assert list(features) == [*alone, *(f"convnext.{name}" for name in CONVNEXT_FEATURES)]
    for name, value in convnext.items():
        torch.testing.assert_close(features[f"convnext.{name}"], value)


def test_gradients_reach_the_samples_and_not_the_weights(run, tmp_path):
    encoder = dataclasses.replace(run.encoder, convnext=str(write_convnext(tmp_path / "convnext")), resize=32)
    config = dataclasses.replace(run, encoder=encoder)
    network, images = config.build_network(), _images().requires_grad_()
    features = build_encoder(config, network)(images)
    sum(value.square().sum() for value in features.values()).backward()
    assert float(images.grad.abs().min()) > 0
    assert [name for name, weight in network.named_parameters() if weight.requires_grad or weight.grad is not None] == []


def test_weights_are_kept_with_the_run(run, network, tmp_path, assert_same_tensors):
    needed = {name: value for name, value in network.state_dict().items() if name.startswith(("stem.", "stages."))}
    assert 0 < len(needed) < len(network.state_dict())
    prepared = prepare_encoder(run, tmp_path / "run", run.build_network())
    assert_same_tensors(prepared.state_dict(), needed)
    assert_same_tensors(load_tensors(tmp_path / "run" / "encoder.safetensors"), needed)
    changed = {name: value + 1 for name, value in needed.items()}
    save_tensors(tmp_path / "run" / "encoder.safetensors", changed)
    assert_same_tensors(prepare_encoder(run, tmp_path / "run", run.build_network()).state_dict(), changed)


def test_weights_of_another_network_are_refused(run):
    for name, value in (("width", 12), ("depths", (2, 2, 2, 3)), ("patch", 4)):
        other = dataclasses.replace(run, encoder=dataclasses.replace(run.encoder, **{name: value}))
        with pytest.raises(InputError, match=r"weights of '.*encoder\.safetensors' do not fit the configuration"):
            other.build_network()


def test_backbone_that_is_not_there_is_refused_before_anything_is_written(run, tmp_path):
    missing = dataclasses.replace(run, encoder=dataclasses.replace(run.encoder, convnext=str(tmp_path / "nothing")))
    with pytest.raises(InputError, match="nothing', which cannot be loaded"):
        build_encoder(missing, missing.build_network())


def test_points_have_no_such_features(tiny_toy, run):
    with pytest.raises(InputError, match="encoder is a masked auto-encoder, but the data are not images"):
        dataclasses.replace(tiny_toy, encoder=run.encoder).build_network()


@needs_reference
@pytest.mark.parametrize("converted", [True, False])
@pytest.mark.parametrize("case", ["mae_latent", "mae_pixel"])
def test_encoder_of_the_authors_gives_their_features_converted_or_not(tmp_path, case, converted):
    source = Path(REFERENCE) / case
    facts = json.loads((source / "metadata.json").read_text())["model_config"]
    weights = source
    if converted:
        convert(str(source), tmp_path / "ours")
        weights = tmp_path / "ours" / "encoder.safetensors"
    expected = {name: torch.from_numpy(value) for name, value in np.load(source / "expected.npz").items()}
    images = expected["image_nhwc"].movedim(-1, 1)
    sizes = {"width": facts["base_channels"], "patch": facts["input_patch_size"], "depths": tuple(facts["layers"])}
    data = LatentsData(path="cache", image_shape=tuple(images.shape[1:]), num_classes=7)
    encoder = MAEFeaturesConfig(weights=str(weights), **sizes)
    config = dataclasses.replace(preset("imagenet256-ablation"), data=data, encoder=encoder)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, precision="float32"))
    features = build_encoder(config, config.build_network())(images)
    assert {name for name in features if name != "global"} == {name[4:] for name in expected if name.startswith("act_")}
    for name, value in features.items():
        known = images.flatten(1)[:, None] if name == "global" else expected[f"act_{name}"]
        torch.testing.assert_close(value, known, rtol=0, atol=3e-5)
