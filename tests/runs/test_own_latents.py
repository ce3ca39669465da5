"""A recipe on latents that is given images writes their latents first."""

import dataclasses
import functools
import sys

import pytest
import torch

from drifting import runs
from drifting.checkpoint import save_tensors
from drifting.config import EncoderRunConfig
from drifting.data import LatentsData
from drifting.data.latents import INDEX, LatentCache
from drifting.data.latents_writer import CacheSettings
from drifting.distributed import ALONE, Processes
from drifting.encoders import MAEConfig
from drifting.errors import InputError
from drifting.presets import preset
from drifting.runs.latents import with_latents
from drifting.runs.train import resolve
from tests.support.image_folders import write_images
from tests.support.tiny_vae import write_vae


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["drifting.runs.latents"], "CacheSettings", functools.partial(CacheSettings, image_size=8))
    images = write_images(tmp_path / "bars", {"train/a": 3, "train/b": 2}, channels=3)
    return preset("mae-latent-256", data=str(images), vae=str(write_vae(tmp_path / "vae")))


def test_latents_of_images_are_written_beside_the_run(config, tmp_path, capsys):
    found, _ = with_latents(config, tmp_path / "runs" / "one", ALONE, overwrite=False)
    cache = tmp_path / "runs" / "bars-latents"
    assert found == dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(cache)))
    assert len(LatentCache(cache)) == 5
    assert f"bars holds images: their latents go to {cache} first" in capsys.readouterr().out
    data = resolve(found).data
    assert (data.image_shape, data.vae) == ((4, 4, 4), str(tmp_path / "vae"))


def test_runs_beside_each_other_share_them(config, tmp_path):
    written = [with_latents(config, tmp_path / "runs" / name, ALONE, overwrite=False)[0] for name in ("one", "two")]
    shard = tmp_path / "runs" / "bars-latents" / "shard-00000.safetensors"
    before = shard.stat().st_mtime_ns
    assert written[0] == written[1]
    assert with_latents(written[0], tmp_path / "runs" / "one", ALONE, overwrite=False) == (written[0], None)
    assert shard.stat().st_mtime_ns == before


def test_other_processes_leave_it_to_the_first(config, tmp_path):
    class Second(Processes):
        rank, size = 1, 2

    found, _ = with_latents(config, tmp_path / "runs" / "one", Second(), overwrite=False)
    assert found.data.path == str(tmp_path / "runs" / "bars-latents")
    assert not (tmp_path / "runs").exists()


def test_nothing_is_written_for_a_run_that_could_not_begin(config, tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"save_dir is '.*', which already holds a run: pass --resume or --overwrite"):
        with_latents(config, run, ALONE, overwrite=False)
    assert not (tmp_path / "runs" / "bars-latents").exists()
    with_latents(config, run, ALONE, overwrite=True)
    assert (tmp_path / "runs" / "bars-latents" / INDEX).exists()


def test_weights_of_another_network_are_reported_before_latents_are_written(config, tmp_path):
    weights = tmp_path / "encoder.safetensors"
    save_tensors(weights, {"stem.conv.weight": torch.zeros(1)})
    recipe = preset("imagenet256-ablation", data=config.data.path, vae=config.data.vae, encoder_weights=str(weights))
    with pytest.raises(InputError, match=r"weights of '.*' do not fit the configuration"):
        with_latents(recipe, tmp_path / "runs" / "one", ALONE, overwrite=False)
    assert not (tmp_path / "runs" / "bars-latents").exists()


@pytest.mark.parametrize("path", [None, "nowhere"])
def test_what_is_no_folder_is_left_to_be_told(config, tmp_path, path):
    other = dataclasses.replace(config, data=LatentsData(path=path))
    assert with_latents(other, tmp_path / "one", ALONE, overwrite=False) == (other, None)


def test_training_begins_with_images(config, tmp_path):
    tiny = MAEConfig(width=36, depths=(1, 1, 1, 1), patch=1, steps=2, batch_size=4, warmup_steps=1, microbatch_size=4)
    trained = runs.train(EncoderRunConfig(preset="x", data=config.data, encoder=tiny), tmp_path / "runs" / "one")
    assert trained.weights.is_file()


def test_recipes_on_pixels_take_no_auto_encoder():
    for name in ("mae-pixel-640", "imagenet256-pixel-b"):
        with pytest.raises(InputError, match="vae is 'x', but this recipe works on pixels: leave it out"):
            preset(name, data="images", vae="x")
