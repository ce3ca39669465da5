"""The mean-shift field: the float64 oracle, and the identities that the mathematics promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting.fields import MeanShift, mean_shift
from tests.oracle import drifting_oracle as oracle
from tests.support.covering import pairwise

SEEDS = st.integers(0, 2**31)
COUNTS = st.integers(1, 6)
# Both sides of the switch between direct differences and a matrix product.
DIMENSIONS = st.sampled_from([1, 2, 5, 8, 9, 12])
TEMPERATURES = st.floats(0.05, 5.0)
FLOORS = st.sampled_from([0.0, 1e-6, 1e-2])
properties = settings(max_examples=25, deadline=None)


def draw(seed, *shapes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def draw_weights(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [2 * torch.rand(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def assert_close(value, expected, tolerance=1e-9):
    torch.testing.assert_close(value, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


@properties
@given(SEEDS, COUNTS, COUNTS, DIMENSIONS, TEMPERATURES, FLOORS, st.booleans())
def test_drift_is_that_of_the_oracle(seed, n, p, d, temperature, floor, weighted):
    generated, positives = draw(seed, (n, d), (p, d))
    negative_weights, positive_weights = draw_weights(seed, n, p) if weighted else (None, None)
    weights = {"negative_weights": negative_weights, "positive_weights": positive_weights}
    drift = mean_shift(generated, positives, temperature=temperature, affinity_floor=floor, **weights)
    assert_close(drift, oracle.mean_shift(generated, positives, temperature=temperature, floor=floor, **weights))


@properties
@given(SEEDS, COUNTS, COUNTS, COUNTS, DIMENSIONS, TEMPERATURES, FLOORS, st.booleans())
def test_every_pair_with_independent_negatives_counts(seed, n, p, m, d, temperature, floor, weighted):
    generated, positives, negatives = draw(seed, (n, d), (p, d), (m, d))
    negatives[0] = generated[0]
    tolerance = 1e-9 if d <= 8 else 1e-6  # a matrix product finds the distance 0 of such a pair to half the digits
    negative_weights, positive_weights = draw_weights(seed, m, p) if weighted else (None, None)
    weights = {"negative_weights": negative_weights, "positive_weights": positive_weights}
    drift = mean_shift(generated, positives, negatives, temperature=temperature, affinity_floor=floor, **weights)
    expected = oracle.mean_shift(generated, positives, negatives, temperature=temperature, floor=floor, **weights)
    assert_close(drift, expected, tolerance)


@properties
@given(SEEDS, st.integers(1, 4), COUNTS, COUNTS, DIMENSIONS, st.booleans())
def test_each_group_is_a_problem_of_its_own(seed, g, n, p, d, weighted):
    generated, positives = draw(seed, (g, n, d), (g, p, d))
    weights = draw_weights(seed, (g, n), (g, p)) if weighted else (None, None)
    drift = mean_shift(generated, positives, temperature=0.7, negative_weights=weights[0], positive_weights=weights[1])
    for group in range(g):
        of_group = [None if weight is None else weight[group] for weight in weights]
        options = {"temperature": 0.7, "negative_weights": of_group[0], "positive_weights": of_group[1]}
        assert_close(drift[group], oracle.mean_shift(generated[group], positives[group], **options))
        assert_close(drift[group], mean_shift(generated[group], positives[group], **options))


@properties
@given(SEEDS, st.lists(TEMPERATURES, min_size=1, max_size=3), st.integers(0, 3))
def test_field_with_appended_negatives_masks_the_generated_rows_alone(seed, temperatures, m):
    generated, others, positives = draw(seed, (2, 4, 3), (2, m, 3), (2, 5, 3))
    negatives = torch.cat([generated, others], 1)
    (weights,) = draw_weights(seed, (2, 4 + m + 5))
    drift = MeanShift()(
        generated, positives, negatives, temperatures=torch.tensor(temperatures, dtype=torch.float64), weights=weights, num_self=4
    )
    targets = torch.cat([negatives, positives], 1).numpy()
    for index, temperature in enumerate(torch.tensor(temperatures, dtype=torch.float64).tolist()):
        for group in range(2):
            distances = oracle.pairwise(generated[group].numpy(), targets[group])
            problem = oracle.OracleField(distances, weights[group].tolist(), targets[group], 4 + m)
            assert_close(drift[index, group], oracle.field(problem, temperature, 4, 0.0))


@properties
@given(SEEDS, COUNTS, COUNTS, COUNTS, DIMENSIONS, TEMPERATURES, FLOORS)
def test_drift_is_antisymmetric_under_swapping_data_and_generated(seed, n, p, m, d, temperature, floor):
    generated, positives, negatives = draw(seed, (n, d), (p, d), (m, d))
    of_positives, of_negatives = draw_weights(seed, p, m)
    options = {"temperature": temperature, "affinity_floor": floor}
    forth = mean_shift(generated, positives, negatives, positive_weights=of_positives, negative_weights=of_negatives, **options)
    back = mean_shift(generated, negatives, positives, positive_weights=of_negatives, negative_weights=of_positives, **options)
    assert forth.abs().max() > 0
    assert_close(forth, -back, 1e-12)


@properties
@given(SEEDS, COUNTS, COUNTS, DIMENSIONS, TEMPERATURES)
def test_drift_is_zero_where_data_and_negatives_are_the_same(seed, n, p, d, temperature):
    generated, positives = draw(seed, (n, d), (p, d))
    order = torch.randperm(p, generator=torch.Generator().manual_seed(seed))
    assert_close(mean_shift(generated, positives, positives[order], temperature=temperature), torch.zeros(n, d).double(), 1e-12)


@properties
@given(SEEDS, COUNTS, COUNTS, DIMENSIONS, TEMPERATURES, FLOORS)
def test_drift_follows_translation_rotation_permutation_and_scaling(seed, n, p, d, temperature, floor):
    generated, positives, shift, matrix = draw(seed, (n, d), (p, d), (d,), (d, d))
    rotation = torch.linalg.qr(matrix).Q
    rows, columns = torch.randperm(n), torch.randperm(p)
    negative_weights, positive_weights = draw_weights(seed, n, p)

    def drift(move, rows=slice(None), columns=slice(None), size=1.0):
        weights = {"negative_weights": negative_weights[rows], "positive_weights": positive_weights[columns]}
        options = {"temperature": size * temperature, "affinity_floor": floor, **weights}
        return mean_shift(move(generated)[rows], move(positives)[columns], **options)

    still = drift(lambda x: x)
    assert_close(drift(lambda x: x + 3 * shift), still)
    assert_close(drift(lambda x: x @ rotation), still @ rotation)
    assert_close(drift(lambda x: x, rows, columns), still[rows])
    assert_close(drift(lambda x: 7 * x, size=7.0), 7 * still)


@pytest.mark.parametrize("dimension", [2, 32])
@pytest.mark.parametrize("distance", [1e3, 1e4])
def test_translation_far_away_keeps_the_digits(dimension, distance):
    generated, positives = (samples + distance for samples in draw(0, (12, dimension), (15, dimension), dtype=torch.float32))
    drift = mean_shift(generated, positives, temperature=1.0)
    expected = oracle.mean_shift(generated.numpy(), positives.numpy(), temperature=1.0)
    assert np.abs(drift.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.25])
def test_floor_keeps_a_sample_in_touch_with_itself(floor):
    # The only pair left is (x, y), of affinity 1: the drift is S- (y - x) with S- the floor of the masked pair.
    generated, positives = draw(1, (1, 3), (1, 3))
    drift = mean_shift(generated, positives, temperature=0.3, affinity_floor=floor)
    assert_close(drift, floor**0.5 * (positives - generated), 1e-12)


def test_floor_of_one_pulls_everything_to_the_mean_of_the_data():
    generated, positives = draw(2, (4, 3), (5, 3))
    drift = mean_shift(generated, positives, temperature=0.3, affinity_floor=1.0)
    assert_close(drift, (4 * 5 * (positives.mean(0) - generated.mean(0))).expand(4, 3), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dimension", [2, 16])
def test_half_precision_is_computed_in_float32(dtype, autocast, dimension):
    generated, positives, negatives = draw(3, (2, 6, dimension), (2, 7, dimension), (2, 5, dimension), dtype=dtype)
    expected = mean_shift(generated.float(), positives.float(), negatives.float(), temperature=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        drift = mean_shift(generated, positives, negatives, temperature=0.5)
    assert drift.dtype == torch.float32
    assert torch.equal(drift, expected)


def test_float64_stays_float64():
    generated, positives = draw(4, (3, 2), (4, 2))
    assert mean_shift(generated, positives, temperature=1.0).dtype == torch.float64
    assert mean_shift(generated.float(), positives.float(), temperature=1.0).dtype == torch.float32


def test_drift_is_a_constant_for_autograd():
    generated, positives = draw(5, (3, 2), (4, 2))
    assert not mean_shift(generated.requires_grad_(), positives, temperature=1.0).requires_grad


@pytest.mark.parametrize(
    *pairwise(
        counts=((1, 1), (1, 3), (5, 4)),
        dtype=(torch.float32, torch.float64),
        temperature=(1e-8, 1e8),
        floor=(0.0, 1e-6),
        identical=(False, True),
    )
)
def test_drift_is_finite_at_any_temperature(dtype, temperature, floor, counts, identical):
    n, p = counts
    generated, positives = draw(6, (n, 2), (p, 2), dtype=dtype)
    if identical:
        generated, positives = torch.ones_like(generated), torch.ones_like(positives)
    drift = mean_shift(generated, positives, temperature=temperature, affinity_floor=floor)
    assert drift.isfinite().all()
    assert drift.abs().max() <= 10 * n * p
    if identical:
        assert not drift.any()


def test_inputs_are_left_untouched():
    generated, positives = draw(7, (1, 4, 3), (1, 5, 3))
    before = generated.clone(), positives.clone()
    mean_shift(generated, positives, temperature=0.5, affinity_floor=1e-6)
    assert torch.equal(generated, before[0])
    assert torch.equal(positives, before[1])
