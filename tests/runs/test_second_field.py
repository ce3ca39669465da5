"""A run whose field is not the mean shift: what its log, its evaluation and its pictures say is of the field that trains."""

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

from drifting import DriftingLoss, drifting_loss, fields
from drifting import config as configuration
from drifting.config import LossConfig, RunConfig
from drifting.errors import InputError
from drifting.fields import DriftField, EnergyDistance, KernelStatistics, Lookahead, MeanShift, Sinkhorn
from drifting.presets import adjust
from drifting.runs import pictures
from drifting.runs import pictures as drawing
from drifting.runs.evaluate import build_evaluation
from drifting.runs.train import build_encoder, build_positives
from drifting.sampling import sample
from drifting.training.loop import train
from drifting.training.state import TrainingState


class Constant:
    """The drift is (3, 4) times the temperature, wherever the samples are."""

    def __call__(self, generated, positives, negatives, *, temperatures, weights, num_self, distances):
        vector = generated.new_tensor([3.0, 4.0])
        return temperatures[:, None, None, None] * vector.expand_as(generated)


class Told(NamedTuple):
    """What a field may tell of itself."""

    temperature: torch.Tensor
    targets: torch.Tensor


class Telling(Constant):
    """A field with all that a field may have."""

    def statistics(self, generated, positives, negatives, *, temperatures, weights, num_self):
        return Told(temperatures, torch.full_like(temperatures, float(positives.shape[1] + negatives.shape[1])))

    def at(self, points, generated, positives, *, temperature):
        return points * 0 + temperature


def _config(tiny_toy: RunConfig, field: Any, **changes: Any) -> RunConfig:
    given = {**vars(tiny_toy.loss), "temperatures": (0.5, 2.0), "field": field, **changes}
    return dataclasses.replace(tiny_toy, loss=LossConfig(**given))


def _last_report(config: RunConfig) -> dict:
    state = TrainingState(config.build_generator(), config.schedule, config.seed)
    encoder = build_encoder(config)
    schedule = dataclasses.replace(config.schedule, steps=1)
    (step,) = train(state, build_positives(config, encoder), encoder, config.loss.build(), schedule)
    return step.report.features["sample"]


def _measured(config: RunConfig) -> dict:
    generator = config.build_generator()
    return build_evaluation(config, 50)(lambda count, seed: sample(generator, count, seed=seed))


@pytest.mark.parametrize("field", [Constant(), Telling()])
def test_log_and_evaluation_agree_on_the_field_that_trains(tiny_toy, field):
    config = _config(tiny_toy, field)
    logged, measured = _last_report(config), _measured(config)
    assert [float(norm) for norm in logged.drift_norms.values()] == pytest.approx([0.25 * 12.5, 4 * 12.5])
    # Of all temperatures together the drift is 2.5 times the vector.
    for kind in ("", "_floor"):
        assert measured[f"drift_norm{kind}"] == pytest.approx(6.25 * 12.5)
        assert measured[f"drift_length{kind}"] == pytest.approx(2.5 * 5)


def test_field_tells_its_own_statistics_or_none(tiny_toy):
    assert _last_report(_config(tiny_toy, Constant())).statistics is None
    statistics = _last_report(_config(tiny_toy, Telling())).statistics
    schedule = tiny_toy.schedule
    assert isinstance(statistics, Told)
    assert statistics.temperature.tolist() == [0.5, 2.0]
    assert statistics.targets.tolist() == [schedule.generated + schedule.positives] * 2
    mean_shift = _last_report(_config(tiny_toy, MeanShift())).statistics
    assert set(mean_shift._asdict()) == set(KernelStatistics._fields)


def test_picture_of_the_field_is_of_the_field_that_trains_or_left_out(tiny_toy, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "draw_points", lambda folder, **given: drawn.append(given["drift"]) or [])
    for field in (Constant(), Telling(), MeanShift()):
        drawing.draw_pictures(_config(tiny_toy, field), tmp_path, snapshots={0: torch.zeros(40, 2)}, log=[])
    without, own, mean_shift = drawn
    places, generated = torch.randn(7, 2), torch.randn(30, 2)
    assert without is None
    assert torch.equal(own(places, generated), torch.full((7, 2), 2.5))
    assert mean_shift(places, generated).shape == (7, 2)


@pytest.mark.parametrize(
    "field", [MeanShift(), EnergyDistance(), Sinkhorn(), Lookahead(MeanShift(kernel="gaussian", bias_correction=True))]
)
def test_evaluation_has_the_bandwidths_of_training_where_features_are_normalized(tiny_toy, field):
    """The mean square of the drift at one temperature is what the loss reports for the same samples."""
    config = _config(tiny_toy, field, temperatures=(0.3,), normalize_features=True)
    evaluate = build_evaluation(config, 60).keywords["drift"]
    generated, positives = (torch.randn(40, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    settings = {**config.loss.build().settings, "memory": None}
    expected = drifting_loss(generated[None], positives[None], **settings).drift_norms[0.3]
    assert float(evaluate(generated, positives).square().mean()) == pytest.approx(float(expected), rel=1e-5)


def test_loss_names_its_field():
    assert DriftingLoss().field == MeanShift(affinity_floor=1e-6)
    field = Constant()
    assert DriftingLoss(field=field).field is field


@dataclasses.dataclass(frozen=True)
class Push(DriftField):
    """A field of an own kind, offered by the package in a test."""

    strength: float = 1.0

    def __call__(self, generated, positives, negatives, *, temperatures, weights, num_self, distances):
        return self.strength * torch.ones(len(temperatures), *generated.shape)


def test_field_of_a_configuration_is_saved_read_and_set_by_its_name(tiny_toy, monkeypatch):
    monkeypatch.setattr(fields, "Push", Push, raising=False)
    config = _config(tiny_toy, Push(strength=0.5))
    values = configuration.to_json(config)
    assert values["loss"]["field"] == {"type": "Push", "strength": 0.5}
    assert configuration.from_json(values, "x") == config
    assert adjust(config, **{"loss.field.strength": 2.0}).loss.field == Push(2.0)
    assert adjust(tiny_toy, **{"loss.field.affinity_floor": 0.5}).loss.field == MeanShift(0.5)
    assert float(_last_report(config).drift_norms[0.5]) == pytest.approx(0.25)


def test_field_that_is_not_offered_is_refused(tiny_toy):
    values = configuration.to_json(_config(tiny_toy, Push()))
    with pytest.raises(InputError, match=r"loss\.field\.type is 'Push', not .*MeanShift"):
        configuration.from_json(values, "x")


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.25])
def test_floor_that_an_earlier_version_saved_with_the_loss_is_read(tiny_toy, floor):
    values = configuration.to_json(tiny_toy)
    del values["loss"]["field"]
    values = {**values, "version": 1, "loss": {**values["loss"], "affinity_floor": floor}}
    assert configuration.from_json(values, "x").loss == dataclasses.replace(tiny_toy.loss, field=MeanShift(floor))
