"""The compiled backend: the float64 oracle in float32, extreme samples, and bits that depend on nothing but the samples."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from drifting import DriftingLoss, drifting_loss
from drifting.fields import MeanShift, backends, compiled_drifts
from drifting.fields.backends import CompiledDrifts, FieldDrifts, open_drifts
from drifting.fields.base import Problem
from drifting.fields.pairwise import Memory
from tests.oracle import drifting_oracle as oracle
from tests.support.covering import pairwise
from tests.support.far_samples import both_together, far_target, outlier_row

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(compiled_drifts._loops() is None, reason="numba is missing")

RELEASE, SIMPLE, OTHER = (0.02, 0.05, 0.2), (0.1, 0.3), (0.07, 0.11)
# Both sides of the switches: direct differences or products, and groups at once or in blocks, on several lanes.
SHAPES = {"plane": (3, 5, 6, 4, 2), "wide": (3, 5, 6, 4, 12), "blocks": (1, 300, 70, 9, 12), "plane in blocks": (2, 300, 40, 0, 3)}


def draw(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def problem(shape, *, independent=False, weighted=False, seed=0):
    groups, generated, positives, unconditional, width = shape
    samples, real, others, second = draw(
        seed, (groups, generated, width), (groups, positives, width), (groups, unconditional, width), (groups, 7, width)
    )
    negatives = [second if independent else samples, *([others] if unconditional else [])]
    count = sum(part.shape[1] for part in negatives) + positives
    weights = draw(seed + 1, (groups, count))[0].abs() if weighted else None
    return Problem(samples, negatives, real + 0.3, weights, 0 if independent else generated)


def wide(problem):
    weights = None if problem.weights is None else problem.weights.double()
    negatives = [part.double() for part in problem.negatives]
    return Problem(problem.generated.double(), negatives, problem.positives.double(), weights, problem.num_self)


def results(problem, temperatures, floor, *, smallest=0.0, factors=None, memory=None, **repelling):
    """Return the mean distance, the sizes of the drifts, and the sum of the drifts, by the backend of the problem's precision."""
    drifts = open_drifts(MeanShift(floor, **repelling), problem, smallest=smallest, memory=memory)
    assert isinstance(drifts, FieldDrifts) == (problem.generated.dtype == torch.float64)
    mean = drifts.mean_distance()
    sizes = drifts.root_mean_squares(torch.tensor(temperatures, dtype=mean.dtype))
    factors = torch.ones(len(temperatures)) if factors is None else factors
    return mean, sizes, drifts.total(factors.to(mean))


def assert_close(values, expected, tolerance=1e-5):
    for value, wanted in zip(values, expected, strict=True):
        assert (value.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize(
    *pairwise(
        shape=SHAPES,
        temperatures={"release": RELEASE, "whole ratio": SIMPLE, "other ratio": OTHER, "one": (0.4,)},
        floor=(0.0, 1e-6, 1e-2),
        independent=(False, True),
        weighted=(False, True),
        stored=(False, True),
    )
)
def test_drifts_are_those_of_float64(monkeypatch, shape, temperatures, floor, independent, weighted, stored):
    if not stored:
        monkeypatch.setattr(compiled_drifts, "_STORED_PAIRS", 0)
    samples = problem(shape, independent=independent, weighted=weighted)
    scaled = [temperature * math.sqrt(shape[-1]) for temperature in temperatures]
    factors = torch.tensor([1.0, -2.0, 0.5][: len(temperatures)])
    found = results(samples, scaled, floor, smallest=1e-4, factors=factors)
    assert_close(found, results(wide(samples), scaled, floor, smallest=1e-4, factors=factors))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("floor", [0.0, 1e-2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("repelling", [{"repulsion": 1.2}, {"balance": 0.5}], ids=["fixed", "balanced"])
def test_more_repulsion_is_that_of_float64(shape, floor, weighted, repelling):
    samples = problem(shape, weighted=weighted)
    scaled = [temperature * math.sqrt(shape[-1]) for temperature in RELEASE]
    assert_close(results(samples, scaled, floor, **repelling), results(wide(samples), scaled, floor, **repelling))
    assert isinstance(open_drifts(MeanShift(**repelling), problem(shape, independent=True), smallest=0.0), FieldDrifts)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("width", [2, 16])
def test_loss_is_that_of_the_oracle(floor, width):
    samples = draw(2, (2, 6, width), (2, 7, width), (2, 3, width))
    weights = [values.abs() for values in draw(3, (2, 6), (2, 7), (2, 3))]
    named = dict(zip(("generated_weights", "positive_weights", "unconditional_weights"), weights, strict=True))
    generated = samples[0].requires_grad_()
    report = drifting_loss(generated, *samples[1:], **named, field=MeanShift(floor))
    report.loss.sum().backward()
    expected = oracle.drifting_loss(*(values.detach() for values in samples), **named, floor=floor)
    np.testing.assert_allclose(report.loss.detach(), expected.loss, rtol=1e-5)
    np.testing.assert_allclose(generated.grad, expected.grad, rtol=1e-4, atol=1e-5 * np.abs(expected.grad).max())
    np.testing.assert_allclose(torch.stack(list(report.drift_norms.values())), expected.drift_norms, rtol=1e-5)
    assert float(report.scale) == pytest.approx(expected.scale, rel=1e-6)


def two_far_clusters(samples):
    samples.generated[0, ::2] += 30
    samples.positives[0, ::2] += 30


@pytest.mark.parametrize("change", [outlier_row, far_target, both_together, two_far_clusters])
@pytest.mark.parametrize("shape", [(2, 6, 8, 0, 2), (2, 6, 8, 0, 12), (1, 300, 40, 0, 12)])
@pytest.mark.parametrize("temperatures", [RELEASE, OTHER])
def test_samples_far_from_all_others(change, shape, temperatures):
    """Where one reference for all columns underflows, as in D = [[.5, 6], [6, 3]] at temperature .02: A_22 is 1."""
    samples = problem(shape, seed=4)
    change(samples)
    assert_close(results(samples, temperatures, 0.0), results(wide(samples), temperatures, 0.0), 1e-4)


@pytest.mark.parametrize("distance", [7.0, 11.0, 13.0, 20.0, 30.0])
@pytest.mark.parametrize("width", [2, 12])
def test_one_reference_for_all_columns_is_used_only_where_it_holds(width, distance):
    """Two targets far from all samples belong to the one that is least far; at temperature 0.2 both sides of the switch are met."""
    samples = problem((2, 6, 8, 0, width), independent=True, seed=12)
    samples.generated[:, 1, 0] += 3 * distance
    samples.positives[:, 3, 0] += 2 * distance
    samples.negatives[0][:, 2, 0] += 2 * distance
    assert_close(results(samples, (0.2,), 0.0), results(wide(samples), (0.2,), 0.0), 1e-4)


def test_affinity_of_two_distant_pairs_is_one():
    generated, positives = torch.tensor([[[0.0, 0.0], [0.0, 6.0]]]), torch.tensor([[[0.5, 0.0], [3.0, 6.0]]])
    negatives = torch.tensor([[[0.0, 0.0], [0.0, 6.0]]])
    _, _, drift = results(Problem(generated, [negatives], positives), (0.3,), 0.0)
    expected = torch.tensor(oracle.mean_shift(generated[0], positives[0], negatives[0], temperature=0.3))
    assert (drift[0] - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("width", [2, 16])
def test_near_pairs_of_distant_clusters_keep_their_digits(width):
    """Products lose the distances within a cluster, which are therefore summed directly."""
    samples = problem((1, 40, 40, 0, width), seed=5)
    centers = 3e2 * torch.arange(4).repeat(10)[None, :, None]
    moved = Problem(samples.generated + centers, [samples.generated + centers], samples.positives + centers, None, 40)
    assert_close(results(moved, (0.5, 2.0), 0.0), results(wide(moved), (0.5, 2.0), 0.0), 2e-4)


@pytest.mark.parametrize("width", [2, 16])
@pytest.mark.parametrize("temperature", [1e-30, 1e-8, 1e8, 1e30])
def test_extreme_temperatures_are_finite(width, temperature):
    _, sizes, drift = results(problem((2, 5, 6, 0, width)), (temperature, 0.1), 1e-6)
    assert sizes.isfinite().all()
    assert drift.isfinite().all()


def test_a_single_sample_has_no_negatives():
    generated, positives = draw(6, (1, 1, 3), (1, 4, 3))
    for floor in (0.0, 1e-6):
        samples = Problem(generated, [generated], positives, None, 1)
        assert_close(results(samples, (0.5,), floor)[2:], results(wide(samples), (0.5,), floor)[2:])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bits_depend_neither_on_threads_nor_on_kept_memory(shape):
    samples, memory = problem(shape, weighted=True), Memory()
    results(problem((4, 9, 9, 9, 9)), SIMPLE, 0.0, memory=memory)
    expected, before = results(samples, RELEASE, 1e-6), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for _ in range(2):
                assert all(map(torch.equal, results(samples, RELEASE, 1e-6, memory=memory), expected))
    finally:
        torch.set_num_threads(before)


def test_samples_that_are_not_numbers_are_seen_in_the_loss():
    generated, positives = draw(7, (2, 5, 12), (2, 6, 12))
    generated[1, 2, 3] = torch.nan
    assert drifting_loss(generated, positives).loss.isnan().any()
    options = {"normalize_features": False, "normalize_drift": False}
    assert drifting_loss(generated, positives, **options).loss.isnan()[1]


@pytest.mark.parametrize("width", [3, 20])
def test_samples_too_far_for_float32_are_seen_in_the_loss(width):
    generated, positives = draw(7, (2, 5, width), (2, 6, width))
    positives[1, 2, 0] = 1e20
    assert drifting_loss(generated, positives).loss[1].isnan()


def test_another_field_and_other_precision_are_left_to_torch(monkeypatch):
    class Turned(MeanShift):
        def __call__(self, *samples, **options):
            return -super().__call__(*samples, **options)

    samples = problem((2, 5, 6, 0, 4))
    assert isinstance(open_drifts(MeanShift(), samples, smallest=0.0), CompiledDrifts)
    assert isinstance(open_drifts(Turned(), samples, smallest=0.0), FieldDrifts)
    assert isinstance(open_drifts(MeanShift(), wide(samples), smallest=0.0), FieldDrifts)
    compiled_drifts._loops.cache_clear()
    monkeypatch.setenv("DRIFTING_COMPILED", "0")
    try:
        assert isinstance(open_drifts(MeanShift(), samples, smallest=0.0), FieldDrifts)
    finally:
        compiled_drifts._loops.cache_clear()


def test_backends_agree(monkeypatch):
    maps = {"low": draw(8, (2, 5, 3, 4))[0], "high": draw(9, (2, 5, 1, 9))[0]}
    real = {"low": draw(10, (2, 6, 3, 4))[0], "high": draw(11, (2, 6, 1, 9))[0]}
    fast = DriftingLoss()(maps, real)
    monkeypatch.setattr(backends, "is_available", lambda samples: False)
    slow = DriftingLoss()(maps, real)
    torch.testing.assert_close(fast.loss, slow.loss, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_what_must_be_compiled_is_known_before(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    program = """
import torch
from drifting import drifting_loss
from drifting.fields import MeanShift, backends
cpu = torch.device("cpu")
print(backends.must_compile(MeanShift(), cpu), backends.must_compile(MeanShift(), torch.device("cuda")))
drifting_loss(torch.randn(3, 2), torch.randn(4, 2))
print(backends.must_compile(MeanShift(), cpu))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False", "False"]


@pytest.mark.parametrize("is_cached", [False, True])
def test_only_the_compiled_loops_are_compiled(monkeypatch, is_cached):
    monkeypatch.setattr(compiled_drifts._loops().vectors, "is_cached", lambda entry: is_cached)
    assert backends.must_compile(MeanShift(), torch.device("cpu")) is not is_cached
    assert not backends.must_compile(MeanShift(), torch.device("cuda"))
    assert not backends.must_compile(FieldDrifts, torch.device("cpu"))
