import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from drifting.distributed import Processes
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.generators.mlp import MLP
from drifting.sampling import batch_of, check_labels, label_numbers, sample, sample_in_parts


class Recording(Generator):
    """Returns its noise and label, and remembers how it was called."""

    def __init__(self, num_classes=None):
        super().__init__()
        self.noise_shape, self.sample_shape, self.num_classes = (3,), (4,), num_classes
        self.bias = nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, noise, labels=None, guidance_scale=None):
        self.calls.append((len(noise), self.training, torch.is_grad_enabled()))
        column = noise.new_zeros(len(noise)) if labels is None else labels.to(noise)
        return torch.cat([noise, column[:, None]], 1) + self.bias


class Several(Processes):
    """One of several processes, which gathers what all would have made."""

    def __init__(self, rank, size, gathered):
        self.rank, self.size, self._gathered = rank, size, gathered

    def all_gather(self, values, dim):
        return self._gathered(self.rank, values, dim)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("count", [1, 4, 13, 24])
def test_parts_are_the_samples(size, count):
    settings, expected = {"seed": 2, "labels": [1, 0]}, sample(Recording(2), count, seed=2, labels=[1, 0])
    made = []
    for rank in range(size):
        processes = Several(rank, size, lambda rank, values, dim: made.append((rank, values["samples"])) or values)
        list(sample_in_parts(Recording(2), count, batch_size=4, processes=processes, **settings))
    turns = [iter([part for rank, part in made if rank == own]) for own in range(size)]
    generator = Recording(2)
    processes = Several(0, size, lambda _rank, _values, dim: {"samples": torch.cat([next(turn) for turn in turns], dim)})
    parts = list(sample_in_parts(generator, count, batch_size=4, processes=processes, **settings))
    assert torch.equal(torch.cat(parts), expected)
    assert max(calls for calls, *_ in generator.calls) <= 4
    assert max(map(len, parts)) <= 4 * size


class Stylish(Generator):
    """Returns its guidance scale and its style codes."""

    def __init__(self, num_styles=3, guided=True):
        super().__init__()
        self.noise_shape, self.sample_shape, self.num_classes, self.guided = (2,), (4,), None, guided
        self.num_styles, self.style_classes = num_styles, 5
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, noise, labels=None, guidance_scale=None, *style_indices):
        assert (guidance_scale is not None) is self.guided
        column = noise.new_zeros(len(noise)) if guidance_scale is None else guidance_scale
        return torch.cat([column[:, None], *style_indices], 1) + self.bias


def _network(num_classes=None):
    torch.manual_seed(0)
    return MLP(noise_dim=6, sample_shape=(2,), width=32, depth=2, num_classes=num_classes)


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_noise_of_sample_i_is_bit_equal_for_any_batch_size(size):
    whole = sample(Recording(), 10, seed=2)
    assert torch.equal(sample(Recording(), 10, seed=2, batch_size=size), whole)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_sample_i_is_equal_to_rounding_for_any_batch_size(num_classes):
    generator = _network(num_classes)
    whole = sample(generator, 25, seed=1)
    for size in (1, 4, 25):
        torch.testing.assert_close(sample(generator, 25, seed=1, batch_size=size), whole, rtol=1e-5, atol=1e-6)


def test_more_samples_begin_with_the_same_ones():
    generator = _network()
    torch.testing.assert_close(sample(generator, 9)[:5], sample(generator, 5), rtol=1e-5, atol=1e-6)


def test_noise_of_sample_i_does_not_depend_on_its_label():
    generator = Recording(num_classes=4)
    ones, mixed = sample(generator, 6, labels=[1]), sample(generator, 6, labels=[3, 0])
    assert torch.equal(ones[:, :3], mixed[:, :3])


def test_seeds_give_different_samples_and_the_same_seed_the_same():
    generator = _network()
    assert torch.equal(sample(generator, 5, seed=7), sample(generator, 5, seed=7))
    assert not torch.equal(sample(generator, 5, seed=7), sample(generator, 5, seed=8))


def test_seeds_and_counts_of_numpy_are_those_of_python():
    generator = Stylish()
    assert torch.equal(sample(generator, np.int64(2), seed=np.int64(3)), sample(generator, 2, seed=3))


def test_labels_cycle_across_batches():
    drawn = sample(Recording(num_classes=5), 8, labels=[4, 0, 2], batch_size=3)
    assert drawn[:, 3].tolist() == [4, 0, 2, 4, 0, 2, 4, 0]


def test_all_labels_come_in_turn_by_default():
    assert sample(Recording(num_classes=3), 7)[:, 3].tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("training", [True, False])
def test_generator_is_run_in_evaluation_mode_without_gradients_and_put_back(training):
    generator = Recording().train(training)
    drawn = sample(generator, 5, batch_size=2)
    assert generator.calls == [(2, False, False), (2, False, False), (1, False, False)]
    assert generator.training is training
    assert not drawn.requires_grad


def test_generator_that_fails_is_put_back():
    generator = Recording()
    generator.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        sample(generator, 2)
    assert generator.training


def test_layer_in_evaluation_mode_stays_there():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[1].eval()
    sample(module, 5, noise_shape=3)
    assert (module.training, module[0].training, module[1].training) == (True, True, False)


def test_one_pass_makes_a_batch():
    generator = Recording()
    sample(generator, 100)
    assert len(generator.calls) == 1


def test_sampling_leaves_the_global_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    sample(_GENERATOR, 3)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_sample_is_refused(count):
    with pytest.raises(InputError, match=f"num_samples is {count}: ask for at least 1"):
        sample(_GENERATOR, count)


@pytest.mark.parametrize("labels", [[10], [-1], [0, 3, 11], []])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(InputError, match=r"labels is .*: choose from 0 to 9"):
        check_labels(labels, 10)


ODD_ARGUMENTS = [
    ({"count": 4.0}, "num_samples is 4.0: ask for a whole number"),
    ({"count": "4"}, "num_samples is '4': ask for a whole number"),
    ({"batch_size": 0}, "batch_size is 0: pass a whole number, at least 1"),
    ({"batch_size": -1}, "batch_size is -1: pass a whole number, at least 1"),
    ({"batch_size": 2.0}, "batch_size is 2.0: pass a whole number, at least 1"),
    ({"labels": 3}, "labels is 3: pass a list of classes, such as [3]"),
    ({"labels": "cat"}, "labels is 'cat': pass a list of classes, such as ['cat']"),
    ({"labels": torch.tensor(3)}, "labels is 3: pass a list of classes, such as [3]"),
    ({"labels": [1.5]}, "labels is [1.5]: pass integers from 0 to 9"),
    ({"labels": [True]}, "labels is [True]: pass integers from 0 to 9"),
    ({"labels": ["1"]}, "labels is ['1']: pass integers from 0 to 9"),
    ({"labels": np.array([1.5, 2])}, "labels is [1.5, 2.0]: pass integers from 0 to 9"),
    ({"labels": torch.tensor([[1, 2]])}, "labels is [[1, 2]]: pass integers from 0 to 9"),
    ({"guidance_scale": "2"}, "guidance_scale is '2': pass a number from 1 (no guidance) up, such as 1.5"),
]


@pytest.mark.parametrize(("options", "sentence"), ODD_ARGUMENTS)
def test_arguments_of_another_type_are_refused_in_a_sentence(options, sentence):
    generator = Recording(10)
    generator.guided = True
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        sample(generator, **{"count": 2, **options})


@pytest.mark.parametrize(("shape", "shown"), [(1.5, "1.5"), ("3", "'3'"), ((2, 1.5), "(2, 1.5)"), (True, "True")])
def test_shape_of_the_noise_is_of_integers(shape, shown):
    sentence = re.escape(f"noise_shape is {shown}: pass integers, such as 32 or (4, 32, 32)")
    with pytest.raises(InputError, match=f"^{sentence}$"):
        sample(nn.Linear(3, 2), 2, noise_shape=shape)
    assert sample(nn.Linear(3, 2), 2, noise_shape=np.int64(3)).shape == (2, 2)


@pytest.mark.parametrize(
    "labels", [torch.tensor([2, 0]), np.array([2, 0]), [torch.tensor(2), np.int64(0)], (2, 0), range(2, -1, -2)]
)
def test_labels_are_any_integers_in_order(labels):
    assert label_numbers(labels, None) == check_labels(labels, 3) == [2, 0]
    assert {type(label) for label in check_labels(labels, 3)} == {int}
    assert sample(Recording(3), 3, labels=labels)[:, 3].tolist() == [2, 0, 2]


def test_one_name_instead_of_labels_is_refused():
    with pytest.raises(InputError, match=r"^labels is 'cat': pass a list of classes, such as \['cat'\]$"):
        label_numbers("cat", ["cat", "dog"])


def test_labels_are_refused_by_a_generator_without_classes():
    with pytest.raises(InputError, match=r"labels is \[1\]: .*leave them out"):
        sample(_GENERATOR, 2, labels=[1])


_GENERATOR = _network()


@pytest.mark.parametrize("size", [1, 4, 100])
def test_style_indices_of_sample_i_are_its_own_for_any_batch_size(size):
    drawn = sample(Stylish(), 200, seed=2, batch_size=size)[:, 1:]
    assert torch.equal(drawn, sample(Stylish(), 200, seed=2)[:, 1:])
    assert drawn.unique().tolist() == [0, 1, 2, 3, 4]
    assert len(drawn.unique(dim=0)) > 80  # of 125
    assert not torch.equal(drawn, sample(Stylish(), 200, seed=3)[:, 1:])


@pytest.mark.parametrize(("guidance_scale", "expected"), [(None, 1.0), (1.0, 1.0), (1.5, 1.5), (3, 3.0)])
def test_guided_generator_is_told_the_scale(guidance_scale, expected):
    drawn = sample(Stylish(num_styles=0), 5, guidance_scale=guidance_scale, batch_size=2)
    assert drawn.dtype == torch.float32
    assert drawn[:, 0].tolist() == [expected] * 5


def test_guided_samples_take_one_pass():
    generator = Recording()
    generator.guided = True
    sample(generator, 100, guidance_scale=1.5)
    assert len(generator.calls) == 1


@pytest.mark.parametrize("scale", [0.99, 0.0, -2.0, 10**39, float("nan"), float("inf")])
@pytest.mark.parametrize("guided", [True, False])
def test_scale_below_1_is_refused(guided, scale):
    with pytest.raises(InputError, match=f"guidance_scale is {scale}: pass a number from 1"):
        sample(Stylish(guided=guided), 3, guidance_scale=scale)


def test_scale_is_refused_by_a_generator_that_takes_none():
    with pytest.raises(InputError, match=r"guidance_scale is 1\.5, but this generator takes none: leave it out"):
        sample(_GENERATOR, 3, guidance_scale=1.5)


@pytest.mark.parametrize(("size", "expected"), [(4, [4, 8, 10]), (10, [10]), (64, [10])])
def test_samples_come_in_a_part_of_every_pass(size, expected):
    parts = list(sample_in_parts(_GENERATOR, 10, batch_size=size))
    assert list(itertools.accumulate(map(len, parts))) == expected
    assert torch.equal(torch.cat(parts), sample(_GENERATOR, 10, batch_size=size))


def test_passes_are_smaller_for_larger_samples():
    assert [batch_of(shape) for shape in ((2,), (1, 28, 28), (4, 32, 32), (3, 256, 256))] == [4096, 1337, 256, 8]
