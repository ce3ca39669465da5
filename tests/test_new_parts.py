"""A kind of data, an encoder, a generator and a drift field that the library does not know train like its own.

Each is one class, and one line that makes it a name of its package. A kind of data draws and measures its samples itself.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
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
from drifting.data import Data, Source, StreamSource
from drifting.data.points import PlaneData
from drifting.data.sources import reference_samples
from drifting.encoders import EncoderConfig, FeatureEncoder
from drifting.fields import DriftField, Lookahead, Sinkhorn
from drifting.generators import Generator, GeneratorConfig
from drifting.metrics import energy_distance
from drifting.plotting.figures import panels, save_figure
from tests.support.small_runs import shrunk


@dataclass(frozen=True, kw_only=True)
class SquareData(PlaneData):
    """Points of a square."""

    side: float = 1.0

    @property
    def title(self) -> str:
        return "square"

    def source(self, seed: int, bank: Any = None, **options: Any) -> Source:
        return StreamSource(lambda count, rng: self.side * torch.rand(count, 2, generator=rng, device=rng.device), (2,))


@dataclass(frozen=True, kw_only=True)
class WaveData(Data):
    """Waves of four values: neither points in the plane nor images."""

    height: float = 1.0

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (4,)

    @property
    def title(self) -> str:
        return "waves"

    def source(self, seed: int, bank: Any = None, **options: Any) -> Source:
        def draw(count: int, rng: torch.Generator) -> Tensor:
            phases = 6.28 * torch.rand(count, 1, generator=rng, device=rng.device)
            return self.height * (phases + torch.arange(4)).sin()

        return StreamSource(draw, (4,))

    def depict(self, drawing: Any) -> list[Path]:
        figure, (axes,) = panels(1, 1, size=3.0, title=self.title)
        axes.plot(drawing.snapshots[max(drawing.snapshots)].T.numpy())
        return [save_figure(figure, drawing.folder / "waves.png")]

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        real = reference_samples(self.source(0), 50, 0)
        return {"num_samples": 50, "energy_distance": energy_distance(evaluation.sample(50, 0), real)}


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
    monkeypatch.setattr(drifting.data, "WaveData", WaveData, raising=False)
    monkeypatch.setattr(drifting.encoders, "ScalingConfig", ScalingConfig, raising=False)
    monkeypatch.setattr(drifting.generators, "LineConfig", LineConfig, raising=False)
    monkeypatch.setattr(drifting.fields, "Pull", Pull, raising=False)


PARTS = {
    "data": {"data": SquareData(side=2.0)},
    "encoder": {"encoder": ScalingConfig(factor=3.0)},
    "generator": {"generator": LineConfig(noise_dim=5)},
    "field": {"loss": LossConfig(temperatures=(0.1,), field=Pull(strength=0.25))},
    "field ahead": {"loss": LossConfig(temperatures=(0.1, 0.5), field=Lookahead(Sinkhorn(iterations=5)))},
}
PARTS["all"] = {
    name: part for parts in (PARTS[kind] for kind in ("data", "encoder", "generator", "field")) for name, part in parts.items()
}


@pytest.mark.usefixtures("no_pictures")
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


@pytest.mark.painted
def test_new_kind_of_data_is_drawn_measured_and_told_of_by_its_own_class(tmp_path, command):
    config: RunConfig = presets.adjust(shrunk(presets.preset("toy")), steps=2)
    config = dataclasses.replace(config, data=WaveData(height=0.5), generator=LineConfig())
    run = runs.train(config, tmp_path / "run")
    assert run.pictures == (tmp_path / "run" / "waves.png",)
    assert run.pictures[0].stat().st_size > 0
    metrics = runs.load(tmp_path / "run").evaluate()
    assert metrics.keys() == {"num_samples", "energy_distance"}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    result = command("evaluate", tmp_path / "run", "--extractor", "pixels")
    assert (result.status, "this run makes no images to show it: leave it out" in result.err) == (2, True)
    sample = ("sample", tmp_path / "run", "--num-samples", 3, "--out")
    assert command(*sample, tmp_path / "waves.npy").status == 0
    assert "no picture shows samples of shape (4,): name a .npy file" in command(*sample, tmp_path / "waves.png").err


@pytest.mark.usefixtures("no_pictures")
def test_kind_of_data_that_does_not_say_how_it_is_measured_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delattr(WaveData, "evaluate")
    config = dataclasses.replace(shrunk(presets.preset("toy")), data=WaveData(), generator=LineConfig())
    run = runs.train(presets.adjust(config, steps=2), tmp_path / "run")
    with pytest.raises(drifting.InputError, match="data is WaveData, which does not say how its samples are measured: write its"):
        run.evaluate()


def test_part_that_its_package_does_not_offer_is_refused(monkeypatch):
    config = dataclasses.replace(shrunk(presets.preset("toy")), **PARTS["data"])
    values = to_json(config)
    monkeypatch.delattr(drifting.data, "SquareData")
    with pytest.raises(drifting.InputError, match=r"data\.type is 'SquareData', not DigitsData or"):
        from_json(values, "here")
