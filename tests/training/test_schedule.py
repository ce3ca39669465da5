"""The learning rate through a training."""

import dataclasses

import pytest

from drifting.errors import InputError
from drifting.training.schedule import Schedule, check_schedule


def test_learning_rate_rises_then_falls_with_a_power_of_the_step(tiny_toy):
    schedule = dataclasses.replace(tiny_toy.schedule, learning_rate=0.1, warmup_steps=4, decay_after=16, decay_power=0.5)
    rates = [schedule.learning_rate_at(step) for step in (1, 2, 4, 16, 64)]
    assert rates == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.05])
    steep = dataclasses.replace(schedule, decay_power=3.0)
    assert [steep.learning_rate_at(step) for step in (4, 16, 32)] == pytest.approx([0.1, 0.1, 0.0125])
    longer = dataclasses.replace(schedule, steps=1000)
    assert longer.learning_rate_at(64) == schedule.learning_rate_at(64)


def test_learning_rate_falls_linearly_to_zero_in_the_cooldown(tiny_toy):
    rates = {"learning_rate": 0.1, "warmup_steps": 4, "decay_after": 16}
    schedule = dataclasses.replace(tiny_toy.schedule, steps=100, cooldown=0.2, **rates)
    plain = dataclasses.replace(schedule, cooldown=0.0)
    factors = [schedule.learning_rate_at(step) / plain.learning_rate_at(step) for step in (1, 4, 81, 82, 91, 100)]
    assert factors == pytest.approx([1, 1, 1, 19 / 20, 10 / 20, 1 / 20])
    # Shorter and longer runs cool down in the same share of their steps.
    for steps in (10, 1000):
        other = dataclasses.replace(schedule, steps=steps)
        halfway = steps - steps // 10 + 1
        assert other.learning_rate_at(halfway) == pytest.approx(0.5 * plain.learning_rate_at(halfway))
    assert schedule.learning_rate_at(101) == 0


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_cooldown_out_of_range_is_refused(tiny_toy, wrong):
    with pytest.raises(InputError, match="cooldown is"):
        check_schedule(dataclasses.replace(tiny_toy.schedule, cooldown=wrong), labeled=False)


@pytest.mark.parametrize("wrong", [3.0, (3,), (3, 2, 1), (0, 1), (1, float("nan"))])
def test_factors_of_temperatures_that_are_not_two_are_refused(wrong):
    schedule = Schedule(steps=1, generated=2, positives=2, learning_rate=1e-3, temperature_factors=wrong)
    with pytest.raises(InputError, match=r"temperature_factors is .*: pass two numbers above 0"):
        check_schedule(schedule, labeled=False)


def test_learning_rate_is_constant_without_a_rise_and_a_fall():
    schedule = Schedule(steps=100, labels_per_step=1, generated=8, positives=8, learning_rate=0.2, warmup_steps=0, decay_after=None)
    assert [schedule.learning_rate_at(step) for step in (1, 100)] == [0.2, 0.2]
