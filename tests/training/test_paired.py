"""Real samples with one condition each: one positive per group, in the library's loop with the user's network."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from drifting import DriftingLoss, InputError, Schedule, Trainer, drifting_loss
from drifting.data.pairs import PairedSource
from drifting.fields import MeanShift
from drifting.generators import MLP
from tests.oracle import drifting_oracle as oracle
from tests.test_loss import assert_is_that_of_the_oracle, draw, with_gradient

LOSS = DriftingLoss(temperatures=(0.3, 1.0), field=MeanShift(affinity_floor=0.0))
EXAMPLE = Path(__file__).parents[2] / "examples" / "05_conditions.py"


class Answer(nn.Module):
    """Noise and a condition of two numbers -> an answer of three."""

    noise_shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 3))
        self.seen: list[torch.Tensor] = []

    def forward(self, noise, conditions):
        self.seen.append(conditions)
        return self.layers(torch.cat([noise, conditions], 1))


def pairs(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples and conditions whose first coordinate is the number of the pair."""
    samples, conditions = draw(1, (count, 3), (count, 2), dtype=torch.float32)
    samples[:, 0] = conditions[:, 0] = torch.arange(count)
    return samples, conditions


def schedule(**changes) -> Schedule:
    usual = {"steps": 4, "labels_per_step": 6, "generated": 5, "positives": 1, "learning_rate": 1e-2, "ema_decay": 0.9}
    return Schedule(**usual | changes)


def trainer(loss=LOSS, **changes) -> Trainer:
    samples, conditions = pairs()
    return Trainer(Answer(), samples, conditions=conditions, loss=loss, schedule=schedule(**changes))


def test_loss_with_one_positive_is_that_of_the_oracle():
    generated, positives = draw(2, (6, 5, 3), (6, 1, 3))
    report, gradient = with_gradient(generated, positives, temperatures=(0.3, 1.0))
    assert_is_that_of_the_oracle(report, gradient, oracle.drifting_loss(generated, positives, temperatures=(0.3, 1.0)))
    apart = drifting_loss(generated[:, :1], positives, generated_negatives=generated[:, :1] * 0 + 9)
    assert apart.loss.isfinite().all()


def test_step_compares_the_samples_of_a_condition_with_its_own_real_sample():
    batches, made = [], trainer(DriftingLoss(temperatures=(1.0,)))
    made.loss.register_forward_pre_hook(lambda _, given: batches.append(given))
    made.module.seen.clear()
    next(iter(made))
    generated, positives, _ = batches[0]
    assert generated["sample"].shape == (6, 5, 1, 3)
    assert positives["sample"].shape == (6, 1, 1, 3)
    (conditions,) = made.module.seen
    asked = conditions[:, 0].unflatten(0, (6, 5))
    assert torch.equal(asked, positives["sample"][:, :, 0, 0].expand(-1, 5))
    assert len(asked[:, 0].unique()) == 6


@pytest.mark.parametrize("changes", [{"microbatch_size": 7}, {"labels_per_microbatch": 2}])
def test_step_in_parts_is_the_whole_step(changes):
    whole, parts = trainer(), trainer(**changes)
    for _ in zip(whole, parts, strict=True):
        pass
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(parts.module.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"detached_samples": 3}, {"temperature_learning_rate": 0.01}])
def test_training_resumes_bit_for_bit(changes, assert_same_tensors):
    loss = DriftingLoss(temperatures=(1.0,), field=MeanShift(0.0), scale_per_row=True, drift_clip=2.0)
    whole, first, second = (trainer(loss, **changes) for _ in range(3))
    for _ in whole:
        pass
    for step in first:
        if step.number == 2:
            break
    second.load_state_dict(first.state_dict())
    assert len(list(second)) == 2
    assert_same_tensors(second.state_dict(), whole.state_dict())


def test_samples_are_made_for_any_conditions_in_turn():
    made = trainer()
    made.averaged.seen.clear()
    asked = torch.tensor([[0.5, 0.0], [-3.0, 1.0], [7.0, 2.0]])
    assert made.sample(7, conditions=asked).shape == (7, 3)
    assert torch.equal(torch.cat(made.averaged.seen), asked[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(made.sample(4, conditions=asked[:1])[3], made.sample(4, conditions=asked[[1, 1, 1, 0]])[3])
    assert made.sample(2).shape == (2, 3)


def test_copies_of_the_network_share_the_conditions():
    made = trainer(other_ema_decays=(0.5,))
    kept = [network.conditions for network in (made._state.generator, made._state.averaged)]
    assert kept[0] is kept[1]
    assert not any("condition" in name for name in made.state_dict())


def test_default_schedule_has_one_positive_for_each_condition():
    samples, conditions = pairs()
    made = Trainer(Answer(), samples, conditions=conditions, loss=LOSS).schedule
    assert (made.labels_per_step, made.generated, made.positives) == (30, 8, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conditions": torch.zeros(29, 2)}, "conditions has 29 rows for 30 samples: pass one for each"),
        ({"conditions": torch.full((30, 2), torch.nan)}, "conditions holds NaN or infinite values"),
        ({"data": TensorDataset(pairs()[0])}, "data is a TensorDataset and conditions a Tensor: pass both as tensors"),
        ({"schedule": schedule(positives=2)}, "positives is 2, but a condition has one real sample: pass 1"),
        ({"schedule": schedule(generated=1)}, "nothing to repel it"),
        ({"module": nn.Linear(4, 3), "noise_shape": 4}, "module takes noise alone, but the data have labels or conditions"),
        (
            {"module": MLP(noise_dim=4, sample_shape=(3,), width=4, depth=1, num_classes=30)},
            "module is a Generator, which takes labels",
        ),
        ({"conditions": torch.zeros(30, 5)}, r"module fails on noise \(2, 4\) and conditions \(2, 5\)"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(changes, words):
    samples, conditions = pairs()
    given = {"module": Answer(), "data": samples, "conditions": conditions, "schedule": schedule(), **changes}
    with pytest.raises(InputError, match=words):
        Trainer(given.pop("module"), given.pop("data"), **given)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (torch.zeros(2), r"conditions is of shape \(2,\): pass a tensor with one row of shape \(2,\)"),
        (torch.zeros(3, 5), r"conditions is of shape \(3, 5\)"),
        ([[0.0, 1.0]], "conditions is a list: pass a tensor"),
        (torch.zeros(0, 2), "conditions is empty"),
        (torch.full((3, 2), torch.nan), "holds NaN or infinite values"),
    ],
)
def test_conditions_unlike_those_of_the_training_are_refused(asked, words):
    with pytest.raises(InputError, match=words):
        trainer().sample(2, conditions=asked)


def test_conditions_have_the_precision_of_those_of_the_training():
    asked = torch.tensor([[0.5, 0.0], [-3.0, 1.0]])
    made = trainer()
    assert torch.equal(made.sample(3, conditions=asked.double()), made.sample(3, conditions=asked))


def test_conditions_of_a_trainer_without_are_refused():
    made = Trainer(nn.Linear(4, 3), pairs()[0], schedule=schedule(positives=5), noise_shape=4)
    with pytest.raises(InputError, match="conditions are given, but the trainer has none: leave them out"):
        made.sample(2, conditions=torch.zeros(1, 2))


def test_unconditional_samples_are_of_any_condition():
    source = PairedSource(*pairs())
    drawn = source.draw_unconditional(2, 50, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 50, 3)
    assert len(drawn[..., 0].unique()) > 20
    everything = source.draw(None, 2, torch.Generator())
    assert torch.equal(everything[:, 0], source.samples)


def test_both_answers_are_found_where_there_are_two():
    answers, branch = runpy.run_path(str(EXAMPLE))["main"](steps=250, n=16)
    upper = answers > 0
    assert ((upper.float().mean(0) - 0.5).abs() < 0.2).all()
    # The mean of both answers would be the height of a branch away from either.
    assert (answers.abs() - branch).abs().mean() < 0.4 * branch.mean()
