"""Proposed temperatures look at as many positives as they should, in the units of the loss, and the command prints their flags."""

import math
import re

import pytest

from drifting import InputError, drifting_loss, presets, runs
from drifting.fields import MeanShift
from drifting.presets import adjust
from drifting.runs import calibrate as calibration
from drifting.training import calibrate_temperatures
from tests.test_loss import draw

FIELD = MeanShift(affinity_floor=0.0)


def neighbors(samples, generated, temperature, **options):
    moved, real = samples[:, :generated], samples[:, generated:]
    report = drifting_loss(moved, real, temperatures=(temperature,), field=FIELD, statistics="field", **options)
    return float(report.statistics.positive_neighbors)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("width", [2, 40])
def test_each_temperature_looks_at_as_many_positives_as_it_aims_at(width, normalize):
    (samples,) = draw(1, (3, 90, width))
    samples = 50 * samples
    found = calibrate_temperatures(samples, generated=30, normalize_features=normalize, present=(0.1,))
    assert [proposal.aim for proposal in found.proposals] == ["few", "a quarter", "most"]
    assert (found.generated, found.positives) == (30, 60)
    for proposal, wanted in zip(found.proposals, (3, 15, 42), strict=True):
        true = neighbors(samples, 30, proposal.temperature, normalize_features=normalize)
        assert true == pytest.approx(wanted, rel=0.12)
        assert proposal.neighbors["sample"] == pytest.approx(true, rel=0.03)
        assert proposal.temperature == float(f"{proposal.temperature:.2g}")
    assert found.present[0].temperature == 0.1


def test_unit_of_the_features_counts_where_they_are_not_normalized_alone():
    (samples,) = draw(2, (2, 60, 3))
    usual, large = (calibrate_temperatures(factor * samples, generated=30).temperatures for factor in (1, 100))
    assert usual == pytest.approx(large, rel=0.05)
    raw, larger = (
        calibrate_temperatures(factor * samples, generated=30, normalize_features=False).temperatures for factor in (1, 100)
    )
    assert [100 * temperature for temperature in raw] == pytest.approx(larger, rel=0.05)


def test_features_agree_on_the_mean_of_their_logarithms():
    narrow, wide = draw(3, (2, 60, 1, 1), (2, 60, 2, 50))
    alone = [calibrate_temperatures({"map": value}, generated=30).temperatures for value in (narrow, wide)]
    both = calibrate_temperatures({"narrow": narrow, "wide": wide}, generated=30)
    assert both.temperatures == pytest.approx([math.sqrt(one * other) for one, other in zip(*alone, strict=True)], rel=0.05)
    assert both.proposals[1].neighbors["narrow"] != pytest.approx(both.proposals[1].neighbors["wide"], rel=0.1)


def test_temperatures_that_look_at_the_same_positives_are_proposed_once():
    (samples,) = draw(4, (2, 20, 3))
    found = calibrate_temperatures(samples, generated=14)
    assert found.positives == 6
    assert len(found.temperatures) == 2
    assert all(high >= 1.5 * low for low, high in zip(found.temperatures, found.temperatures[1:], strict=False))


def test_too_few_positives_are_refused():
    (samples,) = draw(5, (2, 10, 3))
    with pytest.raises(InputError, match="positives is 3 for each label, too few to tell temperatures apart: pass at least 4"):
        calibrate_temperatures(samples, generated=7)
    with pytest.raises(InputError, match="generated is 0"):
        calibrate_temperatures(samples, generated=0)


def test_field_without_statistics_is_calibrated_by_the_mean_shift():
    (samples,) = draw(6, (1, 40, 3))
    assert calibrate_temperatures(samples, generated=20, field=lambda *_, **__: None) == calibrate_temperatures(
        samples, generated=20
    )


def test_run_is_calibrated_by_as_many_real_samples_as_its_step_has(tiny_digits):
    config = adjust(tiny_digits, generated=16, positives=20)
    found = calibration.calibrate(config)
    assert (found.generated, found.positives) == (16, 20)
    assert [each.temperature for each in found.present] == list(config.loss.temperatures)
    assert found == calibration.calibrate(config)
    assert calibration.flags(found) == "--temperatures " + " ".join(f"{value:g}" for value in found.temperatures)


def test_encoder_that_is_trained_with_the_run_is_that_of_its_folder(monkeypatch):
    config = presets.preset("mnist-encoder")
    monkeypatch.setattr(calibration, "resolve", lambda config: config)
    with pytest.raises(InputError, match="encoder is AutoencoderConfig, which is not trained yet: name the folder of a run"):
        calibration.calibrate(config)
    with pytest.raises(InputError, match="preset is 'mnist-classifier', which trains no generator"):
        calibration.calibrate(presets.preset("mnist-classifier"))


@pytest.mark.usefixtures("no_pictures")
def test_command_prints_flags_that_a_training_takes(command, here, small_presets):
    result = command("calibrate", "toy", "--dataset", "moons", "--batch-size", "64")
    assert result.status == 0, result.err
    assert "effective positives" in result.out
    (flags,) = re.findall(r"^--temperatures .*$", result.out, re.M)
    trained = command("train", "toy", *flags.split(), "--save-dir", "run")
    assert trained.status == 0, trained.err
    named = [float(word) for word in flags.split()[1:]]
    assert list(runs.load("run").config.loss.temperatures) == named
    again = command("calibrate", "run")
    assert again.status == 0, again.err
    assert again.out.count("now") == len(named)
    assert "leave it out" in command("calibrate", "run", "--data", "x").err
    assert "did you mean 'toy'" in command("calibrate", "toyy").err
