"""What is read off a field: how its kernel spreads, and where it points between the samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting import drifting_loss
from drifting.fields import MeanShift, mean_shift, pairwise
from tests.oracle import drifting_oracle as oracle

properties = settings(max_examples=25, deadline=None)
FLAT = torch.tensor([1e8], dtype=torch.float64)


def draw(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def effective_number(row):
    return math.fsum(row) ** 2 / math.fsum(value * value for value in row)


def particle_drift(points, generated, positives, temperature, floor):
    """Return what a test particle feels: its own row softmax, and the column sums of the generated samples."""
    targets = np.concatenate([generated, positives])
    of_samples = oracle.pairwise(generated, targets)
    rows = range(len(generated))
    sums = [math.fsum(math.exp(-of_samples[i][j] / temperature) for i in rows if i != j) for j in range(len(targets))]
    drift = []
    for distances in oracle.pairwise(points, targets):
        kernel = [math.exp(-distance / temperature) for distance in distances]
        squares = [value / math.fsum(kernel) * value / total for value, total in zip(kernel, sums, strict=True)]
        drift.append([math.sqrt(min(max(square, floor), 1)) for square in squares])
    return oracle.cross_weighted(drift, targets, len(generated))


@properties
@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 5), st.integers(0, 3), st.floats(0.2, 5.0), st.booleans())
def test_statistics_are_averages_over_the_rows_of_the_affinity(seed, n, p, m, temperature, weighted):
    generated, others, positives, weights = draw(seed, (2, n, 2), (2, m, 2), (2, p, 2), (2, n + m + p))
    weights = 0.1 + weights.abs() if weighted else torch.ones_like(weights)
    temperatures = torch.tensor([temperature, 2 * temperature], dtype=torch.float64)
    negatives = torch.cat([generated, others], 1)
    options = {"temperatures": temperatures, "num_self": n, "weights": weights if weighted else None}
    statistics = MeanShift(1e-6).statistics(generated, positives, negatives, **options)
    for index, bandwidth in enumerate(temperatures.tolist()):
        rows = []
        for group in range(2):
            distances = oracle.pairwise(generated[group].tolist(), torch.cat([negatives, positives], 1)[group].tolist())
            affinity = oracle.affinities(distances, bandwidth, num_self=n, floor=1e-6)
            rows += [(np.array(row) * weights[group].numpy()).tolist() for row in affinity]
        split = n + m
        expected = [
            np.mean(positive := np.array([effective_number(row[split:]) for row in rows])),
            np.mean([effective_number(row[:split]) for row in rows]),
            np.mean([math.fsum(row[split:]) / math.fsum(row) for row in rows]),
            np.mean(positive <= 1.5),
            np.mean(positive >= 0.9 * p),
        ]
        torch.testing.assert_close(torch.stack(statistics)[:, index], torch.tensor(expected))


def test_one_hot_kernel_has_one_neighbor_on_each_side():
    # On a line: a positive, two generated samples, a positive, each one unit apart.
    generated = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
    positives = torch.tensor([[[0.0], [3.0]]], dtype=torch.float64)
    statistics = MeanShift().statistics(
        generated, positives, generated, temperatures=torch.tensor([0.02, 1e-6], dtype=torch.float64), num_self=2
    )
    expected = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.5, 0.5], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(statistics), expected)


def test_flat_kernel_has_every_sample_as_a_neighbor_but_itself():
    generated, positives, others = draw(0, (3, 6, 2), (3, 9, 2), (3, 4, 2))
    masked = MeanShift().statistics(generated, positives, generated, temperatures=FLAT, num_self=6)
    independent = MeanShift().statistics(generated, positives, others, temperatures=FLAT)
    torch.testing.assert_close([float(value) for value in masked[:2]], [9.0, 5.0])
    torch.testing.assert_close([float(value) for value in independent], [9.0, 4.0, 9 / 13, 0.0, 1.0])


def test_weight_zero_removes_a_neighbor():
    generated, positives, negatives = draw(1, (1, 5, 2), (1, 4, 2), (1, 3, 2))
    weights = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    statistics = MeanShift().statistics(generated, positives, negatives, temperatures=FLAT, weights=weights)
    torch.testing.assert_close([float(value) for value in statistics[:3]], [1.0, 2.0, 1 / 3])


def test_share_of_the_positives_is_half_in_a_symmetric_case():
    generated, positives, negatives = draw(2, (2, 5, 3), (2, 4, 3), (2, 4, 3))
    options = {"temperatures": torch.tensor([0.2, 1.0], dtype=torch.float64)}
    same = MeanShift().statistics(generated, positives, positives, **options)
    torch.testing.assert_close(same.positive_share, torch.full((2,), 0.5).double())
    forth = MeanShift().statistics(generated, positives, negatives, **options)
    back = MeanShift().statistics(generated, negatives, positives, **options)
    torch.testing.assert_close(forth.positive_share, 1 - back.positive_share)
    torch.testing.assert_close(forth.positive_neighbors, back.negative_neighbors)


def test_loss_reports_the_statistics_of_its_own_kernel_on_request():
    generated, positives, others = draw(3, (2, 6, 3), (2, 7, 3), (2, 2, 3))
    (weights,) = (values.abs() for values in draw(4, (2, 2)))
    report = drifting_loss(generated, positives, others, unconditional_weights=weights, temperatures=(0.1, 0.4), statistics=True)
    joined = torch.cat([torch.ones(2, 6).double(), weights, torch.ones(2, 7).double()], 1)
    options = {"temperatures": torch.tensor([0.1, 0.4], dtype=torch.float64) * report.scale, "num_self": 6}
    expected = MeanShift(1e-6).statistics(generated, positives, torch.cat([generated, others], 1), weights=joined, **options)
    torch.testing.assert_close(report.statistics, expected)
    assert drifting_loss(generated, positives).statistics is None


@properties
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 1e-4]))
def test_test_particle_feels_the_field_of_the_samples(seed, n, p, q, floor):
    points, generated, positives = draw(seed, (q, 2), (n, 2), (p, 2))
    drift = MeanShift(floor).at(points, generated, positives, temperature=0.8)
    expected = particle_drift(points.numpy(), generated.numpy(), positives.numpy(), 0.8, floor)
    torch.testing.assert_close(drift, torch.tensor(expected))


def test_test_particle_in_the_place_of_a_sample_meets_it_unmasked():
    generated, positives = draw(5, (4, 2), (5, 2))
    drift = MeanShift().at(generated, generated, positives, temperature=0.8)
    torch.testing.assert_close(drift, torch.tensor(particle_drift(generated.numpy(), generated.numpy(), positives.numpy(), 0.8, 0)))
    assert (drift - mean_shift(generated, positives, temperature=0.8)).abs().max() > 1e-2


def test_points_asked_for_together_do_not_change_each_other(monkeypatch):
    points, generated, positives = draw(6, (8, 2), (5, 2), (6, 2))
    whole = MeanShift().at(points, generated, positives, temperature=0.3)
    alone = [MeanShift().at(point[None], generated, positives, temperature=0.3)[0] for point in points]
    torch.testing.assert_close(torch.stack(alone), whole, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(pairwise, "_CPU_TILE", 20)
    torch.testing.assert_close(MeanShift().at(points, generated, positives, temperature=0.3), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1e-8, 1e8])
def test_statistics_are_finite_at_extreme_temperatures(temperature):
    generated, positives = draw(7, (1, 4, 2), (1, 5, 2))
    for samples in (generated, torch.zeros_like(generated)):
        statistics = MeanShift().statistics(
            samples, positives, samples, temperatures=torch.tensor([temperature], dtype=torch.float64), num_self=4
        )
        assert torch.stack(statistics).isfinite().all()


def test_test_particle_feels_a_finite_field_at_a_large_temperature():
    points, generated, positives = draw(7, (6, 2), (4, 2), (5, 2))
    assert MeanShift().at(points, generated, positives, temperature=1e8).isfinite().all()


def test_test_particle_feels_a_finite_field_at_a_small_temperature():
    points, generated, positives = draw(7, (6, 2), (4, 2), (5, 2))
    assert MeanShift().at(points, generated, positives, temperature=1e-3).isfinite().all()
