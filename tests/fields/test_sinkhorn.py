"""The Sinkhorn drift against plain iterations in float64, the plan of POT, and the debiased gradient of geomloss."""

import math
import warnings

import numpy as np
import pytest
import torch

from drifting import InputError, drifting_loss
from drifting.fields import Lookahead, Sinkhorn, SinkhornStatistics, sinkhorn
from drifting.fields.base import Problem
from drifting.guidance import unconditional_weight
from tests.support.covering import pairwise as covering


def draw(seed, *shapes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def assert_close(value, expected, tolerance=1e-9):
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype), rtol=tolerance, atol=tolerance)


def costs(rows, targets, masked):
    return np.array(
        [[np.inf if i == j < masked else math.dist(x, y) ** 2 / 2 for j, y in enumerate(targets)] for i, x in enumerate(rows)]
    )


def transport(rows, targets, weights, epsilon, iterations, masked=0):
    """Return the plan of one set after some iterations, with the potential of the columns."""
    kernel = np.exp(-costs(rows, targets, masked) / epsilon)
    share, count = np.asarray(weights) / np.sum(weights), len(rows)
    right = np.ones(len(targets))
    for _ in range(iterations):
        left = 1 / (kernel @ (share * right))
        right = count / (kernel.T @ left)
    return left[:, None] * kernel * right * share / count, right


def projected(plan, targets):
    return (plan @ targets) / plan.sum(1, keepdims=True)


def entropy(rows, targets, weights, temperature):
    """Return epsilon for one group."""
    distances = np.array([[math.dist(x, y) for y in targets] for x in rows])
    return temperature * (weights * distances**2).sum() / (weights * distances).sum()


def problem(dimension, masked):
    generated, positives, others, unconditional = draw(0, *[(2, count, dimension) for count in (4, 5, 6, 3)])
    own = generated if masked else others
    (weights,) = draw(1, (2, own.shape[1] + 3 + 5))
    return generated, positives + 0.5, own, unconditional, 0.2 + weights.abs()


@pytest.mark.parametrize(
    *covering(dimension=(2, 12), masked=(False, True), guided=(False, True), weighted=(False, True), iterations=(1, 7))
)
def test_drift_and_statistics_are_those_of_plain_iterations(dimension, masked, guided, weighted, iterations):
    generated, positives, own, unconditional, weights = problem(dimension, masked)
    sizes = [own.shape[1], 3 if guided else 0, 5]
    negatives = torch.cat([own, unconditional], 1) if guided else own
    weights = torch.cat([weights[:, : sizes[0]], weights[:, own.shape[1] : own.shape[1] + sizes[1]], weights[:, -5:]], 1)
    weights = weights if weighted else torch.ones_like(weights)
    temperatures = torch.tensor([0.3, 2.0], dtype=torch.float64)
    options = {"weights": weights if weighted else None, "num_self": 4 if masked else 0, "num_unconditional": sizes[1]}
    field = Sinkhorn(iterations=iterations, tolerance=0.0)
    drift = field(generated, positives, negatives, temperatures=temperatures, **options)
    statistics = field.statistics(generated, positives, negatives, temperatures=temperatures, **options)
    residuals = []
    for index, temperature in enumerate(temperatures.tolist()):
        found = []
        for group in range(2):
            rows, real, repelling, other = (value[group].numpy() for value in (generated, positives, own, unconditional))
            of_own, of_other, of_real = (part.numpy() for part in weights[group].split(sizes))
            everything = np.concatenate([repelling, other[: sizes[1]], real])
            epsilon = entropy(rows, everything, weights[group].numpy(), temperature)
            to_real, _ = transport(rows, real, of_real, epsilon, iterations)
            to_own, _ = transport(rows, repelling, of_own, epsilon, iterations, 4 if masked else 0)
            expected = projected(to_real, real) - projected(to_own, repelling)
            if guided:
                to_other, _ = transport(rows, other, of_other, epsilon, iterations)
                met = np.array([of_own.sum() - (of_own[i] if masked else 0) for i in range(4)])[:, None]
                expected += of_other.sum() / met * (projected(to_real, real) - projected(to_other, other))
            assert_close(drift[index, group], expected)
            found.append(max(np.abs(plan.sum(1) - 1 / 4).sum() for plan in (to_real, to_own)))
        residuals.append(np.mean(found))
    assert_close(statistics.marginal_residual, residuals)


def test_effective_neighbors_are_those_of_the_plan():
    generated, positives, others = draw(2, (1, 4, 2), (1, 6, 2), (1, 5, 2))
    flat = Sinkhorn().statistics(generated, positives, others, temperatures=torch.tensor([1e6], dtype=torch.float64))
    assert_close(torch.cat(flat), [0, 6, 5], 1e-5)
    same = Sinkhorn(iterations=100).statistics(generated, generated, others, temperatures=torch.tensor([1e-4], dtype=torch.float64))
    assert_close(same.positive_neighbors, [1.0], 1e-6)


def test_plan_is_that_of_pot():
    ot = pytest.importorskip("ot")
    generated, positives, others = draw(3, (1, 16, 8), (1, 20, 8), (1, 12, 8))
    weights = 0.1 + draw(4, (1, 32))[0].abs()
    temperature = 0.1
    field, options = Sinkhorn(iterations=2000, tolerance=0.0), {"temperatures": torch.tensor([temperature], dtype=torch.float64)}
    drift = field(generated, positives, others, weights=weights, **options)[0, 0]
    rows, sides = generated[0].numpy(), [positives[0].numpy(), others[0].numpy()]
    epsilon = entropy(rows, np.concatenate(sides[::-1]), weights[0].numpy(), temperature)
    of_each = [weights[0, 12:].numpy(), weights[0, :12].numpy()]
    plans = [
        ot.sinkhorn(
            np.full(16, 1 / 16),
            some / some.sum(),
            costs(rows, side, 0),
            epsilon,
            method="sinkhorn_log",
            stopThr=1e-12,
            numItermax=5000,
        )
        for side, some in zip(sides, of_each, strict=True)
    ]
    assert_close(drift, projected(plans[0], sides[0]) - projected(plans[1], sides[1]), 1e-8)


def test_drift_against_the_own_unmasked_batch_is_the_debiased_gradient_of_geomloss():
    geomloss = pytest.importorskip("geomloss")
    generated, positives = draw(5, (1, 24, 3), (1, 24, 3))
    positives, temperature = positives + 0.7, 0.3
    drift = Sinkhorn(iterations=500)(
        generated, positives, generated, temperatures=torch.tensor([temperature], dtype=torch.float64)
    )[0, 0]
    weights = np.ones(48)
    epsilon = entropy(generated[0].numpy(), torch.cat([generated, positives], 1)[0].numpy(), weights, temperature)
    x = generated[0].clone().requires_grad_()
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=epsilon**0.5, scaling=0.99, debias=True, backend="tensorized")
    (gradient,) = torch.autograd.grad(loss(x, positives[0]), x)
    assert (drift + 24 * gradient).norm() < 0.02 * drift.norm()
    options = {"temperatures": torch.tensor([temperature], dtype=torch.float64), "num_self": 24}
    assert_close(Sinkhorn(500, mask_self=False)(generated, positives, generated, **options)[0, 0], drift)


def test_iterations_end_where_the_plan_is_good_enough():
    generated, positives, others = draw(6, (2, 8, 3), (2, 9, 3), (2, 7, 3))
    options = {"temperatures": torch.tensor([0.2, 1.0], dtype=torch.float64)}
    exact = Sinkhorn(iterations=3000, tolerance=0.0)(generated, positives, others, **options)
    for tolerance in (1e-2, 1e-4, 1e-6):
        field = Sinkhorn(iterations=3000, tolerance=tolerance)
        assert field.statistics(generated, positives, others, **options).marginal_residual.max() <= tolerance
        error = (field(generated, positives, others, **options) - exact).abs().max()
        assert 0 < error < 10 * tolerance
    loose = Sinkhorn(iterations=3000, tolerance=1e-2).statistics(generated, positives, others, **options)
    assert loose.marginal_residual.max() > 1e-4


def test_plan_that_does_not_converge_is_reported_once(monkeypatch):
    monkeypatch.setattr(sinkhorn, "_reported", set())
    generated, positives, others = draw(7, (1, 8, 2), (1, 8, 2), (1, 8, 2))
    sharp, wide = (torch.tensor([value], dtype=torch.float64) for value in (0.003, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sinkhorn()(generated, positives, others, temperatures=wide)
    with pytest.warns(
        UserWarning, match=r"row sums of a Sinkhorn plan are off by 0\.\d+ after 10 iterations: pass more iterations"
    ):
        drift = Sinkhorn()(generated, positives, others, temperatures=sharp)
    assert drift.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sinkhorn()(generated, positives, others, temperatures=sharp)


@pytest.mark.parametrize("independent", [False, True])
def test_guidance_is_a_velocity_of_its_scale(independent):
    """The weight of the unconditional samples gives the guidance scale back."""
    generated, positives, others, unconditional = draw(8, (2, 6, 3), (2, 7, 3), (2, 6, 3), (2, 4, 3))
    scale = torch.tensor(2.5)
    weight = unconditional_weight(scale, 7 if independent else 6, 4)
    options = {"temperatures": (0.5,), "normalize_drift": False, "normalize_features": False, "field": Sinkhorn(tolerance=0.0)}
    second = {"generated_negatives": others} if independent else {}
    x = generated.clone().requires_grad_()
    drifting_loss(x, positives, unconditional, unconditional_weights=weight.expand(2, 4), **second, **options).loss.sum().backward()
    own, count = others if independent else generated, 6
    field = options["field"]
    weights = torch.cat([torch.ones(2, 6), weight.expand(2, 4), torch.ones(2, 7)], 1).double()
    arguments = {"temperatures": torch.tensor([0.5], dtype=torch.float64), "weights": weights, "num_self": 0 if independent else 6}
    drift = field(generated, positives, torch.cat([own, unconditional], 1), num_unconditional=4, **arguments)[0]
    assert_close(x.grad, -2 * drift / (count * 3))
    rest = {name: value for name, value in arguments.items() if name != "temperatures"}
    negatives = torch.cat([own, unconditional], 1)
    for mask_self in (True, False):
        call = Problem(generated, [negatives], positives, num_unconditional=4, **rest)
        strength = sinkhorn._Transport(call, mask_self=mask_self).strength
        assert_close(strength, torch.full_like(strength, 1.5), 1e-6)


def test_particle_uses_the_potentials_of_the_samples():
    points, generated, positives = draw(9, (5, 2), (6, 2), (7, 2))
    at = Sinkhorn(iterations=6, tolerance=0.0).at(points, generated, positives, temperature=0.6)
    rows, real = generated.numpy(), positives.numpy()
    epsilon = entropy(rows, np.concatenate([rows, real]), np.ones(13), 0.6)
    expected = 0
    for sign, targets, masked in ((1, real, 0), (-1, rows, 6)):
        _, right = transport(rows, targets, np.ones(len(targets)), epsilon, 6, masked)
        kernel = np.exp(-costs(points.numpy(), targets, 0) / epsilon) * right
        expected = expected + sign * projected(kernel, targets)
    assert_close(at, expected)


def test_float32_far_from_the_origin_keeps_its_digits():
    generated, positives, others = draw(10, (1, 8, 3), (1, 9, 3), (1, 7, 3))
    temperatures = torch.tensor([0.3], dtype=torch.float64)
    expected = Sinkhorn()(generated, positives, others, temperatures=temperatures)
    moved = [(samples + 1000).float() for samples in (generated, positives, others)]
    assert (Sinkhorn()(*moved, temperatures=temperatures.float()) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_target_far_from_all_samples_is_reached_by_the_nearest():
    """Its column underflows in the first iteration without logarithms."""
    generated, positives, others = draw(11, (1, 6, 2), (1, 6, 2), (1, 6, 2))
    positives[0, 0] = 60.0
    samples = [value.float() for value in (generated, positives, others)]
    drift = Sinkhorn(iterations=100)(*samples, temperatures=torch.tensor([0.1]))[0, 0]
    assert drift.isfinite().all()
    assert drift.max() > 20


def test_loss_logs_how_well_the_plans_are_known():
    generated, positives = draw(12, (2, 6, 3), (2, 7, 3))
    report = drifting_loss(generated, positives, field=Lookahead(Sinkhorn()), temperatures=(0.1, 0.5), statistics=True)
    assert isinstance(report.statistics, SinkhornStatistics)
    assert 0 <= report.statistics.marginal_residual[1] < report.statistics.marginal_residual[0] < 0.1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"iterations": 0}, "iterations is 0: pass at least 1"),
        ({"tolerance": -1.0}, "tolerance is -1.0: pass a number from 0 to 2"),
    ],
)
def test_value_that_does_not_fit_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Sinkhorn(**options)
