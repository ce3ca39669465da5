"""Trained on latents or on image files, by the command line: samples, pictures and figures."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import presets, runs
from drifting.data import BankConfig, ImageFilesData, LatentsData
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.pixels import load_vae, to_bytes
from drifting.encoders import PixelsConfig
from drifting.sampling import sample
from tests.support.image_folders import write_images
from tests.support.small_runs import shrunk
from tests.support.tiny_vae import write_vae


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images/ of two splits, vae/, cache/, and a trained run on each kind of data, to copy before a change."""
    folder = tmp_path_factory.mktemp("streamed")
    write_images(folder / "images" / "train", {"a": 14, "b": 14, "c": 14}, channels=3)
    write_images(folder / "images" / "val", {"a": 8, "b": 8, "c": 8}, channels=3, seed=1)
    write_vae(folder / "vae")
    write_latents(folder / "images", folder / "vae", folder / "cache", CacheSettings(image_size=8))
    pixels = shrunk(dataclasses.replace(presets.preset("mnist-pixel"), encoder=PixelsConfig()))
    kinds = {"files": ImageFilesData(path=str(folder / "images"), image_size=8), "latents": LatentsData(path=str(folder / "cache"))}
    for name, data in kinds.items():
        bank = BankConfig(capacity_per_class=8, unconditional_capacity=8, push_per_step=4)
        runs.train(dataclasses.replace(pixels, data=data, bank=bank, snapshot_samples=9), folder / name)
    return folder


@pytest.fixture
def copy(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda name: shutil.copytree(place / name, tmp_path / name)


@pytest.mark.parametrize("name", ["files", "latents"])
def test_pictures_are_those_that_need_no_search(place, name):
    for picture in ("samples.png", "progress.png", "losses.png", "training.gif"):
        with Image.open(place / name / picture) as image:
            image.verify()
    assert not (place / name / "comparison.png").exists()


@pytest.mark.parametrize("name", ["files", "latents"])
def test_samples_are_images(place, tmp_path, name, command):
    run = runs.load(place / name)
    assert command("sample", place / name, "--num-samples", 4, "--labels", 2, 0, "--out", tmp_path / "s.npy").status == 0
    images = np.load(tmp_path / "s.npy")
    assert (images.shape, images.dtype) == ((4, 8, 8, 3), np.uint8)
    samples = sample(run.generator, 4, labels=[2, 0])
    expected = to_bytes(load_vae(place / "vae").decode(samples) if name == "latents" else samples)
    assert torch.equal(torch.from_numpy(images), expected.movedim(1, -1))
    assert command("sample", place / name, "--num-samples", 4, "--out", tmp_path / "s.png").status == 0
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize(("name", "reference"), [("files", "images images/val"), ("latents", "decoded latents")])
def test_figures_go_to_the_table_and_the_folder(copy, command, name, reference):
    run = copy(name)
    result = command("evaluate", run, "--extractor", "pixels", "--num-samples", 20, "--batch-size", 6, "--device", "cpu")
    metrics = json.loads((run / "metrics.json").read_text())
    assert result.status == 0
    assert (metrics["extractor"], metrics["reference"], metrics["num_samples"]) == ("pixels-32", reference, 20)
    assert all(figure in result.out for figure in metrics if not figure.endswith("_floor"))
    assert re.search(r"^samples 20/20  .* images/s .* s left$", result.out, re.MULTILINE)
    assert "singular covariance" in result.err


def test_real_images_are_named(copy, place, command):
    run = copy("latents")
    assert command("evaluate", run, "--extractor", "pixels", "--num-samples", 20, "--real", place / "images").status == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["reference"], metrics["num_real"]) == ("images images/val", 24)
    (first, second) = (run / "statistics").iterdir()
    for statistics in (first, second):
        assert command("evaluate", run, "--extractor", "pixels", "--num-samples", 20, "--real", statistics).status == 0
    refused = command("evaluate", run, "--extractor", "pixels", "--real", place / "images" / "none")
    assert refused.status == 2
    assert re.fullmatch(r"drifting: real is '.*none', which is not a folder: name one of images, or [^\n]*\n", refused.err)


def test_run_without_its_auto_encoder_says_so(copy, command):
    run = copy("latents")
    config = json.loads((run / "config.json").read_text())
    config["data"]["vae"] = str(run / "none")
    (run / "config.json").write_text(json.dumps(config))
    for arguments in (("sample", run), ("evaluate", run, "--extractor", "pixels")):
        result = command(*arguments)
        assert result.status == 2
        assert re.fullmatch(
            r"drifting: vae is '.*none', which cannot be loaded \([^\n]*\): name a Hub id or a folder\n", result.err
        )
