"""The rules from figures to sentences, each on figures that fit it and on ones that do not."""

import math
import re

import pytest
import torch

import drifting
from drifting import history, presets
from drifting.diagnosis import Settings, judge
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.presets.settings import settings

SETTINGS = Settings(steps=300, learning_rate=1e-3)


def lines(count=9, spacing=50, **series):
    """Return lines of a healthy training of one feature at two temperatures; a series is a value or a function of the line."""
    healthy = {
        "drift_norm/a/0.1": lambda index: 0.1 / (1 + index),
        "drift_norm/a/0.4": lambda index: 0.1 / (1 + index),
        "noise_floor/a/0.1": 1e-3,
        "noise_floor/a/0.4": 1e-3,
        "half_cosine/a/0.1": 0.5,
        "half_cosine/a/0.4": 0.8,
        "one_hot_share/a/0.1": 0.3,
        "one_hot_share/a/0.4": 0.0,
        "flat_share/a/0.1": 0.0,
        "flat_share/a/0.4": 0.3,
        "diversity/a": lambda index: min(1.0, 0.1 * (1 + 2 * index)),
        "remoteness/a": 1.0,
        "generated_count/a": 64.0,
        "positive_count/a": 64.0,
        "gradient_norm/hidden": 1.0,
        "weight_change/hidden": 5e-3,
    }
    values = healthy | series
    return [
        {"step": spacing * (index + 1), **{name: value(index) if callable(value) else value for name, value in values.items()}}
        for index in range(count)
    ]


def faults(found):
    return [finding.name for finding in judge(found, SETTINGS).faults]


NOISE = {
    **{f"drift_norm/a/{temperature}": 1.2e-3 for temperature in (0.1, 0.4)},
    **{f"half_cosine/a/{temperature}": 0.02 for temperature in (0.1, 0.4)},
}
FAULTS = {
    "one-hot at the largest temperature": ({"one_hot_share/a/0.4": 0.95}, "temperatures too small"),
    "no neighbors in the data": (
        {"noise_floor/a/0.1": 0.0, "noise_floor/a/0.4": 0.0, "one_hot_share/a/0.4": 1.0, "remoteness/a": 30.0},
        "temperatures too small",
    ),
    "flat at the smallest temperature": ({"flat_share/a/0.1": 1.0, "flat_share/a/0.4": 1.0}, "temperatures too large"),
    "flat for positives alone": ({"flat_share/a/0.1": 1.0, "negative_neighbors/a/0.1": 20.0}, "affinity floor too high"),
    "flat for negatives too": ({"flat_share/a/0.1": 1.0, "negative_neighbors/a/0.1": 62.0}, "temperatures too large"),
    "escaped": ({"remoteness/a": 1e6, "one_hot_share/a/0.4": 1.0}, "learning rate too high"),
    "escaped and collapsed": ({"diversity/a": lambda index: 300.0 if index < 3 else 0.2}, "learning rate too high"),
    "weights jump": ({"weight_change/hidden": 0.3}, "learning rate too high"),
    "dead network": ({"diversity/a": 1e-9, "gradient_norm/hidden": 0.0}, "learning rate too high"),
    "dying network": ({"gradient_norm/hidden": lambda index: 0.1**index}, "learning rate too high"),
    "copies": ({"diversity/a": 1e-3}, "samples collapse"),
    "diversity falls": ({"diversity/a": lambda index: 0.9 * 0.7**index}, "samples collapse"),
    "few positives": ({"positive_count/a": 8.0}, "too few positives"),
    "few generated": ({"generated_count/a": 8.0}, "too few generated samples"),
    "few generated of one feature": ({"generated_count/b": 3.0, "positive_count/b": 3.0}, "too few positives"),
    "equal features": ({"noise_floor/a/0.1": 0.0, "noise_floor/a/0.4": 0.0, "remoteness/a": 1e37}, "encoder is blind"),
    "not a number": ({"loss": lambda index: math.nan if index > 4 else 1.0}, "not finite"),
    "infinite": ({"drift_norm/a/0.4": math.inf, "noise_floor/a/0.4": 1.0}, "not finite"),
    "shuffled": ({"response/shuffled/a": 0.0, "response/recolored/a": 0.9}, "encoder is blind"),
    "recolored": ({"response/recolored/a": 1e-3}, "encoder is blind"),
    "no progress": ({"energy_distance": 0.5}, "no progress"),
}


@pytest.mark.parametrize(("series", "name"), FAULTS.values(), ids=list(FAULTS))
def test_fault_is_found_with_its_cause_and_a_flag(series, name):
    (finding,) = judge(lines(**series), SETTINGS).faults
    assert finding.name == name
    assert any(character.isdigit() for character in finding.cause)
    assert "--" in finding.fix
    assert judge(lines(**series), SETTINGS).lines()[0] == "The training has 1 fault."


def test_healthy_training_has_no_fault():
    assert faults(lines()) == []
    assert judge(lines(), SETTINGS).lines()[0] == "The training is healthy."
    # The start of a healthy training has samples that are alike, and do not spread at first.
    assert faults(lines(**{"diversity/a": lambda index: 0.08 if index < 7 else 0.3})) == []
    # The gradient of a drift that is all noise may vanish.
    assert faults(lines(**NOISE, **{"gradient_norm/hidden": lambda index: 0.1**index})) == []
    # Some features need not tell colors apart, and one temperature may be one-hot.
    assert faults(lines(**{"response/recolored/a": 0.0, "response/recolored/b": 0.8, "one_hot_share/a/0.1": 1.0})) == []


def test_samples_that_stay_alike_are_a_fault_after_many_steps():
    alike = {"diversity/a": 0.3}
    assert faults(lines(**alike)) == []
    assert faults(lines(spacing=200, **alike)) == ["samples collapse"]
    assert faults(lines(spacing=200, **{"diversity/a": lambda index: 0.05 + 0.04 * index})) == []


NOTES = {
    "improving": ({}, Settings(), "still improving", "--steps"),
    "converged": (NOISE, Settings(), "converged", "--schedule.cooldown"),
    "converged, falling": (NOISE, Settings(rate_falls=True), "converged", ""),
    "standing": ({"drift_norm/a/0.1": 0.05, "drift_norm/a/0.4": 0.05}, Settings(), "standing", "--learning-rate"),
    "alike": ({"diversity/a": 0.3}, Settings(), "samples still alike", "--steps"),
    "spread": ({"diversity/a": 1.14}, Settings(), "samples too far apart", "--schedule.guidance-scale"),
    "spread by the field": ({"diversity/a": 1.14}, Settings(spread_flag="--loss.x"), "samples too far apart", "--loss.x"),
}


@pytest.mark.parametrize(("series", "settings", "name", "flag"), NOTES.values(), ids=list(NOTES))
def test_training_without_a_fault_is_told_how_far_it_is(series, settings, name, flag):
    found = judge(lines(**series), settings)
    (note,) = found.findings
    assert (note.name, note.fault, found.faults) == (name, False, ())
    assert flag in note.fix
    assert bool(note.fix) is bool(flag)


def test_fix_names_a_floor_only_where_there_is_one():
    uneven = lines(**{"flat_share/a/0.1": 1.0, "negative_neighbors/a/0.1": 20.0})
    assert judge(uneven, Settings(floor_flag=None)).faults == ()
    (copies,) = judge(lines(**{"diversity/a": 1e-3}), Settings(floor_flag=None)).faults
    assert copies.fix == "lower --learning-rate, or widen --temperatures"


def test_flags_of_a_fix_exist():
    known = {f"--{setting.name}".replace("_", "-") for setting in settings(presets.preset("digits"))}
    fixes = [judge(lines(**series), SETTINGS).faults[0].fix for series, _ in FAULTS.values()]
    fixes += [judge(lines(**series), given).findings[0].fix for series, given, *_ in NOTES.values()]
    # Short names and flags of other encoders and fields are those of other presets.
    others = {"--temperatures", "--learning-rate", "--batch-size", "--steps", "--encoder.features", "--encoder-weights", "--loss.x"}
    others.add(SETTINGS.floor_flag)
    named = {word for fix in fixes for word in re.findall(r"--[\w.-]*\w", fix)}
    assert named - others <= known


def test_a_single_bad_step_is_no_end():
    assert faults(lines(**{"loss": lambda index: math.nan if index == 4 else 1.0})) == []


def test_conditions_with_one_positive_are_not_too_few():
    assert faults(lines(**{"positive_count/a": 1.0, "generated_count/a": 4.0})) == []


def test_small_groups_and_names_with_slashes_are_told_why_they_are_not_judged():
    small = [{"step": n, "drift_norm/a/b/0.1": 1.0, "positive_count/a/b": 3.0, "generated_count/a/b": 30.0} for n in range(1, 6)]
    found = judge(small, SETTINGS)
    assert [finding.name for finding in found.faults] == ["too few positives"]
    assert "fewer than 4" in found.unknown[0]
    few = [{"step": n, "drift_norm/a/b/0.1": 1.0, "diversity/a/b": 1.0} for n in (1, 2)]
    assert "there are fewer than 3 lines" in judge(few, SETTINGS).unknown[0]


def test_rate_in_the_fix_is_lower_than_that_of_the_run():
    (finding,) = judge(lines(**{"remoteness/a": 100.0}), Settings(learning_rate=0.5)).faults
    assert "from 0.5 to 0.05" in finding.fix


def test_nothing_is_judged_before_there_are_enough_lines():
    few = lines(count=history.FEWEST_LINES - 1, **{"one_hot_share/a/0.4": 1.0})
    found = judge(few, SETTINGS)
    assert (found.faults, len(found.unknown)) == ((), 1)
    assert found.lines()[0] == "Nothing is wrong in what can be judged."
    assert judge([], SETTINGS).unknown


def test_log_of_an_earlier_version_is_judged_by_its_drift_norms():
    earlier = [{"step": 50 * n, "drift_norm/a/0.1": 0.01, "energy_distance": 1 / n} for n in range(1, 6)]
    found = judge(earlier, SETTINGS)
    assert found.faults == ()
    assert "earlier versions" in found.unknown[0]
    assert faults([{"step": 50 * n, "drift_norm/a/0.1": 0.0} for n in range(1, 6)]) == ["no drift"]


def test_figures_that_are_no_numbers_are_left_out():
    assert faults(lines(**{"diversity/a": lambda index: math.nan if index % 2 else 1.0, "drift_norm/a/x": 1.0})) == []


def reports(steps, scale, rate, temperatures=(0.1, 0.4)):
    """Train points by gradient steps on themselves, and return the reports."""
    rng = torch.Generator().manual_seed(0)
    points = (scale * torch.randn(32, 4, generator=rng)).requires_grad_()
    loss = drifting.DriftingLoss(temperatures=temperatures, field=MeanShift(0.0))
    found = []
    for _ in range(steps):
        report = loss(points, torch.randn(32, 4, generator=rng), statistics=True)
        (gradient,) = torch.autograd.grad(report.loss, points)
        points.data -= rate * gradient
        found.append(report)
    return found


def test_reports_of_a_loop_of_your_own_are_judged():
    healthy = drifting.diagnose(reports(9, 1.0, 5.0))
    assert (healthy.faults, healthy.unknown) == ((), ())
    assert healthy.findings
    broken = [*reports(4, 1.0, 5.0), *reports(4, math.nan, 5.0)]
    for found in (drifting.diagnose(broken), drifting.diagnose(broken[4:])):
        (fault,) = found.faults
        assert fault.name == "not finite"
    assert "since step 5" in drifting.diagnose(broken).faults[0].cause
    assert "since step 250" in drifting.diagnose(broken, every=50).faults[0].cause
    with pytest.raises(InputError, match="every is 0: pass at least 1"):
        drifting.diagnose(broken, every=0)
    (small,) = drifting.diagnose(reports(4, 1.0, 5.0, temperatures=(1e-6,))).faults
    (large,) = drifting.diagnose([report.features["sample"] for report in reports(4, 1.0, 5.0, temperatures=(1e4,))]).faults
    assert (small.name, large.name) == ("temperatures too small", "temperatures too large")
