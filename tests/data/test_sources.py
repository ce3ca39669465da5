import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from drifting.data.sources import InMemorySource, LoaderSource, StreamSource, reference_samples, shuffled_indices
from drifting.errors import InputError

LABELS = torch.tensor([0, 2, 1, 2, 2, 0, 1, 2, 2])
SAMPLES = torch.stack([LABELS.float(), torch.arange(9.0)], 1)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _stream() -> StreamSource:
    return StreamSource(lambda count, rng: torch.rand(count, 2, generator=rng), (2,))


def test_samples_have_the_label_that_was_asked_for():
    drawn = InMemorySource(SAMPLES, LABELS).draw(torch.tensor([2, 0, 2]), 4, _rng())
    assert drawn.shape == (3, 4, 2)
    assert drawn[..., 0].tolist() == [[2.0] * 4, [0.0] * 4, [2.0] * 4]


@pytest.mark.parametrize("seed", range(5))
def test_a_class_is_drawn_without_replacement_as_far_as_it_reaches(seed):
    drawn = InMemorySource(SAMPLES, LABELS).draw(torch.tensor([2, 0]), 5, _rng(seed))
    assert sorted(drawn[0, :, 1].tolist()) == [1.0, 3.0, 4.0, 7.0, 8.0]
    counts = drawn[1, :, 1].long().bincount(minlength=6)
    assert int(counts[0] + counts[5]) == 5
    assert abs(int(counts[0] - counts[5])) == 1


def test_every_sample_is_equally_likely():
    source, rng = InMemorySource(SAMPLES), _rng()
    drawn = torch.stack([source.draw(None, 3, rng)[0, :, 1] for _ in range(1500)])
    counts = drawn.long().flatten().bincount(minlength=9)
    assert float(((counts - 500) ** 2 / 500).sum()) < 26


@pytest.mark.parametrize("labels", [LABELS, None])
def test_unconditional_sets_are_of_any_class_each_sample_equally_likely(labels):
    source, rng = InMemorySource(SAMPLES, labels), _rng()
    assert source.draw_unconditional(3, 4, rng).shape == (3, 4, 2)
    sets = source.draw_unconditional(3, 1500, rng)
    for drawn in sets:
        counts = drawn[:, 1].long().bincount(minlength=9)
        assert float(((counts - 1500 / 9) ** 2 / (1500 / 9)).sum()) < 26
    assert not torch.equal(sets[0], sets[1])


def test_unconditional_samples_are_prepared_like_others():
    source = InMemorySource(SAMPLES, LABELS, lambda samples: samples + 100)
    assert float(source.draw_unconditional(2, 5, _rng()).min()) >= 100


def test_unlabeled_data_is_one_population():
    source = InMemorySource(SAMPLES)
    assert source.num_classes is None
    assert source.sample_shape == (2,)
    drawn = source.draw(None, 9, _rng())
    assert drawn.shape == (1, 9, 2)
    assert sorted(drawn[0, :, 1].tolist()) == list(range(9))


def test_number_of_classes_and_shape_are_those_of_the_data():
    source = InMemorySource(torch.zeros(9, 1, 4, 4), LABELS)
    assert source.num_classes == 3
    assert source.sample_shape == (1, 4, 4)
    assert source.draw(torch.tensor([1]), 2, _rng()).shape == (1, 2, 1, 4, 4)


def test_draws_follow_the_stream():
    source = InMemorySource(SAMPLES, LABELS)
    first, again, other = (source.draw(torch.arange(3), 3, _rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_data_without_samples_is_refused():
    with pytest.raises(InputError, match="data is empty"):
        InMemorySource(torch.empty(0, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_is_not_finite_is_refused(value):
    samples = SAMPLES.clone()
    samples[3, 1] = value
    with pytest.raises(InputError, match="data holds NaN or infinite values"):
        InMemorySource(samples)


def test_missing_class_is_named():
    with pytest.raises(InputError, match="data has no sample of class 1, but of 2: number the classes 0 to 1"):
        InMemorySource(SAMPLES[LABELS != 1], LABELS[LABELS != 1])


BAD_LABELS = {
    "too few": (LABELS[:3], r"labels are torch.int64 of shape \(3,\) for 9 samples: pass one whole number for each sample"),
    "too many": (torch.cat([LABELS, LABELS]), r"labels are torch.int64 of shape \(18,\) for 9 samples: pass one whole number"),
    "fractions": (LABELS + 0.9, r"labels are torch.float32 of shape \(9,\) for 9 samples: pass one whole number for each sample"),
    "rows": (LABELS[:, None], r"labels are torch.int64 of shape \(9, 1\) for 9 samples: pass one whole number for each sample"),
    "below 0": (LABELS - 1, "labels has -1: number the classes from 0 on"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_do_not_fit_are_refused(case):
    labels, sentence = BAD_LABELS[case]
    with pytest.raises(InputError, match=sentence):
        InMemorySource(SAMPLES, labels)


@pytest.mark.parametrize("label", [-1, 3])
def test_class_that_is_not_there_cannot_be_drawn(label):
    with pytest.raises(InputError, match=f"labels has {label}: choose from 0 to 2"):
        InMemorySource(SAMPLES, LABELS).draw(torch.tensor([0, label]), 2, _rng())


def test_stream_draws_fresh_samples_of_one_population():
    source, rng = _stream(), _rng()
    first, second = source.draw(None, 5, rng), source.draw(None, 5, rng)
    assert first.shape == (1, 5, 2)
    assert source.num_classes is None
    assert source.sample_shape == (2,)
    assert not torch.equal(first, second)


def test_stream_draws_unconditional_sets():
    sets = _stream().draw_unconditional(3, 5, _rng())
    assert sets.shape == (3, 5, 2)
    assert len(sets.flatten(0, 1).unique(dim=0)) == 15


def test_reference_samples_are_fixed_by_their_seed():
    for source in (_stream(), InMemorySource(SAMPLES)):
        assert torch.equal(reference_samples(source, 6, 3), reference_samples(source, 6, 3))
        assert not torch.equal(reference_samples(source, 6, 3), reference_samples(source, 6, 4))


def test_reference_samples_take_classes_in_turn():
    drawn = reference_samples(InMemorySource(SAMPLES, LABELS), 7, 0)
    assert drawn[:, 0].tolist() == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    assert reference_samples(InMemorySource(SAMPLES, LABELS), 1, 0)[:, 0].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("count", "classes"), [(1, [0.0]), (2, [0.0, 1.0]), (3, [0.0, 1.0, 2.0]), (7, 2 * [0.0, 1.0, 2.0])])
def test_reference_samples_with_a_limit_are_of_the_first_classes(count, classes):
    assert reference_samples(InMemorySource(SAMPLES, LABELS), count, 0, limit=True)[:, 0].tolist() == classes


@pytest.mark.parametrize("labels", [[0, 1, 10**12], [0, 2, 3]])
def test_labels_with_gaps_are_refused_before_they_are_counted(labels):
    with pytest.raises(InputError, match=r"no sample of class \d+, but of \d+: number the classes 0 to 2"):
        InMemorySource(torch.zeros(3, 2), torch.tensor(labels))


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


def test_sequence_has_known_values():
    assert shuffled_indices(10, 5, 10, 0).tolist() == [5, 1, 3, 2, 4, 9, 4, 2, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 0, 1), "count is 0"), ((1, -1, 1), "start is -1"), ((1, 0, -2), "size is -2")]
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(InputError, match=f"{message}: pass"):
        shuffled_indices(*arguments, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_batches_of_a_loader_that_are_not_finite_are_refused(value):
    samples = SAMPLES.clone()
    samples[7, 1] = value
    source = LoaderSource(DataLoader(TensorDataset(samples), 4), capacity=9, num_classes=None, seed=0)
    with pytest.raises(InputError, match="data holds NaN or infinite values: remove or fix those samples"):
        source.draw(None, 2, _rng())


def _weighted() -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0, 2.0, 3.0] * 3, 20, generator=_rng(7))


LOADERS = {
    "generator of the loader": lambda data: DataLoader(data, 4, shuffle=True, generator=_rng(7)),
    "generator of the sampler": lambda data: DataLoader(data, 4, sampler=_weighted()),
    "generator of a sampler of batches": lambda data: DataLoader(data, batch_sampler=BatchSampler(_weighted(), 4, drop_last=False)),
    "no generator": lambda data: DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, num_samples=20)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_loader_goes_on_where_it_was_left(kind):
    def source() -> LoaderSource:
        return LoaderSource(LOADERS[kind](TensorDataset(SAMPLES)), capacity=6, num_classes=None, seed=3)

    whole, resumed = source(), source()
    for number in range(8):
        whole.draw(None, 5, _rng(number))
    resumed.restore(whole.tensors(), "there")
    for number in range(8, 14):
        assert torch.equal(whole.draw(None, 5, _rng(number)), resumed.draw(None, 5, _rng(number)))


def test_persistent_workers_are_refused():
    loader = DataLoader(TensorDataset(SAMPLES), 4, num_workers=1, persistent_workers=True)
    with pytest.raises(InputError, match=r"data is a DataLoader with persistent workers, .*: pass persistent_workers=False"):
        LoaderSource(loader, capacity=9, num_classes=None, seed=0)
