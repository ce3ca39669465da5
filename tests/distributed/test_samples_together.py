"""Samples do not depend on the batch or on the number of processes."""

import pytest
import torch

from tests.distributed.whole_runs import samples

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_noise_styles_and_labels_are_the_same_bit_for_bit(pair, batch_size):
    expected = samples(64, echo=True)
    assert expected.shape == (64, 6)
    for found in (samples(batch_size, echo=True), *pair(samples_of, batch_size, True)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_samples_are_the_same_to_rounding(pair, batch_size, sharded):
    expected = samples(64)
    assert float(expected.std()) > 0.1
    for found in (samples(batch_size), *pair(samples_of, batch_size, False, sharded)):
        assert float((found - expected).abs().max()) < 1e-5
        assert int(((127.5 * (found + 1)).round() - (127.5 * (expected + 1)).round()).abs().max()) <= 1


def test_number_of_samples_need_not_be_divided(pair):
    for found in pair(samples_of, 2, True, False, 5):
        assert torch.equal(found, samples(5, echo=True, count=5))


def samples_of(batch_size, echo=False, sharded=False, count=64):
    return samples(batch_size, echo=echo, sharded=sharded, count=count)
