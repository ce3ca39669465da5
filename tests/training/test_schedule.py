"""The learning rate through a training."""

import dataclasses

import pytest

from drifting.training.schedule import Schedule


def test_learning_rate_rises_then_falls_with_a_power_of_the_step(tiny_toy):
    schedule = dataclasses.replace(tiny_toy.schedule, learning_rate=0.1, warmup_steps=4, decay_after=16, decay_power=0.5)
    rates = [schedule.learning_rate_at(step) for step in (1, 2, 4, 16, 64)]
    assert rates == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.05])
    steep = dataclasses.replace(schedule, decay_power=3.0)
    assert [steep.learning_rate_at(step) for step in (4, 16, 32)] == pytest.approx([0.1, 0.1, 0.0125])
    longer = dataclasses.replace(schedule, steps=1000)
    assert longer.learning_rate_at(64) == schedule.learning_rate_at(64)


def test_learning_rate_is_constant_without_a_rise_and_a_fall():
    schedule = Schedule(steps=100, labels_per_step=1, generated=8, positives=8, learning_rate=0.2, warmup_steps=0, decay_after=None)
    assert [schedule.learning_rate_at(step) for step in (1, 100)] == [0.2, 0.2]
