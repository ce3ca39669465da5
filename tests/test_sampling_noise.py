import pytest
import torch

from drifting.generators import MLP
from drifting.sampling import seeded_noise


def test_noise_of_a_seed_has_known_values():
    expected = [[0.0599110350, 0.0155596342, -1.1644384861], [0.9716, 1.5016, 0.0916]]
    torch.testing.assert_close(seeded_noise([0, 7], (3,), 0), torch.tensor(expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_noise_of_a_sample_is_bit_equal_in_any_batch(size):
    whole = seeded_noise(range(20), (5,), seed=3)
    parts = [seeded_noise(range(start, min(start + size, 20)), (5,), seed=3) for start in range(0, 20, size)]
    assert torch.equal(torch.cat(parts), whole)


def test_noise_of_a_sample_is_bit_equal_in_any_order():
    whole = seeded_noise(range(6), (4,), seed=1)
    assert torch.equal(seeded_noise([5, 0, 3], (4,), seed=1), whole[[5, 0, 3]])


def test_every_sample_and_every_seed_has_noise_of_its_own():
    rows = torch.cat([seeded_noise(range(50), (2,), seed) for seed in (0, 1, 2, -1, -2, 2**62, 2**63, 2**64 - 3)])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_seeds_are_counted_modulo_two_to_the_64():
    assert torch.equal(seeded_noise([0, 9], (3,), -1), seeded_noise([0, 9], (3,), 2**64 - 1))


def test_noise_is_standard_normal():
    noise = seeded_noise(range(2000), (2, 5), seed=0)
    assert noise.shape == (2000, 2, 5)
    assert noise.dtype == torch.float32
    flat = noise.flatten(1)
    assert float(flat.mean(0).abs().max()) < 4 / 2000**0.5
    covariance = flat.T @ flat / 2000
    assert float((covariance - torch.eye(10)).abs().max()) < 0.15
    assert abs(float((flat.abs() < 1).float().mean()) - 0.6827) < 0.015


def test_seeded_noise_neither_reads_nor_moves_the_global_stream():
    torch.manual_seed(0)
    first = seeded_noise(range(3), (2,), 0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(seeded_noise(range(3), (2,), 0), first)


def test_no_indices_give_an_empty_batch():
    assert seeded_noise([], (2, 3), 0).shape == (0, 2, 3)


def test_training_noise_depends_on_its_stream_alone():
    def draw(seed: int) -> torch.Tensor:
        noise, codes = generator.draw_prior(2, 4, torch.Generator().manual_seed(seed))
        assert codes is None
        return noise

    generator = MLP(noise_dim=3, sample_shape=(2,), width=4, depth=1)
    first = draw(5)
    assert first.shape == (2, 4, 3)
    torch.manual_seed(1)
    assert torch.equal(draw(5), first)
    assert not torch.equal(draw(6), first)
