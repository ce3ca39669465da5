"""Matrix products of the compiled loops, against float64."""

import os
import subprocess
import sys

import numpy as np
import pytest

numba = pytest.importorskip("numba")
products = pytest.importorskip("drifting.fields.loops.products")

# Fewer and more rows than a tile has, and numbers that leave a remainder.
ROWS = (1, products.ROWS - 1, products.ROWS, 2 * products.ROWS + 1)
# One vector of columns, a panel with one to three vectors behind it, two panels.
VECTORS = (1, products.VECTORS, products.VECTORS + 1, products.VECTORS + 2, products.VECTORS + 3, 2 * products.VECTORS)
TERMS = (16, products.DEPTH, products.DEPTH + 16, 2 * products.DEPTH + 48)


@numba.njit
def multiply(one, other, out, memory):
    products.multiply(one, other, out, memory)


@numba.njit
def multiply_packed(one, samples, packed, out):
    products.pack(samples, packed)
    products.multiply_packed(one, packed, out)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_is_product(out, one, other):
    exact = one.astype(np.float64) @ other.astype(np.float64)
    bound = np.abs(one).astype(np.float64) @ np.abs(other).astype(np.float64)
    assert (np.abs(out - exact) <= 1e-6 * bound).all()


def compute(one, other):
    out = np.full((len(one) + 1, other.shape[1]), np.nan, np.float32)
    multiply(one, other, out[:-1], np.full((products.DEPTH, products.PANEL), np.nan, np.float32))
    assert np.isnan(out[-1]).all(), "it wrote behind the last row"
    return out[:-1]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("rows", ROWS)
def test_products(rows, vectors, terms):
    one, other = numbers(0, rows, terms), numbers(1, terms, 16 * vectors)
    assert_is_product(compute(one, other), one, other)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("rows", ROWS)
def test_packed_products(rows, vectors, terms):
    one, samples = numbers(0, rows, terms), numbers(1, 16 * vectors, terms)
    panels = -(-vectors // products.VECTORS)
    packed = np.full(panels * products.PANEL * terms, np.nan, np.float32)
    out = np.full((rows, 16 * vectors), np.nan, np.float32)
    multiply_packed(one, samples, packed, out)
    assert_is_product(out, one, samples.T)


def test_packing_transposes():
    samples = np.arange(32 * 48, dtype=np.float32).reshape(32, 48)
    panels = -(-2 // products.VECTORS)
    packed = np.full(panels * products.PANEL * 48, np.nan, np.float32)
    multiply_packed(samples[:1], samples, packed, np.empty((1, 32), np.float32))
    by_panels = packed.reshape(panels, 48, products.PANEL)
    for j in range(32):
        assert (by_panels[j // products.PANEL, :, j % products.PANEL] == samples[j]).all()


def test_rows_are_the_same_in_every_block():
    one, other = numbers(2, 13, 300), numbers(3, 300, 48)
    together = compute(one, other)
    for begin, end in ((0, 5), (5, 6), (6, 13)):
        assert (compute(np.ascontiguousarray(one[begin:end]), other) == together[begin:end]).all()


def test_registers_of_half_a_vector(tmp_path):
    command = "import tests.fields.test_products as t; assert t.products.VECTORS == 1; t.test_products(7, 3, 304)"
    command += "; t.test_packed_products(7, 3, 304); print('same')"
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr
