"""Small runs that the tests share: a toy, the digits and a user's own points, each trained in about a second."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from drifting import config as configuration
from drifting import presets, runs
from drifting.cli import main
from drifting.config import MLPConfig, RunConfig

BATCH_SIZES = {"toy": 32, "digits": 40}
CENTRE, SCALE = (1000.0, -3000.0), 50.0


def shrunk(config: RunConfig) -> RunConfig:
    """Return a preset made small: six steps of few samples, a network of a few hundred weights, two frames."""
    schedule = dataclasses.replace(config.schedule, steps=6, warmup_steps=2, ema_decay=0.9)
    small = dataclasses.replace(
        config,
        generator=MLPConfig(noise_dim=4, width=16, depth=2),
        schedule=schedule,
        log_every=2,
        checkpoint_every=2,
        frames=2,
        frame_samples={"toy": 40, "digits": 100}[config.preset],
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


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Leave out the pictures, which take most of the time of a small run."""
    monkeypatch.setattr(configuration, "build_pictures", lambda config: lambda folder, **kwargs: [])


@pytest.fixture
def small_presets(monkeypatch) -> None:
    """Make the command line train small runs."""
    full_toy = presets.PRESETS["toy"].make

    def toy(dataset: str | None = None, data: str | None = None) -> RunConfig:
        choices = {"dataset": dataset, "data": data}
        return shrunk(full_toy(**{name: value for name, value in choices.items() if value is not None}))

    monkeypatch.setitem(presets.PRESETS, "toy", dataclasses.replace(presets.PRESETS["toy"], make=toy))
    digits = shrunk(presets.preset("digits"))
    monkeypatch.setitem(presets.PRESETS, "digits", dataclasses.replace(presets.PRESETS["digits"], make=lambda: digits))


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
    """A file of points far from the origin, in three clumps: centre (1000, -3000), scale 50."""
    rng = np.random.default_rng(0)
    clumps = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[rng.integers(3, size=120)]
    path = tmp_path_factory.mktemp("points") / "own.npy"
    np.save(path, np.array(CENTRE) + SCALE * (clumps + 0.1 * rng.standard_normal(clumps.shape)))
    return path


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> Path:
    """The folder of a finished toy run, with its pictures; copy it before changing it."""
    return runs.train(small_toy(), tmp_path_factory.mktemp("runs") / "toy").folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    return runs.train(shrunk(presets.preset("digits")), tmp_path_factory.mktemp("runs") / "digits").folder


@pytest.fixture(scope="session")
def points_run(tmp_path_factory, own_points) -> Iterator[Path]:
    """The folder of a run on the user's own points, trained for long enough to lie among them."""
    config = dataclasses.replace(small_toy(data=str(own_points)), checkpoint_every=60, log_every=60)
    config = presets.adjust(config, steps=60, learning_rate=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "build_pictures", lambda config: lambda folder, **kwargs: [])
        yield runs.train(config, tmp_path_factory.mktemp("runs") / "points").folder


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
