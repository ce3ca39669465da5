"""A generator that is told the guidance scale makes the guided density at any scale, in one pass."""

import dataclasses
import re

import pytest
import torch

from drifting.config import RunConfig
from drifting.data.sources import InMemorySource
from drifting.encoders.base import identity
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.generators.mlp import MLP
from drifting.loss import DriftingLoss
from drifting.runs.train import build_encoder, build_positives
from drifting.sampling import sample
from drifting.training.loop import draw_batch, train
from drifting.training.positives import Positives
from drifting.training.schedule import Schedule
from drifting.training.state import TrainingState
from tests.support.two_components import two_components, upper_shares

SCHEDULE = Schedule(
    steps=330,
    labels_per_step=2,
    generated=128,
    positives=128,
    guidance_exponent=0.0,
    highest_guidance_scale=2.0,
    unguided_prob=0.2,
    unconditional=128,
    learning_rate=3e-3,
    warmup_steps=20,
    decay_after=150,
    decay_power=1.0,
    ema_decay=0.99,
)


@pytest.fixture(scope="module")
def generator() -> MLP:
    """A generator of two classes with shares .7 and .3 of the upper of two components, trained at scales from 1 to 2."""
    real = two_components([0.7, 0.3], 20_000, torch.Generator().manual_seed(0))
    positives = Positives(InMemorySource(real.flatten(0, 1), torch.arange(2).repeat_interleave(20_000)), identity)
    loss = DriftingLoss(temperatures=(1.0,), field=MeanShift(0.0), normalize_features=False, normalize_drift=False)
    torch.manual_seed(0)
    state = TrainingState(MLP(noise_dim=1, sample_shape=(1,), width=64, depth=2, num_classes=2, guided=True), SCHEDULE, seed=0)
    for _ in train(state, positives, identity, loss, SCHEDULE):
        pass
    return state.averaged


@pytest.mark.parametrize(("guidance_scale", "share"), [(None, 0.7), (1.0, 0.7), (1.25, 0.75), (1.5, 0.8)])
def test_shares_are_those_of_the_guided_density(generator, guidance_scale, share):
    samples = sample(generator, 20_000, guidance_scale=guidance_scale)
    first, second = upper_shares(samples.unflatten(0, (-1, 2)).transpose(0, 1)).tolist()
    assert (first + 1 - second) / 2 == pytest.approx(share, abs=0.03)
    assert [first, second] == pytest.approx([share, 1 - share], abs=0.06)


def _with(config: RunConfig, **schedule) -> RunConfig:
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, **schedule))


def _state(config: RunConfig) -> tuple[TrainingState, list]:
    """Return a fresh state and what else `train` takes."""
    state, encoder = TrainingState(config.build_generator(), config.schedule, config.seed), build_encoder(config)
    return state, [build_positives(config, encoder), encoder, config.loss.build(), config.schedule]


@pytest.mark.parametrize(("independent", "repelling"), [(False, 3), (True, 4)])
def test_guided_batch_has_real_samples_of_any_label_that_weigh_as_the_guidance_asks(tiny_digits, independent, repelling):
    guided = {"guidance_scale": 1.5, "unconditional": 5, "independent_negatives": independent}
    state, (positives, *_, schedule) = _state(_with(tiny_digits, labels_per_step=7, generated=4, **guided))
    batch = draw_batch(state, positives, schedule)
    assert {name: tuple(value.shape) for name, value in batch.unconditional.items()} == {"sample": (7, 5, 1, 64)}
    assert batch.unconditional_weight.tolist() == pytest.approx([0.5 * repelling / 5] * 7)
    assert batch.guidance_scale is None


@pytest.mark.parametrize(("independent", "repelling"), [(False, 3), (True, 4)])
def test_drawn_scales_are_passed_to_the_generator_and_weigh_the_real_samples_of_their_label(tiny_digits, independent, repelling):
    drawn = {"guidance_exponent": 1.0, "highest_guidance_scale": 3.0, "unguided_prob": 0.3, "unconditional": 5}
    sizes = {"labels_per_step": 7, "generated": 4, "independent_negatives": independent}
    state, (positives, *_, schedule) = _state(_with(tiny_digits, **drawn, **sizes))
    scales = []
    for _ in range(20):
        batch = draw_batch(state, positives, schedule)
        assert batch.unconditional_weight.tolist() == pytest.approx(((batch.guidance_scale - 1) * repelling / 5).tolist())
        scales.append(batch.guidance_scale)
    scales = torch.stack(scales)
    assert scales.shape == (20, 7)
    assert (float(scales.min()), float(scales.max())) == (1, pytest.approx(3, abs=0.3))
    assert float((scales == 1).double().mean()) == pytest.approx(0.3, abs=0.12)


def test_guided_generator_learns_from_its_guidance_scale(tiny_digits):
    drawn = {"guidance_exponent": 1.0, "unconditional": 5}
    state, parts = _state(_with(tiny_digits, **drawn))
    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    for _ in train(state, *parts):
        pass
    assert len([name for name in before if name.startswith("guidance")]) == 2
    assert [name for name, value in state.generator.state_dict().items() if torch.equal(value, before[name])] == []


def test_fixed_guidance_is_not_told_at_sampling(tiny_digits):
    schedule = _with(tiny_digits, guidance_scale=1.2, unconditional=5).schedule
    assert schedule.scale_of_samples() is schedule.scale_of_samples(1.2) is None
    refusal = re.escape("guidance_scale is 1, but the run was trained at guidance scale 1.2 alone: leave it out")
    with pytest.raises(InputError, match=refusal):
        schedule.scale_of_samples(1.0)


def test_drawn_guidance_is_reported_as_far_as_it_was_trained(tiny_digits):
    drawn = {"guidance_scale": 1.5, "guidance_exponent": 3.0, "highest_guidance_scale": 2.5, "unconditional": 5}
    schedule = _with(tiny_digits, **drawn).schedule
    assert [schedule.scale_of_samples(asked) for asked in (None, 1.0, 2.5)] == [1.5, 1, 2.5]
    refusal = re.escape("guidance_scale is 2.6, but the run was trained up to 2.5: pass a number from 1 to 2.5")
    with pytest.raises(InputError, match=refusal):
        schedule.scale_of_samples(2.6)
    with pytest.raises(InputError, match=r"guidance_scale is 0\.9: pass a number from 1"):
        schedule.scale_of_samples(0.9)
