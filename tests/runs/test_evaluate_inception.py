"""Runs looked at by an Inception file: a stand-in for the published one."""

import hashlib
import os
import shutil

import pytest
import torch
from torch import nn

from drifting import runs
from drifting.data import ImageFilesData
from drifting.errors import InputError
from drifting.evaluation import ImageStatistics
from drifting.evaluation.statistics import digests, save_statistics
from drifting.metrics import inception
from drifting.metrics.frechet import frechet_distance, gaussian_of
from drifting.runs.evaluate import load_extractor
from tests.runs.test_evaluate import untrained
from tests.support.image_folders import write_images


class _Network(nn.Module):
    """Stand in for the Inception: the means of a grid of 2 x 2, and three classes by the channels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        if return_features:
            return nn.functional.adaptive_avg_pool2d(images, [2, 2]).flatten(1) * self.scale
        assert no_output_bias
        return (images.mean([2, 3]) / 64).softmax(1)


@pytest.fixture
def inception_file(tmp_path, monkeypatch):
    path = tmp_path / "extractor" / "inception.pt"
    path.parent.mkdir()
    torch.jit.script(_Network()).save(path)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_streamed_run_has_its_score_and_keeps_statistics_beside_the_file(inception_file, tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        write_images(tmp_path / "images" / split, {"a": 14, "b": 14, "c": 14}, channels=3, seed=seed)
    data = ImageFilesData(path=str(tmp_path / "images"), image_size=8, image_shape=(3, 8, 8), num_classes=3)
    run = untrained(tmp_path / "run", data)
    metrics = run.evaluate(extractor=str(inception_file), count=30)
    assert metrics["extractor"] == "inception"
    assert 1 <= metrics["inception_score"] <= 3
    assert {"frechet_distance", "frechet_distance_floor", "kernel_distance", "inception_score_floor"} <= metrics.keys()
    assert not (run.folder / "statistics").exists()
    kept = list(inception_file.parent.glob("inception-*.safetensors"))
    assert len(kept) == 2
    named = [run.evaluate(extractor=str(inception_file), count=30, real=str(path)) for path in kept]
    assert metrics["frechet_distance"] in [figures["frechet_distance"] for figures in named]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="anything can be written by root")
def test_nothing_is_kept_beside_a_file_that_lies_where_nothing_can_be_written(tiny_images, inception_file):
    inception_file.parent.chmod(0o500)
    assert load_extractor(str(inception_file), tiny_images).cache is None
    inception_file.parent.chmod(0o700)


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_run_of_images_in_memory_is_streamed_against_what_is_named(images_run, inception_file, tmp_path, color_folder):
    run = runs.load(shutil.copytree(images_run, tmp_path / "run"))
    with pytest.raises(InputError, match=r"whose images are read as squares in color, but the run makes \(1, 8, 8\): name stat"):
        run.evaluate(extractor=str(inception_file), real=str(color_folder))
    train, test = (run.config.data.load(split).images for split in ("train", "test"))
    extractor = load_extractor(str(inception_file), run.config)
    save_statistics(tmp_path / "test.safetensors", ImageStatistics(gaussian_of(extractor.embed(test)), digests=digests(test)))
    metrics = run.evaluate(extractor=str(inception_file), real=str(tmp_path / "test.safetensors"), count=len(train))
    floor = frechet_distance(gaussian_of(extractor.embed(train)), gaussian_of(extractor.embed(test)))
    assert (metrics["reference"], metrics["num_real"]) == ("statistics test.safetensors", len(test))
    assert metrics["frechet_distance_floor"] == pytest.approx(floor, rel=1e-6)
    assert metrics["inception_score"] >= 1
