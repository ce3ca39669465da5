"""Small runs that the tests share: toy, digits, a user's own points and images, each trained in about a second.

A plugin of every process that runs tests, with what else such a process sets up, see `tests/conftest.py`.
"""

import contextlib
import dataclasses
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import presets, runs
from drifting.cli import main
from drifting.config import ClassifierConfig, RunConfig
from drifting.data import ImagesData
from drifting.encoders import AutoencoderConfig
from drifting.generators import DecoderMLPConfig, MLPConfig
from drifting.plotting import figures
from drifting.runs import pictures as drawing
from drifting.runs import report as reporting
from tests.support import compiling
from tests.support.image_folders import write_images

if not torch.cuda.is_available():
    # Triton's interpreter runs the kernels of a GPU; Triton asks for it once, when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"

BATCH_SIZES = {"toy": 32, "digits": 40, "mnist-pixel": 24, "mnist-encoder": 24, "images": 24}
SNAPSHOT_SAMPLES = {"toy": 40, "digits": 100, "mnist-pixel": 60, "mnist-encoder": 60, "images": 60}
CENTER, SCALE = (1000.0, -3000.0), 50.0


def shrunk(config: RunConfig | ClassifierConfig) -> RunConfig | ClassifierConfig:
    """Return a preset made small: six steps of few samples, networks of a few hundred weights, two snapshots."""
    if isinstance(config, ClassifierConfig):
        return dataclasses.replace(config, width=4, steps=60, batch_size=32, shift=0)
    schedule = dataclasses.replace(config.schedule, steps=6, warmup_steps=2, ema_decay=0.9)
    generator, encoder = MLPConfig(noise_dim=4, width=16, depth=2), config.encoder
    if isinstance(config.data, ImagesData):
        generator = DecoderMLPConfig(noise_dim=4, width=16, depth=2, code_dim=8, decoder_width=4)
    if isinstance(encoder, AutoencoderConfig):
        encoder = dataclasses.replace(encoder, code_dim=8, width=4, steps=20, batch_size=16)
    small = dataclasses.replace(
        config,
        generator=generator,
        encoder=encoder,
        schedule=schedule,
        log_every=2,
        checkpoint_every=2,
        snapshots=2,
        snapshot_samples=SNAPSHOT_SAMPLES[config.preset],
    )
    return presets.adjust(small, batch_size=BATCH_SIZES[config.preset])


def small_toy(dataset: str = "moons", data: str | None = None) -> RunConfig:
    """Stand in for the preset "toy"."""
    return shrunk(presets.preset("toy", **({"dataset": dataset} if data is None else {"data": data})))


@pytest.fixture
def tiny_toy() -> RunConfig:
    return small_toy()


@pytest.fixture
def tiny_digits() -> RunConfig:
    return shrunk(presets.preset("digits"))


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Leave out the pictures, which take most of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw_pictures", lambda config, folder, **_: [])
        patch.setattr(reporting, "write_report", lambda folders, **_: None)
        yield


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Leave out the pictures by the monkeypatch of the test, which undoes the patches of a test in reverse order."""
    monkeypatch.setattr(drawing, "draw_pictures", lambda config, folder, **_: [])


def _shared() -> dict[str, object]:
    """Return what tests replace, and later tests of the same process use."""
    return {
        "draw_pictures": drawing.draw_pictures,
        "pixels": figures.pixels,
        "write_report": reporting.write_report,
        "presets": dict(presets.PRESETS),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "folder": os.getcwd(),
    }


_BEFORE: dict[str, object] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _BEFORE.update(_shared())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Fail a test that leaves a replacement behind, as of a patch that is undone in another order than it was made in."""
    yield
    left = [name for name, value in _shared().items() if value != _BEFORE[name]]
    assert not left, f"this test leaves replaced: {', '.join(left)}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session) -> None:
    # What is imported stays: searching it for garbage again and again takes a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


_WRITE_REPORT = reporting.write_report
_PIXELS = figures.pixels


def pytest_sessionstart(session) -> None:
    """Wait for no flush to the disk, and write pictures blank, those of the runs that tests share too."""
    patch = pytest.MonkeyPatch()
    session.config.add_cleanup(patch.undo)
    compiling.wait_before_use(patch)
    patch.setattr(os, "fsync", lambda descriptor: None)
    patch.setattr(figures, "pixels", lambda figure: Image.new("RGB", (220, 220)))


@pytest.fixture(autouse=True)
def painted(request, monkeypatch) -> None:
    """Paint pictures and write reports in tests marked `painted` alone: they take most of the time of a small run."""
    if request.node.get_closest_marker("painted") is None:
        monkeypatch.setattr(reporting, "write_report", lambda folders, **_: None)
    else:
        monkeypatch.setattr(figures, "pixels", _PIXELS)


@pytest.fixture
def small_presets(monkeypatch) -> None:
    """Make the command line train small runs."""
    full = {name: preset.make for name, preset in presets.PRESETS.items()}

    def small(name: str, **choices) -> RunConfig | ClassifierConfig:
        return shrunk(full[name](**{key: value for key, value in choices.items() if value not in (None, False)}))

    def toy(dataset: str | None = None, data: str | None = None):
        return small("toy", dataset=dataset, data=data)

    def digits():
        return small("digits")

    def mnist_pixel(data: str | None = None, unconditional: bool = False):
        return small("mnist-pixel", data=data, unconditional=unconditional)

    def mnist_encoder(data: str | None = None, unconditional: bool = False):
        return small("mnist-encoder", data=data, unconditional=unconditional)

    def mnist_classifier(data: str | None = None):
        return small("mnist-classifier", data=data)

    def images(data: str, unconditional: bool = False, image_size: int | None = None, channels: int | None = None):
        return shrunk(full["images"](data, unconditional, image_size, channels))

    for make in (toy, digits, mnist_pixel, mnist_encoder, mnist_classifier, images):
        name = make.__name__.replace("_", "-")
        monkeypatch.setitem(presets.PRESETS, name, dataclasses.replace(presets.PRESETS[name], make=make))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Create tensors in float64 unless a test says otherwise."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys) -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def own_points(tmp_path_factory) -> Path:
    """A file of points far from the origin, in three clumps: center (1000, -3000), scale 50."""
    rng = np.random.default_rng(0)
    clumps = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[rng.integers(3, size=120)]
    path = tmp_path_factory.mktemp("points") / "own.npy"
    np.save(path, np.array(CENTER) + SCALE * (clumps + 0.1 * rng.standard_normal(clumps.shape)))
    return path


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> Path:
    """The folder of a finished toy run, with its pictures; copy it before changing it."""
    return runs.train(small_toy(), tmp_path_factory.mktemp("runs") / "toy").folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    return runs.train(shrunk(presets.preset("digits")), tmp_path_factory.mktemp("runs") / "digits").folder


@pytest.fixture(scope="session")
def points_run(tmp_path_factory, own_points) -> Path:
    """The folder of a run on the user's own points, trained for long enough to lie among them."""
    config = dataclasses.replace(small_toy(data=str(own_points)), checkpoint_every=60, log_every=60)
    config = presets.adjust(config, steps=60, learning_rate=1e-2)
    with without_pictures():
        return runs.train(config, tmp_path_factory.mktemp("runs") / "points").folder


@pytest.fixture(scope="session")
def gray_folder(tmp_path_factory) -> Path:
    """A folder of 8 x 8 gray images in three classes; 27 of each are for training, 3 are held out."""
    return write_images(tmp_path_factory.mktemp("images") / "gray", {"a": 30, "b": 30, "c": 30})


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory) -> Path:
    """The same in color, of 16 x 16 pixels."""
    return write_images(tmp_path_factory.mktemp("images") / "color", {"a": 30, "b": 30, "c": 30}, size=16, channels=3)


@pytest.fixture
def tiny_images(gray_folder) -> RunConfig:
    """Stand in for the preset "images", on the gray folder."""
    return shrunk(presets.preset("images", data=str(gray_folder)))


@pytest.fixture(scope="session")
def images_run(tmp_path_factory, gray_folder) -> Path:
    """The folder of a finished run of images with its pictures; copy it before changing it."""
    config = shrunk(presets.preset("images", data=str(gray_folder)))
    with pytest.MonkeyPatch.context() as patch:
        # A test that asks for this run by name has replaced the report already.
        patch.setattr(reporting, "write_report", _WRITE_REPORT)
        return runs.train(config, tmp_path_factory.mktemp("runs") / "images").folder


@pytest.fixture(scope="session")
def extractor_folder(tmp_path_factory, gray_folder) -> Path:
    """The folder of a classifier of the gray folder's images."""
    config = shrunk(presets.preset("mnist-classifier", data=str(gray_folder)))
    return runs.train(config, tmp_path_factory.mktemp("runs") / "extractor").folder


@pytest.fixture
def toy_copy(toy_run, tmp_path) -> Path:
    """A copy of the toy run that a test may damage."""
    return Path(shutil.copytree(toy_run, tmp_path / "copy"))


@pytest.fixture
def assert_same_tensors() -> Callable[[dict, dict], None]:
    """Check that two sets of named tensors are the same bit for bit."""

    def check(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []

    return check
