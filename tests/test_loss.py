"""The drifting loss: the float64 oracle, its closed-form gradient, and what may and may not depend on the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting import drifting_loss
from drifting.fields import MeanShift
from tests.oracle import drifting_oracle as oracle
from tests.support.covering import pairwise

SIZES = st.integers(1, 5)
properties = settings(max_examples=25, deadline=None)
WEIGHTS = ("generated_weights", "unconditional_weights", "positive_weights")


def draw(seed, *shapes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def draw_weights(seed, *shapes):
    return [0.1 + values.abs() for values in draw(seed, *shapes)]


def with_gradient(generated, *args, **kwargs):
    generated = generated.detach().requires_grad_()
    report = drifting_loss(generated, *args, **kwargs)
    report.loss.sum().backward()
    return report, generated.grad


def assert_close(value, expected, tolerance=1e-9):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def assert_is_that_of_the_oracle(report, gradient, expected):
    assert_close(report.loss.detach().numpy(), expected.loss)
    assert_close(gradient.numpy(), expected.grad)
    assert_close(float(report.scale), expected.scale)
    assert_close(np.array([float(norm) for norm in report.drift_norms.values()]), np.array(expected.drift_norms))


@properties
@given(st.integers(0, 2**31), SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 3, 8, 12]), st.sampled_from([0.0, 1e-6, 1e-2]))
def test_loss_gradient_scale_and_drift_norms_are_those_of_the_oracle(seed, g, n, p, m, d, floor):
    samples = draw(seed, (g, n, d), (g, p, d), (g, m, d))
    weights = dict(zip(WEIGHTS, draw_weights(seed, (g, n), (g, m), (g, p)), strict=True)) if seed % 2 else {}
    options = {**weights, "temperatures": (0.1, 0.5)}
    report, gradient = with_gradient(*samples, **options, field=MeanShift(floor))
    assert_is_that_of_the_oracle(report, gradient, oracle.drifting_loss(*samples, **options, floor=floor))


@properties
@given(st.integers(0, 2**31), SIZES, SIZES, SIZES, SIZES)
def test_independent_negatives_repel_in_place_of_the_generated_samples(seed, g, n, p, r):
    generated, positives, negatives = draw(seed, (g, n, 3), (g, p, 3), (g, r, 3))
    (weights,) = draw_weights(seed, (g, r))
    options = {"generated_negatives": negatives, "generated_weights": weights}
    report, gradient = with_gradient(generated, positives, **options)
    assert_is_that_of_the_oracle(report, gradient, oracle.drifting_loss(generated, positives, **options))


@pytest.mark.parametrize("size", [1e-6, 3e-4, 3e-3])
def test_tiny_features_meet_the_lower_bounds_of_distance_and_scale(size):
    samples = [size * values for values in draw(10, (2, 5, 4), (2, 6, 4), (2, 3, 4))]
    report, gradient = with_gradient(*samples)
    assert_is_that_of_the_oracle(report, gradient, oracle.drifting_loss(*samples))


@pytest.mark.parametrize("normalize_drift", [True, False])
@pytest.mark.parametrize("normalize_features", [True, False])
def test_gradient_is_the_drift_in_closed_form(normalize_features, normalize_drift):
    generated, positives = draw(0, (3, 5, 4), (3, 6, 4))
    temperatures = torch.tensor([0.1, 0.4], dtype=torch.float64)
    options = {"normalize_features": normalize_features, "normalize_drift": normalize_drift, "field": MeanShift(0.0)}
    report, gradient = with_gradient(generated, positives, temperatures=temperatures.tolist(), **options)
    unit = report.scale / 2 if normalize_features else 1.0
    bandwidths = temperatures * report.scale
    drift = MeanShift()(generated, positives, generated, temperatures=bandwidths, num_self=5) / unit
    assert_close(torch.stack(list(report.drift_norms.values())), drift.square().mean((1, 2, 3)))
    rms = drift.square().mean((1, 2, 3), keepdim=True).sqrt() if normalize_drift else 1.0
    assert_close(gradient, -2 * (drift / rms).sum(0) / (5 * 4 * unit))
    assert_close(report.loss.detach(), (drift / rms).sum(0).square().mean((1, 2)))
    assert normalize_features or report.scale == 1


def test_only_the_loss_carries_a_gradient_and_only_into_the_generated_samples():
    generated, positives, others, negatives = (samples.requires_grad_() for samples in draw(1, *[(2, 4, 3)] * 4))
    report = drifting_loss(generated, positives, others, generated_negatives=negatives, statistics=True)
    report.loss.sum().backward()
    assert generated.grad.any()
    assert all(constant.grad is None for constant in (positives, others, negatives))
    assert not any(constant.requires_grad for constant in (report.scale, *report.drift_norms.values(), *report.statistics))


def test_loss_at_one_temperature_is_one_on_average():
    report = drifting_loss(*draw(2, (3, 8, 4), (3, 9, 4)), temperatures=(0.2,))
    assert_close(float(report.loss.mean()), 1.0)


@properties
@given(st.integers(0, 2**31), SIZES, SIZES)
def test_loss_does_not_know_the_unit_of_the_features(seed, n, p):
    generated, positives = draw(seed, (2, n, 3), (2, p, 3))
    small, gradient = with_gradient(generated, positives)
    large, scaled_gradient = with_gradient(1000 * generated, 1000 * positives)
    # Not to every digit: distances below 1e-4 count as 1e-4 in either unit.
    assert_close(large.loss, small.loss, 1e-3)
    assert_close(1000 * scaled_gradient, gradient, 1e-3)
    assert_close(large.scale, 1000 * small.scale, 1e-3)


def test_loss_follows_rotation_and_permutation():
    generated, positives, matrix = draw(3, (2, 6, 5), (2, 7, 5), (5, 5))
    rotation, order = torch.linalg.qr(matrix).Q, torch.tensor([3, 1, 5, 0, 2, 4])
    report, gradient = with_gradient(generated, positives)
    moved, moved_gradient = with_gradient(generated[:, order] @ rotation + 7, positives.flip(1) @ rotation + 7)
    assert_close(moved.loss, report.loss)
    assert_close(moved_gradient, gradient[:, order] @ rotation)


@pytest.mark.parametrize("dimension", [2, 32])
@pytest.mark.parametrize("distance", [1e3, 1e4])
def test_loss_far_from_the_origin_keeps_its_digits(dimension, distance):
    samples = [values + distance for values in draw(4, (2, 8, dimension), (2, 9, dimension), dtype=torch.float32)]
    report, gradient = with_gradient(*samples)
    expected = oracle.drifting_loss(*(values.numpy() for values in samples))
    assert np.abs(report.loss.detach().numpy() - expected.loss).max() < 1e-4 * expected.loss.max()
    assert np.abs(gradient.numpy() - expected.grad).max() < 1e-4 * np.abs(expected.grad).max()


def test_groups_are_independent_given_the_scale_and_the_drift_norms():
    samples = draw(5, (4, 5, 3), (4, 6, 3), (4, 2, 3))
    weights = dict(zip(WEIGHTS, draw_weights(5, (4, 5), (4, 2), (4, 6)), strict=True))
    whole, gradient = with_gradient(*samples, **weights)
    for part in (slice(0, 1), slice(1, 4)):
        of_part = {name: values[part] for name, values in weights.items()}
        known = {"scale": whole.scale, "drift_norms": whole.drift_norms}
        report, part_gradient = with_gradient(*(values[part] for values in samples), **of_part, **known)
        assert_close(report.loss, whole.loss[part], 1e-12)
        assert_close(part_gradient, gradient[part], 1e-12)
        assert (report.scale, report.drift_norms) == (whole.scale, whole.drift_norms)
    alone = drifting_loss(*(values[:1] for values in samples))
    assert (alone.loss - whole.loss[:1]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dimension", [2, 32])
def test_half_precision_is_computed_in_float32(dtype, autocast, dimension):
    samples = draw(6, (2, 5, dimension), (2, 6, dimension), (2, 3, dimension), dtype=dtype)
    expected, expected_gradient = with_gradient(*(values.float() for values in samples), statistics=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        report, gradient = with_gradient(*samples, statistics=True)
    assert report.loss.dtype == torch.float32
    assert torch.equal(report.loss, expected.loss)
    assert torch.equal(report.scale, expected.scale)
    assert report.drift_norms == expected.drift_norms
    assert all(map(torch.equal, report.statistics, expected.statistics))
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_float64_stays_float64():
    report, gradient = with_gradient(*draw(7, (2, 3, 2), (2, 4, 2)))
    values = (report.loss, report.scale, *report.drift_norms.values(), gradient)
    assert {value.dtype for value in values} == {torch.float64}


@pytest.mark.parametrize(
    *pairwise(temperature=(1e-8, 1e8), counts=((1, 1), (5, 4)), identical=(False, True), floor=(0.0, 1e-6), normalize=(False, True))
)
def test_loss_and_gradient_are_finite_in_degenerate_cases(temperature, counts, identical, floor, normalize):
    n, p = counts
    generated, positives = draw(8, (2, n, 3), (2, p, 3), dtype=torch.float32)
    if identical:
        generated, positives = torch.ones_like(generated), torch.ones_like(positives)
    options = {"normalize_features": normalize, "normalize_drift": normalize, "field": MeanShift(floor), "statistics": True}
    report, gradient = with_gradient(generated, positives, temperatures=(temperature, 0.1), **options)
    assert report.loss.isfinite().all()
    assert gradient.isfinite().all()
    assert torch.stack(report.statistics).isfinite().all()
    assert not identical or gradient.abs().max() < 1e-3


def test_another_field_computes_in_float32_and_without_a_graph():
    matrix = torch.eye(4, requires_grad=True)

    def field(generated, positives, negatives, **rest):
        return torch.stack([(positives.mean(1, keepdim=True) - generated) @ matrix for _ in rest["temperatures"]])

    generated, positives = (value.float() for value in draw(9, (2, 4, 4), (2, 5, 4)))
    expected = drifting_loss(generated, positives, field=field)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = drifting_loss(generated, positives, field=field)
    assert torch.equal(report.loss, expected.loss)
    assert not any(norm.requires_grad for norm in expected.drift_norms.values())


def test_another_field_is_called_with_what_the_loss_knows_and_its_drift_is_used():
    generated, positives, others = draw(9, (2, 4, 4), (2, 5, 4), (2, 3, 4))
    weights = draw_weights(9, (2, 3))[0]
    calls = []

    def field(generated, positives, negatives, **rest):
        calls.append((generated, positives, negatives, rest))
        rest["distances"].zero_()
        return torch.stack([torch.ones_like(generated), 3 * torch.ones_like(generated)])

    options = {"temperatures": (0.1, 0.4), "normalize_drift": False, "field": field}
    report, gradient = with_gradient(generated, positives, others, unconditional_weights=weights, **options)
    ((seen, seen_positives, negatives, rest),) = calls
    assert torch.equal(seen, generated)
    assert torch.equal(seen_positives, positives)
    assert torch.equal(negatives, torch.cat([generated, others], 1))
    assert rest.keys() == {"temperatures", "weights", "num_self", "distances"}
    assert rest["num_self"] == 4
    assert_close(rest["temperatures"], torch.tensor([0.1, 0.4], dtype=torch.float64) * report.scale)
    assert torch.equal(rest["weights"], torch.cat([torch.ones(2, 4), weights, torch.ones(2, 5)], 1))
    assert rest["distances"].shape == (2, 4, 12)
    unit = report.scale / 2
    assert_close(report.loss.detach(), (4 / unit).square().expand(2))
    assert_close(gradient, (-2 * 4 / unit / (4 * 4 * unit)).expand(2, 4, 4))
