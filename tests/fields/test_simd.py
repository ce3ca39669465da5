"""Vectors of the compiled loops: every operation against numpy, entry by entry."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")
simd = pytest.importorskip("drifting.fields.loops.simd")


def apply(operation, *rows):
    """Return operation(*vectors) of one or two rows of 32 numbers."""
    function = operation if isinstance(operation, numba.extending._Intrinsic) else numba.njit(operation)

    @numba.njit
    def of_one(rows, out, j):
        simd.store(out, 0, j, function(simd.load(rows, 0, j)))

    @numba.njit
    def of_two(rows, out, j):
        simd.store(out, 0, j, function(simd.load(rows, 0, j), simd.load(rows, 1, j)))

    out = np.empty((1, 32), np.float32)
    for j in (0, simd.WIDTH):
        (of_one, of_two)[len(rows) - 1](np.array(rows, dtype=np.float32), out, j)
    return out[0]


def numbers(seed=0):
    return np.random.default_rng(seed).normal(size=32).astype(np.float32)


def test_padded_counts_are_whole_vectors():
    assert [simd.padded(count) for count in (0, 1, 16, 17, 144)] == [0, 16, 16, 32, 144]


def test_exponential_is_within_two_units_of_the_last_place():
    x = np.concatenate([np.linspace(-68.9, 0, 31), [-0.0]]).astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(apply(simd.exponential, x) - expected).max() <= 2 * np.spacing(np.float32(1))
    np.testing.assert_allclose(apply(simd.exponential, x), expected, rtol=3e-7)


def test_exponential_of_what_underflows_is_zero():
    x = np.array([-69.001, -87, -1e4, -1e30, -np.inf] + 27 * [-70], dtype=np.float32)
    assert (apply(simd.exponential, x) == 0).all()


@pytest.mark.parametrize("power", [1, 2, 3, 4, 7, 10, 32])
def test_whole_powers(power):
    x = np.linspace(0.1, 1, 32, dtype=np.float32)
    np.testing.assert_allclose(apply(lambda a: simd.whole_power(a, power), x), x.astype(np.float64) ** power, rtol=3e-6)


def test_operators_take_vectors_and_numbers():
    a, b, two = numbers(1), numbers(2), np.float32(2)
    assert (apply(lambda a, b: a * b, a, b) == a * b).all()
    assert (apply(lambda a, b: a - b, a, b) == a - b).all()
    assert (apply(lambda a, b: a + b, a, b) == a + b).all()
    assert (apply(lambda a: two - a, a) == two - a).all()
    assert (apply(lambda a: a * two, a) == a * two).all()


def test_larger_and_smaller():
    a, b = numbers(3), numbers(4)
    assert (apply(simd.larger, a, b) == np.maximum(a, b)).all()
    assert (apply(simd.smaller, a, b) == np.minimum(a, b)).all()
    assert (apply(simd.count_below, a, b) == (a < b)).all()


def test_larger_keeps_nan_of_its_first_argument_and_smaller_ignores_that_of_its_second():
    a, b = numbers(5), numbers(6)
    missing = a.copy()
    missing[3] = np.nan
    assert np.isnan(apply(simd.larger, missing, b)[3])
    assert apply(simd.smaller, b, missing)[3] == b[3]


def test_reductions():
    a = numbers(7)
    spread = apply(lambda a: simd.splat(simd.total(a)), a)
    np.testing.assert_allclose(spread[[0, 31]], [a[:16].sum(), a[16:].sum()], rtol=1e-6)
    assert (apply(lambda a: simd.splat(simd.lowest(a)), a)[[0, 31]] == [a[:16].min(), a[16:].min()]).all()
