"""Pictures of runs whose images are too many for memory, or are latents."""

import dataclasses

import pytest
import torch
from PIL import Image

from drifting.config import LossConfig, RunConfig
from drifting.data import BankConfig, ImageFilesData, LatentsData, StreamedData
from drifting.data.pixels import load_vae, to_bytes
from drifting.data.sources import InMemorySource
from drifting.generators import DecoderMLPConfig
from drifting.runs import pictures
from drifting.runs.pictures import draw_pictures, layout
from drifting.training.schedule import Schedule
from tests.support.tiny_vae import write_vae

pytestmark = pytest.mark.painted
LOG = [{"step": 1, "loss": 1.0, "drift_norm/sample/0.1": 2.0, "energy_distance": 0.5}]
SCHEDULE = Schedule(steps=2, generated=4, positives=4, learning_rate=1e-3)


def _config(data, snapshot_samples: int) -> RunConfig:
    parts = {"bank": BankConfig(), "generator": DecoderMLPConfig(), "loss": LossConfig(), "schedule": SCHEDULE}
    return RunConfig(preset="x", data=data, snapshot_samples=snapshot_samples, **parts)


@pytest.fixture
def drawn(monkeypatch):
    """Note what is drawn, in place of drawing it."""
    calls = []
    monkeypatch.setattr(pictures, "draw_images", lambda folder, **options: calls.append(options) or [])
    return calls


def _source(monkeypatch, samples: torch.Tensor, classes: int | None) -> None:
    labels = None if classes is None else torch.arange(len(samples)) % classes
    monkeypatch.setattr(StreamedData, "source", lambda data, seed: InMemorySource(samples, labels))


@pytest.mark.parametrize(("classes", "expected"), [(3, (3, 10)), (10, (10, 6)), (20, (20, 3)), (21, (8, 8)), (None, (8, 8))])
def test_rows_are_classes_unless_there_are_too_many(classes, expected):
    assert layout(classes, 64) == expected


@pytest.mark.parametrize(
    ("classes", "count", "expected"), [(1000, 2048, (10, 10)), (3, 5, (2, 2)), (2, 5, (2, 2)), (1000, 1, (1, 1))]
)
def test_square_is_no_larger_than_its_samples(classes, count, expected):
    assert layout(classes, count) == expected


def test_latents_are_decoded_for_pictures(drawn, monkeypatch, tmp_path):
    folder = write_vae(tmp_path / "vae")
    latents = torch.randn(40, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    _source(monkeypatch, latents, 3)
    data = LatentsData(path="some/cache", vae=str(folder), image_shape=(4, 4, 4), num_classes=3)
    snapshots = {0: latents[:12], 7: latents[12:24]}
    draw_pictures(_config(data, 12), tmp_path, snapshots=snapshots, log=LOG)
    (shown,) = drawn
    assert shown["title"] == "cache, decoded latents"
    assert (shown["real"].shape, shown["labeled"]) == ((3, 4, 3, 8, 8), True)
    assert torch.equal(shown["snapshots"][7], to_bytes(load_vae(folder).decode(latents[12:24])))
    # Rows are classes, of latents of the data.
    decoded = to_bytes(load_vae(folder).decode(latents)).flatten(1).int()
    places = [
        (decoded - (image.flatten() + 1).mul(127.5).round().int()).abs().amax(1).argmin() for image in shown["real"].flatten(0, 1)
    ]
    assert [int(place) % 3 for place in places] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("classes", [None, 30])
def test_many_classes_are_shown_in_a_square(drawn, monkeypatch, tmp_path, classes):
    images = torch.rand(60, 3, 4, 4) * 2 - 1
    _source(monkeypatch, images, classes)
    data = ImageFilesData(path="photos", image_size=4, image_shape=(3, 4, 4), num_classes=classes)
    draw_pictures(_config(data, 20), tmp_path, snapshots={1: images[:20]}, log=LOG)
    (shown,) = drawn
    assert (shown["title"], shown["real"].shape, shown["labeled"]) == ("photos", (4, 4, 3, 4, 4), False)
    assert torch.equal(shown["snapshots"][1], to_bytes(images[:16]))


def test_pictures_can_be_opened_and_none_looks_for_copies(monkeypatch, tmp_path):
    images = torch.rand(60, 3, 8, 8) * 2 - 1
    _source(monkeypatch, images, 3)
    data = ImageFilesData(path="photos", image_size=8, image_shape=(3, 8, 8), num_classes=3)
    config = dataclasses.replace(_config(data, 9), device="cpu")
    paths = draw_pictures(config, tmp_path, snapshots={0: images[:9], 1: images[9:18]}, log=LOG)
    assert [path.name for path in paths] == ["samples.png", "progress.png", "losses.png", "training.gif"]
    for path in paths:
        with Image.open(path) as picture:
            picture.verify()
