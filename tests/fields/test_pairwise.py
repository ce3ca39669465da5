"""The engine: tiles, distances and potentials, each against the plain formula; and nothing depends on how work is cut."""

import copy
import inspect
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting import DriftingLoss, drifting_loss
from drifting.fields import MeanShift, pairwise
from tests.oracle import drifting_oracle as oracle

SIZES = st.integers(1, 7)
properties = settings(max_examples=25, deadline=None)


def draw(seed, *shapes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def problem(dimension=3, dtype=torch.float64):
    return draw(0, (3, 5, dimension), (3, 6, dimension), (3, 4, dimension), dtype=dtype)


@properties
@given(SIZES, SIZES, SIZES, st.integers(1, 60))
def test_tiles_cover_every_row_once_within_the_budget(groups, rows, columns, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "_CPU_TILE", budget)
        tiles = list(pairwise.tiles((groups, rows, columns), torch.device("cpu")))
    seen = torch.zeros(groups, rows, columns)
    for group, row in tiles:
        seen[group, row] += 1
        assert seen[group, row].numel() <= max(budget, columns)
    assert (seen == 1).all()


@pytest.mark.parametrize("budget", [1, 11, 23, 60, 130])
@pytest.mark.parametrize("dimension", [3, 12])
def test_results_do_not_depend_on_the_size_of_tiles(monkeypatch, budget, dimension):
    generated, positives, others = problem(dimension)
    (weights,) = (values.abs() for values in draw(1, (3, 15)))
    options = {
        "temperatures": torch.tensor([0.1, 1.0], dtype=torch.float64),
        "weights": weights,
        "num_self": 5,
    }

    def results():
        negatives = torch.cat([generated, others], 1)
        return [
            MeanShift(1e-6)(generated, positives, negatives, **options),
            *MeanShift(1e-6).statistics(generated, positives, negatives, **options),
            drifting_loss(generated, positives, others).loss,
        ]

    whole = results()
    monkeypatch.setattr(pairwise, "_CPU_TILE", budget)
    assert len(list(pairwise.tiles((3, 5, 15), torch.device("cpu")))) > 1
    torch.testing.assert_close(results(), whole, rtol=1e-12, atol=1e-12)


@properties
@given(st.integers(0, 1000), SIZES, SIZES, SIZES, st.sampled_from([1, 2, 8, 9, 20]))
def test_distances_are_those_of_a_loop(seed, groups, rows, columns, dimension):
    x, y = draw(seed, (groups, rows, dimension), (groups, columns, dimension))
    expected = [oracle.pairwise(x[group].tolist(), y[group].tolist()) for group in range(groups)]
    torch.testing.assert_close(
        pairwise.pairwise_distances(x, y), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dimension", [2, 64])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_float32_distances_keep_their_digits_far_from_the_origin(dimension, spread):
    x, y = (1e3 + spread * samples for samples in draw(2, (1, 9, dimension), (1, 9, dimension), dtype=torch.float32))
    expected = torch.tensor(oracle.pairwise(x[0].tolist(), y[0].tolist()))
    torch.testing.assert_close(pairwise.pairwise_distances(x, y)[0], expected, rtol=2e-6, atol=0)


def test_distances_of_twins_in_the_plane_are_exact():
    """In float64, where a product of matrices would lose them."""
    (x,) = draw(5, (1, 40, 2))
    distances = pairwise.pairwise_distances(x, x + torch.tensor([3e-9, 4e-9], dtype=torch.float64))
    torch.testing.assert_close(
        distances.diagonal(dim1=1, dim2=2), torch.full((1, 40), 5e-9, dtype=torch.float64), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dimension", [2, 64])
def test_a_sample_is_close_to_itself(dimension):
    (x,) = draw(3, (2, 9, dimension), dtype=torch.float32)
    distances = pairwise.pairwise_distances(x, x)
    assert distances.diagonal(dim1=1, dim2=2).abs().max() < 1e-6
    assert not distances.isnan().any()


def test_distances_have_the_dtype_of_the_rows_and_no_gradient():
    x, y = draw(4, (1, 3, 2), (1, 4, 2))
    assert pairwise.pairwise_distances(x.requires_grad_(), y).dtype == torch.float64
    assert not pairwise.pairwise_distances(x, y).requires_grad
    assert pairwise.pairwise_distances(x.detach().float(), y.float()).dtype == torch.float32


def test_memory_is_the_same_while_it_is_large_enough():
    memory, like = pairwise.Memory(), torch.empty(0)
    large = memory.matrix((2, 3, 4), like)
    small = memory.matrix((1, 5), like)
    assert large.shape == (2, 3, 4)
    assert small.shape == (1, 5)
    assert small.data_ptr() == large.data_ptr()
    assert memory.matrix((1, 5), like.double()).dtype == torch.float64


def test_copies_of_a_loss_begin_without_kept_memory():
    loss, (x, y) = DriftingLoss(), draw(5, (2, 60, 12), (2, 70, 12), dtype=torch.float32)
    expected = loss(x, y).loss
    assert loss.settings["memory"].kept
    stored = pickle.dumps(loss)
    assert len(stored) < 5000
    for copied in (pickle.loads(stored), copy.deepcopy(loss)):
        assert copied.settings["memory"].kept == {}
        assert torch.equal(copied(x, y).loss, expected)


@pytest.mark.parametrize("dimension", [3, 12])
def test_kept_memory_changes_no_result_whatever_the_order_of_shapes(dimension):
    memory = pairwise.Memory()
    shapes = [(2, 6, 5), (1, 3, 2), (3, 7, 9), (1, 1, 1), (2, 6, 5)]
    for seed, (groups, rows, columns) in enumerate(shapes):
        dtype = torch.float32 if seed == 1 else torch.float64
        x, y = draw(seed, (groups, rows, dimension), (groups, columns, dimension), dtype=dtype)
        fresh = drifting_loss(x, y, statistics=True)
        kept = drifting_loss(x, y, statistics=True, memory=memory)
        torch.testing.assert_close(kept.loss, fresh.loss, rtol=0, atol=0)
        torch.testing.assert_close(kept.statistics, fresh.statistics, rtol=0, atol=0)
        torch.testing.assert_close(kept.drift_norms, fresh.drift_norms, rtol=0, atol=0)
        assert kept.scale == fresh.scale


def test_mask_hides_the_leading_diagonal_alone():
    distances = torch.zeros(2, 3, 5)
    pairwise.mask_self(distances, 3)
    assert distances.isinf().sum() == 6
    assert distances.diagonal(dim1=1, dim2=2).isinf().all()
    pairwise.mask_self(unmasked := torch.zeros(2, 3, 5), 0)
    assert not unmasked.any()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_potentials_are_half_the_negative_log_sums_of_the_kernel(temperature):
    x, y = draw(5, (2, 4, 3), (2, 5, 3))
    distances = pairwise.pairwise_distances(x, y)
    pairwise.mask_self(distances, 3)
    scale = pairwise.kernel_scale(torch.tensor([temperature], dtype=torch.float64))[0]
    logits = -distances / temperature
    row = pairwise.row_potential(distances, distances.amin(2, keepdim=True), scale)
    column = pairwise.column_potential(distances, distances.amin(1, keepdim=True), scale)
    torch.testing.assert_close(row, -logits.logsumexp(2, keepdim=True) / 2)
    torch.testing.assert_close(column, -logits.logsumexp(1, keepdim=True) / 2)


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.04])
@pytest.mark.parametrize("num_self", [0, 4])
def test_affinity_is_the_root_of_both_softmaxes_bounded_by_the_floor(floor, num_self):
    x, y = draw(6, (1, 4, 3), (1, 6, 3))
    distances = pairwise.pairwise_distances(x, y)
    pairwise.mask_self(distances, num_self)
    ((index, groups, rows, tile),) = pairwise.affinity_tiles(distances, torch.tensor([0.4], dtype=torch.float64), floor)
    expected = oracle.affinities(oracle.pairwise(x[0].tolist(), y[0].tolist()), 0.4, num_self=num_self, floor=floor)
    assert (index, groups, rows) == (0, slice(0, 1), slice(0, 4))
    torch.testing.assert_close(tile[0], torch.tensor(expected, dtype=torch.float64))


def test_a_column_masked_for_every_row_has_no_affinity():
    distances = torch.tensor([[[torch.inf, 1.0]]])
    ((_, _, _, tile),) = pairwise.affinity_tiles(distances, torch.tensor([0.5]), 0.0)
    assert tile.tolist() == [[[0.0, 1.0]]]


def test_kernel_scale_is_finite_for_any_positive_temperature():
    temperatures = torch.tensor([1e-45, 1e-8, 0.5, 1e8])
    scale = pairwise.kernel_scale(temperatures)
    assert scale.isfinite().all()
    torch.testing.assert_close(scale[1:], torch.tensor([-1e8, -2.0, -1e-8]))


def _is_rounded():
    """Return whether products of float32 on a GPU are rounded to TF32. Releases before 2.9 have no setting of their own."""
    products = torch.backends.cuda.matmul
    return products.fp32_precision != "ieee" if hasattr(products, "fp32_precision") else products.allow_tf32


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_exact_whatever_was_switched_on_for_all_of_torch(monkeypatch, precision):
    """A tensor without data stands for one on a GPU, where products of float32 may be rounded to TF32."""
    seen, product = [], torch.baddbmm

    def watching(*matrices, **options):
        seen.append((matrices[0].dtype, _is_rounded()))
        return product(*matrices, **options)

    monkeypatch.setattr(torch, "baddbmm", watching)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert _is_rounded()
        distances = inspect.unwrap(pairwise.pairwise_distances)  # without autocast, which knows no such device
        distances(torch.empty(1, 4, 12, device="meta"), torch.empty(1, 5, 12, device="meta"))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [(torch.float32, False)]
