"""The slope of the objective of a learned temperature is the derivative of the objective, written out, and has the right sign."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting import drifting_loss
from drifting.errors import InputError
from drifting.fields.base import Problem
from drifting.fields.temperature import temperature_slope
from tests.support.threads import ThreadPeers
from tests.test_loss import SIZES, assert_close, draw, draw_weights, properties

TEMPERATURES = (0.3, 1.0)


def objective(problem, temperatures):
    """Return the objective, one row after the other."""
    values = []
    for temperature in temperatures:
        for group, rows in enumerate(problem.generated):
            negatives = torch.cat([part[group] for part in problem.negatives])
            targets, count = torch.cat([negatives, problem.positives[group]]), len(negatives)
            found = []
            for index, row in enumerate(rows):
                chances = [torch.zeros(()) for _ in targets]
                for j, target in enumerate(targets):
                    weight = 1.0 if problem.weights is None else problem.weights[group, j]
                    if j != index or j >= problem.num_self:
                        chances[j] = weight * torch.exp(-(row - target).norm() / temperature)
                found.append(torch.log(sum(chances[count:]) / sum(chances)))
            values.append(torch.stack(found).max())
    return -torch.stack(values).mean()


@properties
@given(st.integers(0, 2**31), SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_slope_is_the_derivative_by_the_logarithm_of_the_factor(seed, g, n, p, m, independent):
    generated, positives, others = draw(seed, (g, n, 3), (g, p, 3), (g, m, 3))
    weights = draw_weights(seed, (g, (0 if independent else n) + m + p))[0] if seed % 2 else None
    negatives = [others] if independent else [generated, others]
    problem = Problem(generated, negatives, positives, weights, 0 if independent else n)
    log_factor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    temperatures = torch.tensor(TEMPERATURES, dtype=torch.float64)
    value = objective(problem, temperatures * log_factor.exp())
    (slope,) = torch.autograd.grad(value, log_factor)
    assert_close(temperature_slope(problem, temperatures), slope)
    between = draw_weights(seed + 1, (g, n, 1))[0]
    scaled = temperature_slope(problem, temperatures, row_scale=torch.full_like(between, 2.0))
    assert_close(scaled, temperature_slope(problem, temperatures * 2))


def test_kernel_widens_where_siblings_are_nearer_and_narrows_where_the_positive_is():
    siblings = torch.tensor([[[0.0], [0.1], [0.2]]])
    far, near = torch.tensor([[[5.0]]]), torch.tensor([[[0.0]]])
    for positive, sign in ((far, -1), (near, 1)):
        slope = temperature_slope(Problem(siblings, [siblings], positive, None, 3), torch.tensor([0.5]))
        assert sign * float(slope) > 0.01


def test_group_without_positives_says_nothing():
    (samples, positives) = draw(0, (2, 4, 3), (2, 3, 3))
    weights = torch.ones(2, 7, dtype=torch.float64)
    options = {"temperatures": torch.tensor([0.5], dtype=torch.float64)}
    both = temperature_slope(Problem(samples, [samples], positives, weights, 4), **options)
    weights[0, 4:] = 0
    one = temperature_slope(Problem(samples, [samples], positives, weights, 4), **options)
    alone = temperature_slope(Problem(samples[1:], [samples[1:]], positives[1:], weights[1:], 4), **options)
    assert_close(one, alone / 2)
    assert not torch.isclose(one, both)


def test_rows_of_a_part_of_the_processes_are_refused():
    samples, positives = torch.randn(1, 4, 3), torch.randn(1, 5, 3)
    part = Problem(samples[:, :2], [samples], positives, None, 2, ThreadPeers(0, [None, None], None))
    with pytest.raises(InputError, match="learn_temperature is True, but population splits the samples"):
        temperature_slope(part, torch.tensor([0.5]))


def test_sample_without_others_and_masked_rows_have_a_finite_slope():
    alone = torch.zeros(2, 1, 3)
    assert temperature_slope(Problem(alone, [alone], alone + 1, None, 1), torch.tensor([0.1])) == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_factor_is_that_of_all_temperatures_and_they_keep_their_names(normalize):
    generated, positives = draw(1, (2, 5, 3), (2, 6, 3))
    options = {"normalize_features": normalize, "statistics": True, "learn_temperature": True}
    expected = drifting_loss(generated, positives, temperatures=(0.06, 0.3), **options)
    for factor in (0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)):
        report = drifting_loss(generated, positives, temperatures=(0.2, 1.0), temperature_factor=factor, **options)
        close = {"rtol": 1e-6, "atol": 1e-9}
        torch.testing.assert_close(report.loss, expected.loss, **close)
        torch.testing.assert_close(list(report.drift_norms.values()), list(expected.drift_norms.values()), **close)
        torch.testing.assert_close(report.statistics, expected.statistics, **close)
        torch.testing.assert_close(report.batch, expected.batch, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(report.temperature_slope, expected.temperature_slope, **close)
        assert list(report.drift_norms) == [0.2, 1.0]
        assert report.loss.dtype == torch.float64
    assert drifting_loss(generated, positives).temperature_slope is None
