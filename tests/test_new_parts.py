"""A kind of data, an encoder, a generator and a drift field that the library does not know train like its own.

Each is one class, and one line that makes it a name of its package.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drifting.data
import drifting.encoders
import drifting.fields
import drifting.generators
from drifting import presets, runs
from drifting.config import LossConfig, RunConfig, from_json, to_json
from drifting.data import Source, StreamSource
from drifting.data.points import PlaneData
from drifting.encoders import EncoderConfig, FeatureEncoder
from drifting.fields import DriftField
from drifting.generators import Generator, GeneratorConfig
from tests.conftest import shrunk

pytestmark = pytest.mark.usefixtures("no_pictures")


@dataclass(frozen=True, kw_only=True)
class SquareData(PlaneData):
    """Points of a square."""

    side: float = 1.0

    @property
    def title(self) -> str:
        return "square"

    def source(self, seed: int, bank: Any = None, **options: Any) -> Source:
        return StreamSource(lambda count, rng: self.side * torch.rand(count, 2, generator=rng, device=rng.device), (2,))


class Scaling(nn.Module):
    """The samples times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor), requires_grad=False)


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(EncoderConfig):
    """The space of the samples times a number."""

    factor: float = 2.0

    def build_network(self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Any) -> Scaling:
        return Scaling(self.factor)

    def build_features(self, network: nn.Module, device: str = "cpu") -> FeatureEncoder:
        return lambda samples: {"scaled": (network.get_parameter("factor") * samples)[:, None]}


class Line(Generator):
    """A linear map of noise."""

    def __init__(self, sample_shape: tuple[int, ...], noise_dim: int) -> None:
        super().__init__()
        self.sample_shape, self.noise_shape, self.num_classes = sample_shape, (noise_dim,), None
        self.map = nn.Linear(noise_dim, sample_shape[0])

    def forward(self, noise: Tensor, labels: Tensor | None = None, guidance_scale: Tensor | None = None) -> Tensor:
        return self.map(noise)


@dataclass(frozen=True, kw_only=True)
class LineConfig(GeneratorConfig):
    """A `Line`."""

    noise_dim: int = 3

    def build(self, *, sample_shape: tuple[int, ...], num_classes: int | None, guided: bool) -> Line:
        return Line(sample_shape, self.noise_dim)


@dataclass(frozen=True)
class Pull(DriftField):
    """Every sample moves to the mean of the real ones."""

    strength: float = 0.5

    def __call__(self, generated: Tensor, positives: Tensor, negatives: Tensor, *, temperatures: Tensor, **options: Any) -> Tensor:
        return self.strength * (positives.mean(1, keepdim=True) - generated).expand(len(temperatures), *generated.shape)


@pytest.fixture(autouse=True)
def _offered(monkeypatch):
    """One line for each part, in place of one in the `__init__` of its package."""
    monkeypatch.setattr(drifting.data, "SquareData", SquareData, raising=False)
    monkeypatch.setattr(drifting.encoders, "ScalingConfig", ScalingConfig, raising=False)
    monkeypatch.setattr(drifting.generators, "LineConfig", LineConfig, raising=False)
    monkeypatch.setattr(drifting.fields, "Pull", Pull, raising=False)


PARTS = {
    "data": {"data": SquareData(side=2.0)},
    "encoder": {"encoder": ScalingConfig(factor=3.0)},
    "generator": {"generator": LineConfig(noise_dim=5)},
    "field": {"loss": LossConfig(temperatures=(0.1,), field=Pull(strength=0.25))},
}
PARTS["all"] = {name: part for parts in PARTS.values() for name, part in parts.items()}


@pytest.mark.parametrize("part", PARTS)
def test_new_part_trains_and_is_read_again(part, tmp_path):
    config: RunConfig = dataclasses.replace(presets.adjust(shrunk(presets.preset("toy")), steps=2), **PARTS[part])
    assert from_json(json.loads(json.dumps(to_json(config))), "here") == config
    run = runs.train(config, tmp_path / "run")
    samples = run.sample(4, seed=1)
    assert samples.shape == (4, 2)
    again = runs.load(tmp_path / "run")
    assert again.config == run.config
    assert torch.equal(again.sample(4, seed=1), samples)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    feature = "scaled" if "encoder" in PARTS[part] else "sample"
    assert {name for name in last if name.startswith("drift_norm/")} == {
        f"drift_norm/{feature}/{temperature}" for temperature in config.loss.temperatures
    }


def test_part_that_its_package_does_not_offer_is_refused(monkeypatch):
    config = dataclasses.replace(shrunk(presets.preset("toy")), **PARTS["data"])
    values = to_json(config)
    monkeypatch.delattr(drifting.data, "SquareData")
    with pytest.raises(drifting.InputError, match=r"data\.type is 'SquareData', not DigitsData or"):
        from_json(values, "here")
