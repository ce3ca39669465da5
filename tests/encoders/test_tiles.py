import dataclasses

import pytest
import torch

from drifting import load, train
from drifting.encoders import TileFeatures, TilesConfig, identity
from drifting.errors import InputError
from drifting.runs.train import build_encoder


@pytest.mark.parametrize(("side", "stride"), [(4, 4), (4, 2), (8, 4)])
def test_tiles_are_those_of_the_loops(side, stride):
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    features = TileFeatures(side, stride)(images)
    assert torch.equal(features["sample"], images.reshape(2, 1, -1))
    corners = [(top, left) for top in range(0, 9 - side, stride) for left in range(0, 13 - side, stride)]
    expected = [images[:, :, top : top + side, left : left + side] for top, left in corners]
    found = features["tiles"].unflatten(2, (side, side, 3))
    assert torch.equal(found, torch.stack([tile.permute(0, 2, 3, 1) for tile in expected], 1))


def test_gradient_is_the_number_of_tiles_of_a_pixel():
    images = torch.randn(2, 1, 4, 6, requires_grad=True)
    TileFeatures(4, 2)(images)["tiles"].sum().backward()
    assert torch.equal(images.grad[:, 0], torch.tensor([1.0, 1, 2, 2, 1, 1]).expand(2, 4, 6))


def test_run_drifts_in_tiles_too(tiny_images, tmp_path):
    config = dataclasses.replace(tiny_images, encoder=TilesConfig(tiles=4))
    train(config, tmp_path / "run")
    report = load(tmp_path / "run")
    assert report.config.encoder == TilesConfig(tiles=4)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "drift_norm/sample/" in text
    assert "drift_norm/tiles/" in text


def test_without_tiles_samples_are_left_as_they_are(tiny_images):
    assert build_encoder(dataclasses.replace(tiny_images, encoder=TilesConfig())) is identity


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"tiles": 3}, (1, 8, 8), r"encoder\.tiles is 3, 3 pixels apart, which do not cover images of 8 x 8 pixels exactly"),
        ({"tiles": 0}, (1, 8, 8), r"encoder\.tiles is 0, 0 pixels apart"),
        ({"tiles": 9}, (1, 8, 8), r"encoder\.tiles is 9, 9 pixels apart"),
        ({"tiles": 4}, (3, 8, 10), "images of 8 x 10 pixels exactly: pass a divisor, or another encoder.tile_stride"),
        ({"tiles": 4, "tile_stride": 3}, (1, 8, 8), r"encoder\.tiles is 4, 3 pixels apart"),
        ({"tiles": 2, "tile_stride": 3}, (1, 8, 8), r"encoder\.tiles is 2, 3 pixels apart"),
        ({"tiles": 4, "tile_stride": 0}, (1, 8, 8), r"encoder\.tiles is 4, 0 pixels apart"),
        ({"tile_stride": 4}, (1, 8, 8), r"encoder\.tile_stride is 4, but encoder\.tiles is None: pass both"),
        ({"tiles": 1}, (2,), r"encoder\.tiles is 1, but samples have the shape \(2,\): leave it out"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(settings, shape, message):
    with pytest.raises(InputError, match=message):
        TilesConfig(**settings).build_network(shape, num_classes=None, read=lambda name: {})


def test_tiles_that_do_not_fit_are_refused_before_any_work(tiny_images, tmp_path):
    with pytest.raises(InputError, match=r"encoder\.tiles is 5"):
        train(dataclasses.replace(tiny_images, encoder=TilesConfig(tiles=5)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
