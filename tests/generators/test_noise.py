"""Noise that covers its space evenly: what each point is alone, and what all points of a set are together."""

import pytest
import torch

from drifting.errors import InputError
from drifting.generators import MLP
from drifting.generators.noise import sobol_noise


def _uniform(sets: int, count: int, dims: int, seed: int = 0) -> torch.Tensor:
    return torch.special.ndtr(sobol_noise(sets, count, (dims,), torch.Generator().manual_seed(seed)).double())


@pytest.mark.parametrize("count", [2, 8, 100, 128])
def test_every_point_has_a_cell_of_its_own_in_every_coordinate(count):
    cells = 2 ** (count - 1).bit_length()
    found = (_uniform(3, count, 6) * cells).long().sort(dim=1).values
    assert found.min() >= 0
    assert found.max() < cells
    assert bool((found.diff(dim=1) > 0).all())


@pytest.mark.parametrize("halvings", range(8))
def test_every_box_of_the_first_two_coordinates_has_one_point(halvings):
    """They are a net: 128 boxes of 2^-a by 2^-(7 - a) hold a point each."""
    first, second = _uniform(5, 128, 2).unbind(2)
    boxes = (first * 2**halvings).long() * 2 ** (7 - halvings) + (second * 2 ** (7 - halvings)).long()
    assert torch.equal(boxes.sort(dim=1).values, torch.arange(128).expand(5, 128))


def test_every_point_alone_is_standard_normal_in_independent_coordinates():
    points = sobol_noise(20_000, 4, (3,), torch.Generator().manual_seed(1))
    for point in points.double().unbind(1):
        assert float(point.mean(0).abs().max()) < 0.03
        assert float((torch.cov(point.T) - torch.eye(3)).abs().max()) < 0.04
        tenths = torch.histc(torch.special.ndtr(point), 10, 0, 1) / point.numel()
        assert float((tenths - 0.1).abs().max()) < 0.005


def test_means_over_a_set_vary_less_than_those_of_independent_noise():
    points = sobol_noise(500, 64, (8,), torch.Generator().manual_seed(2))
    for values, most in ((points, 0.02), (points.square(), 0.1), (points[..., :-1] * points[..., 1:], 0.6)):
        single = values.flatten(0, 1).var(0)
        assert float((64 * values.mean(1).var(0) / single).max()) < most


def test_sets_follow_their_stream_and_differ():
    first, again, other = (_uniform(2, 16, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_noise_has_the_shape_of_the_generator_and_one_sample_has_some():
    rng = torch.Generator().manual_seed(0)
    assert sobol_noise(2, 5, (3, 2, 2), rng).shape == (2, 5, 3, 2, 2)
    assert sobol_noise(2, 1, (3,), rng).isfinite().all()
    generator = MLP(noise_dim=3, sample_shape=(2,), width=4, depth=1)
    noise, codes = generator.draw_prior(2, 4, torch.Generator().manual_seed(7), noise="sobol")
    assert codes is None
    assert torch.equal(noise, sobol_noise(2, 4, (3,), torch.Generator().manual_seed(7)))


def test_noise_of_more_coordinates_than_there_are_sequences_is_refused():
    with pytest.raises(InputError, match=r"^noise is 'sobol', but has 30000 coordinates, of at most 21201: pass independent$"):
        sobol_noise(1, 4, (3, 100, 100), torch.Generator())
