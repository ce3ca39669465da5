"""Kernels and normalizations of the affinity against plain loops in float64, and what follows for the field that uses them."""

import math

import numpy as np
import pytest
import torch

from drifting import DriftingLoss, InputError, drifting_loss
from drifting.fields import MeanShift, backends, kernels, mean_shift, pairwise
from drifting.fields.base import Problem
from tests.oracle import drifting_oracle as oracle
from tests.support.covering import pairwise as covering

KERNELS = ("laplace", "gaussian", "matern32", "matern52")


def kernel(name, distance, temperature):
    """Return the textbook formula of a kernel."""
    if name == "laplace":
        return math.exp(-distance / temperature)
    if name == "gaussian":
        return math.exp(-(distance**2) / (2 * temperature**2))
    root = math.sqrt(3 if name == "matern32" else 5) * distance / temperature
    rest = 5 * distance**2 / (3 * temperature**2) if name == "matern52" else 0
    return (1 + root + rest) * math.exp(-root)


def draw(seed, *shapes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def expected_drift(field, rows, targets, split, temperature, masked, weights):
    """Return the drift of the rows of one group from the definition of the affinity."""
    values = np.array(
        [
            [0 if i == j < masked else kernel(field.kernel, math.dist(x, y), temperature) for j, y in enumerate(targets)]
            for i, x in enumerate(rows)
        ]
    )
    affinity = values / values.sum(1, keepdims=True)
    if field.normalization == "rows_and_columns":
        sums = values.sum(0, keepdims=True)
        affinity = np.sqrt(affinity * np.divide(values, sums, out=np.zeros_like(values), where=sums > 0))
    affinity = np.maximum(affinity, math.sqrt(field.affinity_floor)) * weights
    return oracle.cross_weighted(affinity.tolist(), targets, split)


@pytest.mark.parametrize("name", KERNELS)
def test_logarithm_and_pull_are_those_of_the_formula(name):
    distances, temperature = torch.tensor([1e-6, 0.1, 1.0, 3.0], dtype=torch.float64), 0.7
    scale = pairwise.kernel_scale(torch.tensor(temperature, dtype=torch.float64))
    log, pull = kernels.log_kernel(distances, scale, name), kernels.KERNELS[name].pull(distances / temperature)
    values = [kernel(name, distance, temperature) for distance in distances.tolist()]
    torch.testing.assert_close(log.exp(), torch.tensor(values, dtype=torch.float64))
    # The derivative, from differences: temperature^2 k'(d) = -k pull d.
    for distance, factor in zip(distances.tolist()[1:], pull.tolist()[1:], strict=True):
        step = 1e-5
        slope = (kernel(name, distance + step, temperature) - kernel(name, distance - step, temperature)) / (2 * step)
        assert -(temperature**2) * slope == pytest.approx(kernel(name, distance, temperature) * factor * distance, rel=1e-6)


@pytest.mark.parametrize(
    *covering(
        kernel=KERNELS,
        normalization=("rows_and_columns", "rows"),
        floor=(0.0, 1e-2),
        dimension=(2, 12),
        weighted=(False, True),
        num_self=(0, 4),
    )
)
def test_drift_is_that_of_the_definition(kernel, normalization, floor, dimension, weighted, num_self):
    field = MeanShift(floor, kernel=kernel, normalization=normalization)
    generated, others, positives = draw(0, (2, 4, dimension), (2, 3, dimension), (2, 5, dimension))
    negatives = torch.cat([generated, others], 1) if num_self else others
    weights = draw(1, (2, negatives.shape[1] + 5))[0].abs() if weighted else None
    temperatures = torch.tensor([0.4, 2.0], dtype=torch.float64) * dimension**0.5
    drift = field(generated, positives, negatives, temperatures=temperatures, weights=weights, num_self=num_self)
    targets = torch.cat([negatives, positives], 1).numpy()
    for index, temperature in enumerate(temperatures.tolist()):
        for group in range(2):
            of_group = np.ones(targets.shape[1]) if weights is None else weights[group].numpy()
            problem = (generated[group].numpy(), targets[group], negatives.shape[1], temperature, num_self, of_group)
            torch.testing.assert_close(drift[index, group], torch.tensor(expected_drift(field, *problem)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", KERNELS)
def test_pieces_and_the_whole_agree(monkeypatch, name):
    """The affinities in one piece, as on a GPU, and in tiles."""
    (x, y), temperatures = draw(2, (2, 5, 3), (2, 7, 3)), torch.tensor([0.2, 1.0], dtype=torch.float64)
    distances = pairwise.pairwise_distances(x, y)
    pairwise.mask_self(distances, 5)
    monkeypatch.setattr(pairwise, "_CPU_TILE", 14)
    for by_columns in (True, False):
        options = {"kernel": name, "by_columns": by_columns}
        whole = pairwise.affinities_at_once(distances, temperatures, 1e-6, **options).unflatten(1, (2, 5))
        for index, groups, rows, tile in pairwise.affinity_tiles(distances, temperatures, 1e-6, **options):
            torch.testing.assert_close(tile, whole[groups, index, rows])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("normalization", ["rows_and_columns", "rows"])
@pytest.mark.parametrize("temperature", [1e-20, 1e-8, 1e8, 1e20])
def test_extreme_temperatures_are_finite(name, normalization, temperature):
    generated, positives = draw(3, (1, 5, 2), (1, 4, 2), dtype=torch.float32)
    field = MeanShift(kernel=name, normalization=normalization)
    temperatures = torch.tensor([temperature])
    drift = field(generated, positives, generated, temperatures=temperatures, num_self=5)
    assert drift.isfinite().all()
    assert drift.abs().max() < 1e3
    assert (
        torch.stack(list(field.statistics(generated, positives, generated, temperatures=temperatures, num_self=5))).isfinite().all()
    )
    assert field.at(generated[0], generated[0], positives[0], temperature=temperature).isfinite().all()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("normalization", ["rows_and_columns", "rows"])
def test_particle_is_a_row_of_its_own(name, normalization):
    """The points do not change each other, and without sums over columns they feel what a generated sample feels."""
    points, positives = draw(4, (6, 2), (5, 2))
    field = MeanShift(kernel=name, normalization=normalization)
    at = field.at(points, points + 50, positives, temperature=0.8)
    assert at.isfinite().all()
    alone = torch.cat([field.at(point[None], points + 50, positives, temperature=0.8) for point in points])
    torch.testing.assert_close(at, alone)
    if normalization == "rows":
        others = draw(5, (4, 2))[0]
        options = {"temperatures": torch.tensor([0.8], dtype=torch.float64)}
        torch.testing.assert_close(
            field.at(points, others, positives, temperature=0.8),
            field(points[None], positives[None], others[None], **options)[0, 0],
        )


def test_only_the_field_of_the_paper_has_fast_backends(monkeypatch):
    opened = []
    monkeypatch.setattr(backends, "is_available", lambda samples: True)
    monkeypatch.setattr(backends, "CompiledDrifts", lambda problem, field, **options: opened.append(field))
    samples = draw(5, (1, 3, 2), (1, 4, 2), dtype=torch.float32)
    problem = Problem(samples[0], [samples[0]], samples[1], None, 3)
    fast = [MeanShift(1e-6), MeanShift(0.5, kernel="laplace"), MeanShift(repulsion=1.1)]
    for field in fast:
        backends.open_drifts(field, problem, smallest=0.0)
    assert opened == fast
    for field in (MeanShift(kernel="gaussian"), MeanShift(normalization="rows"), MeanShift(bias_correction=True)):
        assert isinstance(backends.open_drifts(field, problem, smallest=0.0), backends.FieldDrifts)
        assert not backends.must_compile(field, torch.device("cpu"))
    assert opened == fast


def test_loss_uses_the_kernel_of_its_field():
    generated, positives = draw(6, (2, 6, 3), (2, 7, 3))
    field = MeanShift(kernel="gaussian", normalization="rows")
    options = {"temperatures": (0.5,), "normalize_features": False, "statistics": True}
    report = drifting_loss(generated, positives, field=field, **options)
    temperatures = torch.tensor([0.5], dtype=torch.float64)
    drift = field(generated, positives, generated, temperatures=temperatures, num_self=6)
    torch.testing.assert_close(report.drift_norms[0.5], drift.square().mean())
    torch.testing.assert_close(
        report.statistics, field.statistics(generated, positives, generated, temperatures=temperatures, num_self=6)
    )
    assert DriftingLoss(field=field).field == MeanShift(0.0, "gaussian", "rows")


def test_one_row_sum_follows_the_numbers_of_samples():
    """With one softmax over the targets alone, twice as many positives attract more; the drift of the paper is balanced too."""
    (x,) = draw(7, (1, 8, 2))
    (real,) = draw(8, (1, 8, 2))
    field, temperatures = MeanShift(normalization="rows"), torch.tensor([1.0], dtype=torch.float64)
    once = field(x, real, x + 0.1, temperatures=temperatures)
    twice = field(x, torch.cat([real, real], 1), x + 0.1, temperatures=temperatures)
    assert (once - twice).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kernel": "gausian"}, "kernel is 'gausian', not laplace or .*: did you mean gaussian"),
        ({"normalization": "row"}, "normalization is 'row', not rows_and_columns or rows: did you mean rows"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(options, sentence):
    with pytest.raises(InputError, match=sentence):
        MeanShift(**options)


def test_function_has_the_kernel_of_the_paper():
    generated, positives = draw(9, (4, 2), (5, 2))
    expected = oracle.mean_shift(generated, positives, temperature=0.5)
    torch.testing.assert_close(mean_shift(generated, positives, temperature=0.5), torch.tensor(expected))
