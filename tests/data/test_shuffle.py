import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting.data.shuffle import shuffled_indices
from drifting.errors import InputError


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 70), st.integers(0, 70), st.integers(-5, 5))
def test_a_sequence_taken_in_parts_is_the_same_sequence(count, start, first, second, seed):
    parts = [shuffled_indices(count, start, first, seed), shuffled_indices(count, start + first, second, seed)]
    whole = shuffled_indices(count, start, first + second, seed)
    assert whole.shape == (first + second,)
    assert whole.dtype == torch.long
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_every_epoch_is_a_permutation(count):
    epochs = shuffled_indices(count, 0, 5 * count, seed=3).reshape(5, count)
    assert torch.equal(epochs.sort(1).values, torch.arange(count).expand(5, count))


def test_epochs_and_seeds_differ_and_a_later_epoch_is_no_other_seeds_first():
    orders = [tuple(shuffled_indices(50, epoch * 50, 50, seed).tolist()) for epoch in range(3) for seed in (-1, 0, 1, 2)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(50)) not in orders


def test_every_index_is_equally_likely_at_every_place():
    orders = torch.stack([shuffled_indices(5, 0, 5, seed) for seed in range(2000)])
    shares = torch.nn.functional.one_hot(orders, 5).double().mean(0)
    assert float((shares - 0.2).abs().max()) < 0.04  # 4.5 standard errors


def test_result_belongs_to_the_caller_and_the_global_streams_do_not_matter():
    first = shuffled_indices(10, 0, 10, 0)
    kept = first.clone()
    first.zero_()
    torch.manual_seed(7)
    assert torch.equal(shuffled_indices(10, 0, 10, 0), kept)


def test_sequence_is_this_very_one():
    assert shuffled_indices(10, 5, 10, 0).tolist() == [5, 1, 3, 2, 4, 9, 4, 2, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 0, 1), "count is 0"), ((1, -1, 1), "start is -1"), ((1, 0, -2), "size is -2")]
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(InputError, match=f"{message}: pass"):
        shuffled_indices(*arguments, seed=0)
