"""Training on some labels at a time by the loop, from the drawing of real samples to the average of the weights."""

import dataclasses
import re

import pytest
import torch

from drifting.data.bank import MemoryBank
from drifting.data.sources import BankSource, InMemorySource
from drifting.distributed import Processes
from drifting.errors import InputError
from drifting.generators.mlp import MLP
from drifting.loss import DriftingLoss
from drifting.training.loop import check_shares, draw_batch, train
from drifting.training.positives import LazyFeatures, Positives
from drifting.training.schedule import Schedule, check_schedule
from drifting.training.state import TrainingState
from tests.support.covering import pairwise

CLASSES = 7
DRAWN = {"guidance_exponent": 2.0, "unguided_prob": 0.3, "unconditional": 3}
CASES = {
    "plain": {},
    "one guidance scale": {"guidance_scale": 2.0, "unconditional": 3},
    "drawn guidance": DRAWN,
    "independent negatives": {"independent_negatives": True, **DRAWN},
    "detached samples": {"detached_samples": 3, **DRAWN},
    "learned temperature": {"temperature_learning_rate": 0.1, **DRAWN},
    "clipped": {"max_grad_norm": 1e-2, **DRAWN},
}


def schedule(**settings) -> Schedule:
    usual = {"steps": 3, "labels_per_step": 6, "generated": 5, "positives": 4, "learning_rate": 1e-2, "max_grad_norm": None}
    return Schedule(**usual | {"ema_decay": 0.9, "statistics_every": 1} | settings)


def encode(samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return two features of 1 and 3 locations."""
    return {"all": samples[:, None], "parts": samples.unflatten(1, (3, 2)).tanh()}


def parts_of(settings: Schedule, encoder=encode, *, bank: bool = False) -> tuple[TrainingState, Positives]:
    rng = torch.Generator().manual_seed(0)
    samples, labels = torch.randn(70, 6, generator=rng), torch.arange(70) % CLASSES
    source = InMemorySource(samples, labels)
    if bank:
        memory = MemoryBank(CLASSES, sample_shape=(6,), capacity_per_class=5, unconditional_capacity=9, dtype=samples.dtype)
        source = BankSource(samples, labels, memory, push_per_step=4, seed=0)
    torch.manual_seed(0)
    network = MLP(noise_dim=4, sample_shape=(6,), width=9, depth=2, num_classes=CLASSES, guided=settings.draws_guidance)
    return TrainingState(network, settings, 0), Positives(source, encoder, later=settings.labels_per_microbatch is not None)


def trained(settings: Schedule, **options) -> tuple[list, TrainingState]:
    state, positives = parts_of(settings, **options)
    return [step.report for step in train(state, positives, encode, DriftingLoss(temperatures=(0.3, 1.0)), settings)], state


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(*pairwise(case=CASES, at_once=(1, 2, 6, 100), bank={"data set": False, "bank": True}))
def test_training_is_that_of_all_labels_at_once(case, bank, at_once):
    expected, whole = trained(schedule(**case), bank=bank)
    found, parted = trained(schedule(**case, labels_per_microbatch=at_once), bank=bank)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-8, atol=0)
        for name, feature in other.features.items():
            same = one.features[name]
            values = [(part.loss.detach(), part.scale, part.drift_norms, part.statistics) for part in (same, feature)]
            torch.testing.assert_close(*values, rtol=1e-7, atol=1e-10)
    assert not torch.equal(whole.generator.output.weight, parts_of(schedule(**case))[0].generator.output.weight)
    found_state, expected_state = parted.tensors(), whole.tensors()
    assert torch.equal(found_state.pop("rng.state"), expected_state.pop("rng.state"))
    torch.testing.assert_close(found_state, expected_state, rtol=1e-6, atol=1e-9)


def test_no_more_real_samples_are_encoded_at_a_time_than_a_pass_needs():
    counts, settings = [], schedule(steps=1, labels_per_microbatch=2, **DRAWN)

    def counted(samples):
        counts.append(len(samples))
        return encode(samples)

    state, positives = parts_of(settings, counted)
    batch = draw_batch(state, positives, settings)
    assert counts == []
    assert isinstance(batch.positives, LazyFeatures)
    state, positives = parts_of(settings, counted)
    list(train(state, positives, encode, DriftingLoss(), settings))
    # Of two labels 4 positives and 3 of any class each; three parts, three times.
    assert sorted(counts) == [6] * 9 + [8] * 9


def test_later_features_are_those_of_the_samples_once_they_are_looked_at():
    calls, samples = [], torch.arange(12.0, requires_grad=True).view(3, 2, 2)

    def features(drawn):
        calls.append(len(drawn))
        return {"a": 2 * drawn, "b": -drawn}

    later = LazyFeatures(samples, features)
    part = later.of(slice(1, 3))
    assert calls == []
    assert (list(part), len(part), "a" in part, "c" in part) == (["a", "b"], 2, True, False)
    assert torch.equal(part["a"], 2 * samples[1:])
    assert torch.equal(part["b"], -samples[1:])
    assert calls == [2]  # and no more often
    assert not part["a"].requires_grad
    assert part.keys() == {"a": 0, "b": 0}.keys()
    assert torch.equal(later["b"], -samples)
    with pytest.raises(KeyError):
        later["c"]


class Several(Processes):
    """One of so many processes."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("settings", "classes", "size", "message"),
    [
        (
            {},
            7,
            4,
            "world size is 4, which does not divide the 6 labels of a step: start as many processes as do, such as 3",
        ),
        (
            {"generated": 6},
            None,
            3,
            "world size is 3, which does not divide the 4 positives of a step: start as many processes as do, such as 2",
        ),
        (
            {"positives": 10},
            None,
            2,
            "world size is 2, which does not divide the 5 generated samples of a step: start as many processes as do, such as 1",
        ),
    ],
)
def test_step_that_cannot_be_shared_equally_is_refused(settings, classes, size, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_shares(schedule(**settings), classes, Several(size))


@pytest.mark.parametrize(
    ("settings", "classes", "size"),
    [
        ({"labels_per_microbatch": 6}, 7, 1),
        ({"labels_per_microbatch": 64}, 7, 2),
        ({"labels_per_microbatch": 4}, 7, 1),
        ({"labels_per_microbatch": 2}, 7, 2),
        ({"labels_per_microbatch": 1}, 7, 6),
        ({"labels_per_microbatch": 4}, None, 1),
        ({"generated": 6}, None, 2),
    ],
)
def test_step_that_can_be_shared_is_not(settings, classes, size):
    check_shares(schedule(**settings), classes, Several(size))


@pytest.mark.parametrize(
    ("settings", "labeled", "message"),
    [
        ({"labels_per_microbatch": 0}, True, "labels_per_microbatch is 0: pass at least 1"),
        ({"labels_per_microbatch": -1}, False, "labels_per_microbatch is -1: pass at least 1"),
        (
            {"labels_per_microbatch": 2},
            False,
            "labels_per_microbatch is 2, but the data have no labels: pass microbatch_size in place of it",
        ),
        (
            {"labels_per_microbatch": 2, "microbatch_size": 5},
            True,
            "labels_per_microbatch is 2 and microbatch_size 5: pass one of them",
        ),
    ],
)
def test_passes_that_contradict_themselves_are_refused(settings, labeled, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_schedule(schedule(**settings), labeled=labeled)
    check_schedule(dataclasses.replace(schedule(**settings), labels_per_microbatch=None), labeled=labeled)
