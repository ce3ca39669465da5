"""The kernels of a GPU, in Triton's interpreter or on a device: the float64 oracle in float32, and what is left to torch.

The interpreter shows what a kernel computes, not what threads of a device do to each other: run `pytest -m gpu` on a device.
"""

import dataclasses
import importlib.util
import math
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drifting import drifting_loss
from drifting.fields import MeanShift, backends, triton_drifts
from drifting.fields.backends import FieldDrifts, open_drifts
from drifting.fields.base import Problem
from drifting.fields.triton_drifts import TritonDrifts
from tests.oracle import drifting_oracle as oracle
from tests.support.covering import each_once, pairwise
from tests.support.far_samples import both_together, far_target, outlier_row
from tests.support.threads import on_peers

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="set TRITON_INTERPRET=1 to test on a CPU")

AGREE = triton_drifts._agree
RELEASE, ONE = (0.02, 0.05, 0.2), (0.4,)
# Groups, generated, positives, unconditional, coordinates: direct differences or products, one tile of columns or several.
SHAPES = {"plane": (2, 5, 6, 4, 2), "wide": (2, 5, 6, 4, 20), "uneven": (1, 18, 17, 3, 18), "one sample": (2, 1, 4, 0, 12)}


@pytest.fixture(params=[pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    monkeypatch.setattr(triton_drifts, "_DEVICES", (request.param,))
    monkeypatch.setattr(backends, "is_available", lambda samples: False)
    monkeypatch.setattr(triton_drifts, "_agree", lambda device: True)
    return request.param


@pytest.fixture(params=["on the chip", "in tiles"])
def way(request, monkeypatch) -> str:
    """Compute small problems as small ones, or as large ones."""
    if request.param == "in tiles":
        monkeypatch.setattr(triton_drifts, "_ROWS", 0)
        monkeypatch.setattr(triton_drifts, "_TILES", (16, 32))
        monkeypatch.setattr(triton_drifts, "_PROGRAMS", 0)
    return request.param


@pytest.fixture
def asked_again(device, monkeypatch) -> Iterator[None]:
    """Ask once more what this machine can do, in problems of few samples."""
    monkeypatch.setattr(triton_drifts, "_agree", AGREE)
    monkeypatch.setattr(triton_drifts, "_ROWS", 8)
    forget()
    yield
    forget()


def forget() -> None:
    triton_drifts._kernels.cache_clear()
    AGREE.cache_clear()


def draw(seed, *shapes) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def problem(shape, *, independent=False, weighted=False, seed=0) -> Problem:
    groups, generated, positives, unconditional, width = shape
    samples, real, others, second = draw(
        seed, (groups, generated, width), (groups, positives, width), (groups, unconditional, width), (groups, 7, width)
    )
    negatives = [second if independent else samples, *([others] if unconditional else [])]
    count = sum(part.shape[1] for part in negatives) + positives
    weights = draw(seed + 1, (groups, count))[0].abs() if weighted else None
    return Problem(samples, negatives, real + 0.3, weights, 0 if independent else generated)


def changed(problem, change) -> Problem:
    """Return a problem with a function applied to every set of samples, and the same rows among the negatives."""
    weights = None if problem.weights is None else problem.weights.to(change(problem.weights[:0]).dtype)
    negatives = [change(part) for part in problem.negatives]
    return dataclasses.replace(
        problem, generated=change(problem.generated), negatives=negatives, positives=change(problem.positives), weights=weights
    )


def moved(problem, device) -> Problem:
    weights = None if problem.weights is None else problem.weights.to(device)
    return dataclasses.replace(changed(problem, lambda samples: samples.to(device)), weights=weights)


def wide(problem) -> Problem:
    return changed(problem, Tensor.double)


def answers(drifts, temperatures, factors=None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean distance, the sizes of the drifts, and the sum of the drifts."""
    mean = drifts.mean_distance()
    sizes = drifts.root_mean_squares(torch.tensor(temperatures).to(mean))
    factors = torch.ones(len(temperatures)) if factors is None else factors
    return tuple(value.cpu() for value in (mean, sizes, drifts.total(factors.to(mean))))


def results(samples, temperatures, floor, device, *, smallest=0.0, factors=None):
    drifts = open_drifts(MeanShift(floor), moved(samples, device), smallest=smallest)
    assert isinstance(drifts, TritonDrifts)
    return answers(drifts, temperatures, factors)


def expected(samples, temperatures, floor, *, smallest=0.0, factors=None):
    return answers(FieldDrifts(MeanShift(floor), wide(samples), smallest=smallest), temperatures, factors)


def assert_close(values, wanted, tolerance=1e-5):
    for value, right in zip(values, wanted, strict=True):
        assert (value.double() - right).abs().max() <= tolerance * right.abs().max()


@pytest.mark.parametrize(
    *pairwise(
        shape=SHAPES,
        way=("on the chip", "in tiles"),
        temperatures={"release": RELEASE, "one": ONE},
        floor=(0.0, 1e-2),
        independent=(False, True),
        weighted=(False, True),
    ),
    indirect=["way"],
)
def test_drifts_are_those_of_float64(device, way, shape, temperatures, floor, independent, weighted):
    samples = problem(shape, independent=independent, weighted=weighted)
    scaled = [temperature * math.sqrt(shape[-1]) for temperature in temperatures]
    options = {"smallest": 1e-4, "factors": torch.tensor([1.0, -2.0, 0.5][: len(temperatures)])}
    assert_close(results(samples, scaled, floor, device, **options), expected(samples, scaled, floor, **options))


def test_large_groups_are_cut_into_tiles(device):
    samples = problem((1, 65, 7, 0, 12), weighted=True)
    assert_close(results(samples, RELEASE, 1e-6, device), expected(samples, RELEASE, 1e-6))


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_loss_is_that_of_the_oracle(device, way, floor):
    samples = draw(2, (2, 6, 16), (2, 7, 16), (2, 3, 16))
    weights = [values.abs() for values in draw(3, (2, 6), (2, 7), (2, 3))]
    names = ("generated_weights", "positive_weights", "unconditional_weights")
    options = {name: value.to(device) for name, value in zip(names, weights, strict=True)}
    generated, *others = (values.to(device, copy=True) for values in samples)
    report = drifting_loss(generated.requires_grad_(), *others, **options, field=MeanShift(floor))
    report.loss.sum().backward()
    wanted = oracle.drifting_loss(*samples, **dict(zip(names, weights, strict=True)), floor=floor)
    np.testing.assert_allclose(report.loss.detach().cpu(), wanted.loss, rtol=1e-5)
    np.testing.assert_allclose(generated.grad.cpu(), wanted.grad, rtol=1e-4, atol=1e-5 * np.abs(wanted.grad).max())
    np.testing.assert_allclose(torch.stack(list(report.drift_norms.values())).cpu(), wanted.drift_norms, rtol=1e-5)
    assert float(report.scale) == pytest.approx(wanted.scale, rel=1e-6)


@pytest.mark.parametrize("independent", [False, True])
def test_kernel_spreads_as_in_float64(device, way, independent):
    samples = problem((2, 5, 6, 4, 12), independent=independent, weighted=True)
    samples.positives[1, 1:] += 30  # affinities whose squares underflow
    temperatures = torch.tensor(RELEASE, dtype=torch.float64) * 12**0.5
    drifts = open_drifts(MeanShift(), moved(samples, device), smallest=0.0)
    found = [value.cpu() for value in drifts.statistics(temperatures.to(device))]
    right = wide(samples)
    parts = (right.generated, right.positives, torch.cat(list(right.negatives), 1))
    assert_close(found, MeanShift().statistics(*parts, **right.options(temperatures, MeanShift())))


def test_loss_takes_the_statistics_of_the_kernels(device, way, monkeypatch):
    samples, positives = (values.to(device) for values in draw(6, (2, 5, 12), (2, 6, 12)))
    expected = drifting_loss(samples.double(), positives.double(), statistics=True).statistics
    monkeypatch.setattr(MeanShift, "statistics", None)
    found = drifting_loss(samples, positives, statistics=True).statistics
    assert_close([value.cpu() for value in found], [value.cpu() for value in expected])


def test_a_known_scale_needs_no_distances_before(device, way):
    samples = problem((2, 5, 6, 0, 12))
    drifts = open_drifts(MeanShift(), moved(samples, device), smallest=0.0)
    sizes = drifts.root_mean_squares(torch.tensor(RELEASE, device=device))
    assert_close([sizes.cpu()], expected(samples, RELEASE, 0.0)[1:2])


@pytest.mark.parametrize(*each_once(change=[outlier_row, far_target, both_together], width=(2, 12)))
def test_samples_far_from_all_others(device, way, change, width):
    samples = problem((2, 6, 8, 0, width), seed=4)
    change(samples)
    assert_close(results(samples, RELEASE, 0.0, device), expected(samples, RELEASE, 0.0), 1e-4)


@pytest.mark.parametrize("width", [2, 12])
def test_samples_far_from_the_origin(device, way, width):
    samples = changed(problem((2, 6, 8, 3, width)), lambda part: part + 1e4)
    assert_close(results(samples, (0.5, 2.0), 1e-6, device), expected(samples, (0.5, 2.0), 1e-6), 1e-4)


@pytest.mark.parametrize("width", [2, 16])
def test_near_pairs_of_distant_clusters_keep_their_digits(device, way, width):
    samples = problem((1, 16, 16, 0, width), seed=5)
    centers = 3e2 * torch.arange(4).repeat(4)[None, :, None]
    samples = changed(samples, lambda part: part + centers)
    assert_close(results(samples, (0.5, 2.0), 0.0, device), expected(samples, (0.5, 2.0), 0.0), 2e-4)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures_are_finite(device, way, temperature):
    _, sizes, drift = results(problem((1, 5, 6, 0, 12)), (temperature, 0.1), 1e-6, device)
    assert sizes.isfinite().all()
    assert drift.isfinite().all()


def test_targets_of_weight_zero_repel_nothing_without_a_floor(device, way):
    """Padding: samples of weight 0 change the normalizers of rows alone."""
    samples = problem((2, 5, 6, 4, 12))
    weights = torch.ones(2, 15)
    weights[:, 5:9] = 0
    samples = dataclasses.replace(samples, weights=weights)
    assert_close(results(samples, RELEASE, 1e-6, device), expected(samples, RELEASE, 1e-6))


def test_samples_that_are_not_numbers_are_seen(device, way):
    samples = problem((2, 5, 6, 0, 12))
    samples.generated[1, 2, 3] = torch.nan
    mean, sizes, drift = results(samples, RELEASE, 1e-6, device)
    assert mean.isnan()
    assert sizes.isnan().all()
    assert drift[1].isnan().any()
    assert drift[0].isfinite().all()


@pytest.mark.parametrize("width", [2, 20])
def test_samples_in_bfloat16_are_read_as_they_are(device, way, width):
    samples = changed(problem((2, 5, 6, 4, width)), Tensor.bfloat16)
    assert_close(results(samples, RELEASE, 1e-6, device), expected(samples, RELEASE, 1e-6))


def test_rows_are_split_over_processes(device, monkeypatch):
    samples, one_at_a_time, launch = problem((2, 8, 6, 3, 12), weighted=True), threading.Lock(), TritonDrifts._launch

    def locked(self, *arguments, **constants):
        with one_at_a_time:  # the interpreter computes one kernel at a time
            launch(self, *arguments, **constants)

    monkeypatch.setattr(TritonDrifts, "_launch", locked)

    def work(peers):
        rows = samples.generated.chunk(2, 1)[peers.rank]
        part = moved(dataclasses.replace(samples, generated=rows, num_self=4, peers=peers), device)
        drifts = open_drifts(MeanShift(1e-6), part, smallest=0.0)
        temperatures = torch.tensor(RELEASE, device=device)
        return answers(drifts, RELEASE)[2], torch.stack(list(drifts.statistics(temperatures))).cpu()

    drifts, statistics = zip(*on_peers(2, work), strict=True)
    assert_close([torch.cat(drifts, 1)], expected(samples, RELEASE, 1e-6)[2:])
    whole = open_drifts(MeanShift(1e-6), moved(samples, device), smallest=0.0).statistics(torch.tensor(RELEASE, device=device))
    assert_close([torch.stack(statistics).mean(0)], [torch.stack(list(whole)).double().cpu()])


def many_sets(samples):
    return dataclasses.replace(samples, negatives=[samples.generated, *samples.positives.split(3, 1)])


def one_row_among_the_targets(samples):
    return dataclasses.replace(samples, num_self=1)


def mixed(samples):
    return dataclasses.replace(samples, positives=samples.positives.bfloat16())


@pytest.mark.parametrize("change", [wide, many_sets, one_row_among_the_targets, mixed])
def test_other_problems_are_left_to_torch(device, change):
    samples = moved(problem((2, 5, 6, 0, 4)), device)
    assert triton_drifts.is_available(samples)
    assert not triton_drifts.is_available(change(samples))


def test_another_field_is_left_to_torch(device):
    class Turned(MeanShift):
        def __call__(self, *samples, **options):
            return -super().__call__(*samples, **options)

    samples = moved(problem((2, 5, 6, 0, 4)), device)
    assert isinstance(open_drifts(MeanShift(), samples, smallest=0.0), TritonDrifts)
    assert isinstance(open_drifts(Turned(), samples, smallest=0.0), FieldDrifts)


@pytest.mark.usefixtures("asked_again")
def test_torch_does_the_work_where_triton_is_missing(device, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest))
    assert isinstance(open_drifts(MeanShift(), moved(problem((2, 5, 6, 0, 4)), device), smallest=0.0), FieldDrifts)


@pytest.mark.usefixtures("asked_again")
def test_one_switch_turns_compiled_backends_off(device, monkeypatch):
    monkeypatch.setenv("DRIFTING_COMPILED", "0")
    assert isinstance(open_drifts(MeanShift(), moved(problem((2, 5, 6, 0, 4)), device), smallest=0.0), FieldDrifts)


@pytest.mark.usefixtures("asked_again")
def test_kernels_that_agree_with_torch_are_used(device):
    assert isinstance(open_drifts(MeanShift(), moved(problem((2, 5, 6, 0, 4)), device), smallest=0.0), TritonDrifts)


@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize("fault", ["another drift", "an error"])
def test_kernels_that_differ_from_torch_are_not_used(device, monkeypatch, fault):
    total = TritonDrifts.total

    def wrong(self, factors):
        if fault == "an error":
            raise ValueError("no such target")
        return 1.01 * total(self, factors)

    monkeypatch.setattr(TritonDrifts, "total", wrong)
    with pytest.warns(RuntimeWarning, match="no such target" if fault == "an error" else "differ from those of torch by"):
        drifts = open_drifts(MeanShift(), moved(problem((2, 5, 6, 0, 4)), device), smallest=0.0)
    assert isinstance(drifts, FieldDrifts)


class _Reading(TorchDispatchMode):
    """Refuse to read a value, for which a device would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
        return function(*args, **(kwargs or {}))


def test_the_host_reads_nothing(device, way, monkeypatch):
    samples = moved(problem((2, 5, 6, 3, 12), weighted=True), device)
    assert triton_drifts.is_available(samples)
    monkeypatch.setattr(TritonDrifts, "_launch", lambda self, *arguments, **constants: None)
    with _Reading():
        drifts = open_drifts(MeanShift(1e-6), samples, smallest=1e-4)
        drifts.mean_distance()
        drifts.total(drifts.root_mean_squares(torch.ones(3, device=device)))
