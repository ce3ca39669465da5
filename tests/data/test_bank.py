from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting._torch import stream_seed
from drifting.data.bank import MemoryBank
from drifting.data.sources import BankSource, shuffled_indices
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


@settings(max_examples=150, deadline=None)
@given(
    per_class=st.integers(1, 5),
    unconditional=st.integers(1, 7),
    pushes=st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=1, max_size=6),
)
def test_bank_holds_the_latest_samples_of_different_numbers(per_class, unconditional, pushes):
    """Sample n is of class n % 3; what is kept of it says when it was pushed."""
    bank, kept = _bank(3, per_class, unconditional), {name: {} for name in (0, 1, 2, "all")}
    sizes, time = {0: per_class, 1: per_class, 2: per_class, "all": unconditional}, 0
    for numbers in pushes:
        times = torch.arange(time, time + len(numbers))
        bank.push(times.float(), torch.tensor(numbers).long() % 3, torch.tensor(numbers).long())
        for number in numbers:
            for name in (number % 3, "all"):
                kept[name].pop(number, None)
                kept[name][number] = float(time)
                if len(kept[name]) > sizes[name]:
                    kept[name].pop(next(iter(kept[name])))
            time += 1
        assert bank.filled.tolist() == [len(kept[label]) for label in range(3)]
        found = [bank.rings["classes"].samples[label, : len(kept[label])].tolist() for label in range(3)]
        assert [sorted(samples) for samples in found] == [sorted(kept[label].values()) for label in range(3)]
        assert sorted(bank.rings["unconditional"].samples[0, : bank.unconditional_filled].tolist()) == sorted(kept["all"].values())


def test_slots_are_those_of_a_ring():
    bank = _bank(2, 3, 2)
    bank.push(torch.arange(5.0), torch.tensor([0, 1, 0, 0, 0]))
    assert bank.tensors()["classes.samples"].tolist() == [[2.0, 3.0, 4.0], [1.0, 0.0, 0.0]]
    assert bank.tensors()["unconditional.samples"].tolist() == [[3.0, 4.0]]
    bank.push(torch.arange(5.0, 7.0), torch.tensor([0, 0]))
    assert bank.tensors()["classes.samples"][0].tolist() == [5.0, 6.0, 4.0]


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


def test_unlabeled_samples_are_one_class():
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
        (lambda bank: bank.push(torch.zeros(1), torch.tensor([0]), torch.tensor([0, 1])), "numbers has 2 entries for 1"),
        (lambda bank: bank.push(torch.zeros(1), torch.tensor([0]), torch.tensor([-1])), "from 0 on"),
        (
            lambda bank: bank.restore(_bank(per_class=9).tensors(), "there"),
            r"'there', .*is \(3, 9\) of",
        ),
        (lambda bank: bank.restore({}, "there"), "classes.samples is missing"),
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
    assert sorted(drawn[0, :, 1].tolist()) == [6.0, 6.0, 7.0, 7.0]
    assert source.bank.filled.tolist() == [4, 2, 4]
    assert (source.sample_shape, source.num_classes) == ((2,), 3)
    assert source.draw_unconditional(2, 3, _rng()).shape == (2, 3, 2)


def test_every_draw_pushes_the_next_of_the_order():
    source = _source()
    source.draw(torch.tensor([0]), 1, _rng())
    start = int(source.tensors()["position"])
    for step in range(12):
        source.draw(torch.tensor([0]), 1, _rng())
        latest = shuffled_indices(48, start + 5 * step, 5, stream_seed(3, "memory bank"))
        assert int(source.tensors()["position"]) == start + 5 * (step + 1)
        assert sorted(source.draw_unconditional(1, 5, _rng())[0, :, 1].tolist()) == sorted(latest.tolist())


def test_warm_up_ends_with_classes_smaller_than_their_buffer(monkeypatch):
    monkeypatch.setattr("drifting.data.sources._WARMUP_CHUNK", 1)
    source = _source(push_per_step=1)
    source.draw(torch.arange(3), 2, _rng())
    assert source.bank.filled[1] == 2
    assert int(source.tensors()["position"]) <= 48


@pytest.mark.parametrize("push_per_step", [1, 7, 64])
def test_samples_of_a_small_class_are_drawn_equally_often(push_per_step):
    """A draw of 20 from a class of 10 in a ring of 32 has each twice, and so it stays over many epochs."""
    samples, labels = torch.arange(40.0), torch.tensor([0] * 10 + [1] * 30)
    source = BankSource(samples, labels, _bank(2, 32, 64), push_per_step=push_per_step, seed=0)
    for _ in range(60):
        drawn = source.draw(torch.tensor([0, 1]), 20, _rng()).long()
        assert drawn[0].bincount().tolist() == [2] * 10
        assert len(set(drawn[1].tolist())) == 20
        assert len(set(source.draw_unconditional(1, 40, _rng())[0].tolist())) == 40
        assert source.draw(torch.tensor([0]), 23, _rng())[0].long().bincount().sort().values.tolist() == [2] * 7 + [3] * 3


def test_samples_of_a_class_that_fills_its_ring_are_all_different_between_two_epochs():
    source = BankSource(torch.arange(9.0), None, _bank(None, 8, 8), push_per_step=3, seed=0)
    counts = torch.zeros(9)
    for _ in range(300):
        drawn = source.draw(None, 8, _rng())[0].long()
        assert len(set(drawn.tolist())) == 8
        counts[drawn] += 1
    assert float(counts.min()) > 0.8 * float(counts.max())


class EarlierRing:
    """The ring of version 0.1.0: a slot for every push, whatever is pushed."""

    def __init__(self, capacity):
        self.slots, self.pushed = [None] * capacity, 0

    def push(self, samples):
        for sample in samples:
            self.slots[self.pushed % len(self.slots)] = sample
            self.pushed += 1


@pytest.mark.parametrize("pushed", [3, 8, 13, 16])
def test_bank_of_an_earlier_version_goes_on_as_it_would_have(pushed):
    samples, ring = torch.arange(5.0), EarlierRing(8)
    ring.push(shuffled_indices(5, 0, pushed, 3).tolist())
    held = torch.tensor([[float(sample or 0) for sample in ring.slots]])
    saved = {
        f"{name}.{part}": value
        for name in ("classes", "unconditional")
        for part, value in (("samples", held), ("pushed", torch.tensor([pushed])))
    }
    source = BankSource(samples, None, _bank(None, 8, 8), push_per_step=2, seed=3)
    source.restore({**saved, "position": torch.tensor(pushed)})
    for step in range(6):
        source.draw(None, 1, _rng())
        ring.push(shuffled_indices(5, pushed + 2 * step, 2, 3).tolist())
        kept = source.bank.rings["classes"]
        assert kept.samples[0, : int(kept.filled)].tolist() == [slot for slot in ring.slots if slot is not None]
        if step == 2:  # saved and resumed by this version, it still goes on as there
            again = BankSource(samples, None, _bank(None, 8, 8), push_per_step=2, seed=3)
            again.restore(source.tensors())
            source = again


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32, torch.int32], ids=str)
def test_counts_of_another_type_in_a_bank_of_an_earlier_version_are_refused(dtype):
    bank = _bank(None, 8, 8)
    saved = {name: value for name, value in bank.tensors().items() if name.endswith((".samples", ".pushed"))}
    with pytest.raises(InputError, match=r"pushed is \(1,\) of .*, not \(1,\) of int64|turns is missing"):
        bank.restore(saved | {"classes.pushed": torch.zeros(1, dtype=dtype)})


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


def test_unlabeled_source():
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
        (lambda: BankSource(SAMPLES, LABELS - 1, _bank(shape=(2,)), push_per_step=1, seed=0), "labels has -1: number the classes"),
        (lambda: BankSource(SAMPLES, LABELS + 0.5, _bank(shape=(2,)), push_per_step=1, seed=0), "pass one whole number for each"),
        (lambda: BankSource(SAMPLES / 0, LABELS, _bank(shape=(2,)), push_per_step=1, seed=0), "data holds NaN or infinite values"),
        (lambda: _source().restore({}, "there"), r"'there', .*position is missing"),
    ],
)
def test_sources_that_cannot_work_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
