import dataclasses

import pytest
import torch

from drifting import load, train
from drifting.encoders import PixelFeatures, PixelsConfig, identity
from drifting.errors import InputError
from drifting.runs.train import build_encoder


def test_tiles_are_those_of_the_loops():
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    features = PixelFeatures(4)(images)
    assert torch.equal(features["sample"], images.reshape(2, 1, -1))
    expected = [images[:, :, top : top + 4, left : left + 4] for top in (0, 4) for left in (0, 4, 8)]
    found = features["tiles"].unflatten(2, (4, 4, 3))
    assert torch.equal(found, torch.stack([tile.permute(0, 2, 3, 1) for tile in expected], 1))


def test_gradient_passes_to_every_pixel():
    images = torch.randn(2, 1, 6, 6, requires_grad=True)
    PixelFeatures(3)(images)["tiles"].square().sum().backward()
    assert torch.equal(images.grad, 2 * images.detach())


def test_run_drifts_in_tiles_too(tiny_images, tmp_path):
    config = dataclasses.replace(tiny_images, encoder=PixelsConfig(tiles=4))
    train(config, tmp_path / "run")
    report = load(tmp_path / "run")
    assert report.config.encoder == PixelsConfig(tiles=4)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "drift_norm/sample/" in text
    assert "drift_norm/tiles/" in text


def test_without_tiles_samples_are_left_as_they_are(tiny_images):
    assert build_encoder(dataclasses.replace(tiny_images, encoder=PixelsConfig())) is identity


@pytest.mark.parametrize(
    ("tiles", "shape", "message"),
    [
        (3, (1, 8, 8), r"encoder\.tiles is 3, which does not divide images of 8 x 8 pixels: pass a divisor"),
        (0, (1, 8, 8), r"encoder\.tiles is 0, which does not divide"),
        (4, (3, 8, 10), "does not divide images of 8 x 10 pixels"),
        (1, (2,), r"encoder.tiles is 1, but samples have the shape \(2,\): leave it out"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tiles, shape, message):
    with pytest.raises(InputError, match=message):
        PixelsConfig(tiles=tiles).build_network(shape, num_classes=None, read=lambda name: {})


def test_tiles_that_do_not_fit_are_refused_before_any_work(tiny_images, tmp_path):
    with pytest.raises(InputError, match=r"encoder\.tiles is 5"):
        train(dataclasses.replace(tiny_images, encoder=PixelsConfig(tiles=5)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
