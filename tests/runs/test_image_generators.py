"""The U-Net and the DiT in whole runs: configured, trained, resumed and sampled as the small generators are."""

import dataclasses

import pytest
import torch

from drifting import presets, runs
from drifting.checkpoint import load_tensors
from drifting.config import RunConfig, from_json, to_json
from drifting.errors import InputError
from drifting.generators import DiTConfig, UNetConfig
from drifting.generators.dit import DiT
from drifting.generators.unet import UNet
from drifting.runs.train import resolve
from drifting.sampling import sample

UNET = UNetConfig(patch=2, widths=(8, 16), blocks=1, heads=2, cond_dim=8, num_styles=2, style_classes=3)
DIT = DiTConfig(patch=4, width=8, depth=1, heads=2, cond_dim=8, num_context_tokens=2, num_styles=2, style_classes=3)


@pytest.fixture(params=[UNET, DIT], ids=["unet", "dit"])
def config(request, tiny_images) -> RunConfig:
    schedule = dataclasses.replace(tiny_images.schedule, guidance_scale=1.0, guidance_exponent=1.0, microbatch_size=7)
    return resolve(dataclasses.replace(tiny_images, generator=request.param, schedule=schedule))


def test_configuration_comes_back_from_json(config):
    assert from_json(to_json(config), "x") == config


def test_network_is_of_the_size_that_is_asked_for(config):
    network = config.build_generator()
    assert isinstance(network, UNet if config.generator is UNET else DiT)
    assert (network.sample_shape, network.num_classes, network.guided, network.num_styles) == ((1, 8, 8), 3, True, 2)
    assert network.size is config.generator


def test_first_images_differ_as_real_ones_do(config):
    images = sample(config.build_generator(), 60)
    assert 0.3 < float(images.std()) < 0.8
    assert float(images.std(0).mean()) > 0.2
    assert float(images.abs().max()) <= 1


@pytest.mark.usefixtures("no_pictures")
def test_resumed_run_equals_the_whole_one_and_is_sampled_in_one_pass(config, tmp_path, assert_same_tensors):
    whole = runs.train(config, tmp_path / "whole")
    runs.train(presets.adjust(config, steps=3), tmp_path / "halves")
    halves = runs.train(config, tmp_path / "halves", resume=True)
    assert_same_tensors(*(load_tensors(run.folder / "generator.safetensors") for run in (whole, halves)))
    again = runs.load(whole.folder)
    assert torch.equal(again.sample(6, seed=3), whole.sample(6, seed=3))
    assert torch.equal(again.sample(6, seed=3, guidance_scale=1.0), again.sample(6, seed=3))
    assert again.sample(2).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("generator", [UNET, DIT])
def test_points_are_no_images(tiny_toy, tmp_path, generator):
    config = dataclasses.replace(tiny_toy, generator=generator)
    with pytest.raises(InputError, match=f"generator is a {type(generator).__name__}, but the data are not images"):
        runs.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
