import dataclasses

import pytest
import torch

from drifting.config import LossConfig, RunConfig
from drifting.data import BankConfig, ImageFilesData, LatentsData
from drifting.data.pixels import load_vae, to_bytes, to_signed
from drifting.errors import InputError
from drifting.generators import DecoderMLPConfig
from drifting.training.schedule import Schedule
from tests.support.tiny_vae import write_vae

SCHEDULE = Schedule(steps=2, generated=4, positives=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    return write_vae(tmp_path_factory.mktemp("vae"))


def _config(data) -> RunConfig:
    return RunConfig(preset="x", data=data, bank=BankConfig(), generator=DecoderMLPConfig(), loss=LossConfig(), schedule=SCHEDULE)


def _latents(vae, shape=(4, 5, 5)) -> RunConfig:
    return _config(LatentsData(path="cache", vae=str(vae), image_shape=shape, num_classes=3))


def test_latents_are_exported_as_the_images_that_they_stand_for(vae_folder):
    latents = torch.randn(3, 4, 5, 5)
    images = _latents(vae_folder).data.exporter()(latents)
    assert (images.shape, images.dtype) == ((3, 10, 10, 3), torch.uint8)
    expected = to_bytes(load_vae(vae_folder).decode(latents))
    assert torch.equal(images, expected.movedim(1, -1))
    assert torch.equal(_latents(vae_folder).data.decoder()(latents), expected)
    assert _latents(vae_folder).data.exported_shape() == (3, 10, 10)


def test_auto_encoder_is_opened_only_where_it_is_needed(vae_folder, monkeypatch):
    opened = []
    monkeypatch.setattr(LatentsData, "load_vae", lambda data, device=None: opened.append(device) or load_vae(data.vae))
    _config(ImageFilesData(path="x", image_shape=(3, 8, 8))).data.decoder()
    assert opened == []
    _latents(vae_folder).data.decoder("cpu")
    # Where its shape alone is asked for, it stays on the device where it is.
    _latents(vae_folder).data.exported_shape()
    assert opened == ["cpu", None]


def test_image_files_are_exported_as_they_were():
    config = _config(ImageFilesData(path="x", image_size=6, image_shape=(3, 6, 6)))
    pixels = torch.randint(256, (4, 3, 6, 6)).byte()
    exported = config.data.exporter()(to_signed(pixels))
    assert torch.equal(exported, pixels.movedim(1, -1))
    assert config.data.exported_shape() == (3, 6, 6)


def test_wrong_auto_encoders_are_reported(vae_folder, tmp_path):
    with pytest.raises(
        InputError, match=r"vae is '.*', which decodes latents of 4 channels, but those of the run have 8: name the"
    ):
        _latents(vae_folder, (8, 5, 5)).data.exporter()
    with pytest.raises(InputError, match=r"vae is '.*', which cannot be loaded"):
        _latents(tmp_path).data.decoder()
    unknown = dataclasses.replace(_latents(vae_folder).data, vae=None)
    with pytest.raises(InputError, match="data is 'cache', whose VAE is not known yet: resolve the configuration first"):
        _config(unknown).data.exporter()


def test_shape_of_points_and_of_what_is_not_known_yet(tiny_toy, tiny_digits):
    assert tiny_digits.data.exported_shape() == (1, 8, 8)
    with pytest.raises(InputError, match="data is ToyData, of no known image shape"):
        tiny_toy.data.exported_shape()
    with pytest.raises(InputError, match="data is 'x', whose shape is not known yet: resolve the configuration first"):
        _config(ImageFilesData(path="x")).data.exported_shape()
