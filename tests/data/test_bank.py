from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting.data.bank import BankSource, MemoryBank
from drifting.data.shuffle import shuffled_indices
from drifting.errors import InputError


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bank(num_classes=3, per_class=4, unconditional=5, shape=()) -> MemoryBank:
    return MemoryBank(num_classes, sample_shape=shape, capacity_per_class=per_class, unconditional_capacity=unconditional)


class NaiveBank:
    """One deque for each class and one for all."""

    def __init__(self, num_classes, per_class, unconditional):
        self.classes = [deque(maxlen=per_class) for _ in range(num_classes)]
        self.all = deque(maxlen=unconditional)

    def push(self, samples, labels):
        for sample, label in zip(samples, labels, strict=True):
            self.classes[label].append(sample)
            self.all.append(sample)


@settings(max_examples=60, deadline=None)
@given(
    per_class=st.integers(1, 5),
    unconditional=st.integers(1, 7),
    pushes=st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=6),
)
def test_bank_holds_what_deques_hold(per_class, unconditional, pushes):
    bank, naive, number = _bank(3, per_class, unconditional), NaiveBank(3, per_class, unconditional), 0
    for labels in pushes:
        samples = [float(number + i) for i in range(len(labels))]
        number += len(labels)
        bank.push(torch.tensor(samples), torch.tensor(labels, dtype=torch.long))
        naive.push(samples, labels)
        assert bank.filled.tolist() == [len(kept) for kept in naive.classes]
        assert bank.unconditional_filled == len(naive.all)
        for label, kept in enumerate(naive.classes):
            if kept:
                drawn = bank.draw(torch.tensor([label]), len(kept), _rng())
                assert sorted(drawn[0].tolist()) == sorted(kept)
        if naive.all:
            assert sorted(bank.draw_unconditional(1, len(naive.all), _rng())[0].tolist()) == sorted(naive.all)


def test_slots_are_those_of_a_ring():
    bank = _bank(2, 3, 2)
    bank.push(torch.arange(5.0), torch.tensor([0, 1, 0, 0, 0]))
    assert bank.tensors()["classes.samples"].tolist() == [[4.0, 2.0, 3.0], [1.0, 0.0, 0.0]]
    assert bank.tensors()["unconditional.samples"].tolist() == [[4.0, 3.0]]


@pytest.mark.parametrize("seed", range(4))
def test_draws_are_without_replacement_as_far_as_a_class_reaches(seed):
    bank = _bank(2, 6)
    bank.push(torch.arange(9.0), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1]))
    drawn = bank.draw(torch.tensor([1, 0, 1]), 6, _rng(seed))
    assert sorted(drawn[1].tolist()) == [0, 1, 2, 3, 4, 5]
    for row in (0, 2):
        assert sorted(drawn[row].tolist()) == [6, 6, 7, 7, 8, 8]


def test_every_kept_sample_is_equally_likely():
    bank, rng = _bank(1, 8), _rng()
    bank.push(torch.arange(5.0), torch.zeros(5, dtype=torch.long))
    drawn = torch.stack([bank.draw(torch.tensor([0]), 2, rng)[0] for _ in range(1000)])
    counts = drawn.long().flatten().bincount(minlength=5)
    assert float(((counts - 400) ** 2 / 400).sum()) < 18.5


def test_draws_follow_the_stream():
    bank = _bank(shape=(2,))
    bank.push(torch.randn(20, 2), torch.arange(20) % 3)
    first, again, other = (bank.draw(torch.arange(3), 3, _rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (3, 3, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unconditional_sets_are_independent():
    bank = _bank(unconditional=100)
    bank.push(torch.arange(99.0), torch.arange(99) % 3)
    drawn = bank.draw_unconditional(4, 20, _rng())
    assert drawn.shape == (4, 20)
    assert [len(set(row.tolist())) for row in drawn] == [20] * 4
    assert len({tuple(row.tolist()) for row in drawn}) == 4


def test_unlabelled_samples_are_one_class():
    bank = _bank(None)
    bank.push(torch.arange(3.0))
    assert sorted(bank.draw(None, 3, _rng())[0].tolist()) == [0, 1, 2]
    with pytest.raises(InputError, match="labels is given, but the bank has None classes"):
        bank.push(torch.arange(3.0), torch.zeros(3, dtype=torch.long))


def test_other_kinds_of_samples_can_be_kept():
    bank = MemoryBank(2, sample_shape=(), dtype=torch.long)
    bank.push(torch.tensor([2**40 + 1, 7]), torch.tensor([1, 0]))
    assert bank.draw(torch.tensor([1]), 1, _rng()).tolist() == [[2**40 + 1]]


def test_state_comes_back_bit_for_bit():
    bank, other = _bank(shape=(2,)), _bank(shape=(2,))
    bank.push(torch.randn(9, 2), torch.arange(9) % 2)
    saved = bank.tensors()
    bank.push(torch.randn(9, 2), torch.arange(9) % 3)
    assert int(saved["classes.pushed"].sum()) == 9
    other.restore(saved)
    bank.restore(saved)
    for name, value in saved.items():
        assert torch.equal(other.tensors()[name], value)
        assert torch.equal(bank.tensors()[name], value)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda bank: bank.draw(torch.tensor([0, 2]), 1, _rng()), "no sample of class 2"),
        (lambda bank: bank.draw(torch.tensor([3]), 1, _rng()), "labels has 3: choose from 0 to 2"),
        (lambda bank: bank.push(torch.zeros(1), torch.tensor([-1])), "labels has -1"),
        (lambda bank: bank.push(torch.zeros(2), torch.tensor([0])), "labels has 1 entries for 2"),
        (lambda bank: bank.push(torch.zeros(1, 2), torch.tensor([0])), r"samples have shape \(2,\)"),
        (lambda bank: bank.push(torch.zeros(1)), "labels is missing"),
        (lambda bank: bank.restore(_bank(per_class=9).tensors(), "there"), r"'there' has classes.samples of shape \(3, 9\)"),
        (lambda bank: bank.restore({}, "there"), "of shape None"),
        (lambda bank: _bank(per_class=0), "capacity_per_class is 0"),
        (lambda bank: _bank().draw_unconditional(1, 1, _rng()), "no sample at all"),
    ],
)
def test_bad_input_is_named(action, message):
    bank = _bank()
    bank.push(torch.zeros(1), torch.tensor([0]))
    with pytest.raises(InputError, match=message):
        action(bank)


LABELS = torch.tensor([0] * 6 + [1] * 2 + [2] * 40)
SAMPLES = torch.stack([LABELS.float(), torch.arange(48.0)], 1)


def _source(push_per_step=5, seed=3, **kwargs) -> BankSource:
    return BankSource(SAMPLES, LABELS, _bank(shape=(2,)), push_per_step=push_per_step, seed=seed, **kwargs)


def test_first_draw_fills_every_class():
    source = _source()
    drawn = source.draw(torch.tensor([1, 2]), 4, _rng())
    assert drawn[..., 0].tolist() == [[1.0] * 4, [2.0] * 4]
    assert source.bank.filled.tolist() == [4, 4, 4]
    assert (source.sample_shape, source.num_classes) == ((2,), 3)
    assert source.draw_unconditional(2, 3, _rng()).shape == (2, 3, 2)


def test_every_draw_pushes_the_next_of_the_order():
    source = _source()
    source.draw(torch.tensor([0]), 1, _rng())
    start = int(source.tensors()["position"])
    for step in range(12):
        source.draw(torch.tensor([0]), 1, _rng())
        latest = shuffled_indices(48, start + 5 * step, 5, 3)
        assert int(source.tensors()["position"]) == start + 5 * (step + 1)
        assert sorted(source.draw_unconditional(1, 5, _rng())[0, :, 1].tolist()) == sorted(latest.tolist())


def test_warm_up_ends_with_classes_smaller_than_their_buffer(monkeypatch):
    monkeypatch.setattr("drifting.data.bank._WARMUP_CHUNK", 1)
    source = _source(push_per_step=1)
    source.draw(torch.arange(3), 2, _rng())
    assert source.bank.filled[1] == 2
    assert int(source.tensors()["position"]) <= 48


def test_rows_are_prepared_before_they_are_kept():
    source = _source(prepare=lambda rows: -rows)
    assert float(source.draw(torch.tensor([2]), 4, _rng())[..., 1].max()) < 0


def test_resumed_source_goes_on_bit_for_bit():
    one, two, rng = _source(), _source(), _rng()
    for _ in range(4):
        one.draw(torch.arange(3), 2, rng)
    two.restore(one.tensors())
    other = _rng()
    other.set_state(rng.get_state())
    for _ in range(3):
        assert torch.equal(one.draw(torch.arange(3), 3, rng), two.draw(torch.arange(3), 3, other))
    assert all(torch.equal(value, two.tensors()[name]) for name, value in one.tensors().items())


def test_unlabelled_source():
    source = BankSource(SAMPLES, None, _bank(None, shape=(2,)), push_per_step=2, seed=0)
    assert source.draw(None, 3, _rng()).shape == (1, 3, 2)
    assert source.num_classes is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _source(push_per_step=0), "push_per_step is 0"),
        (lambda: BankSource(SAMPLES, LABELS[:3], _bank(shape=(2,)), push_per_step=1, seed=0), "48 samples and 3 labels"),
        (lambda: BankSource(SAMPLES, None, _bank(shape=(2,)), push_per_step=1, seed=0), "data has no labels"),
        (lambda: BankSource(SAMPLES, LABELS, _bank(4, shape=(2,)), push_per_step=1, seed=0), "no sample of class 3"),
        (lambda: BankSource(SAMPLES, LABELS + 1, _bank(shape=(2,)), push_per_step=1, seed=0), "class 3, but the bank"),
        (lambda: _source().restore({}, "there"), "'there' has no position"),
    ],
)
def test_sources_that_cannot_work_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
