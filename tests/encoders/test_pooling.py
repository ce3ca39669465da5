import os
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting.encoders.pooling import KINDS, feature_name, fits, multi_scale, norm_x
from drifting.errors import InputError

REFERENCE = os.environ.get("DRIFTING_REFERENCE")


def _map(height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * width), dtype=torch.float64)


def oracle(kind: str, values: np.ndarray) -> np.ndarray:
    """Return the features of one map [c, h, w] by loops, in float64."""
    height, width = values.shape[1:]
    if kind == "all":
        return np.array([values[:, row, column] for row in range(height) for column in range(width)])
    side = int(kind[-1]) if kind[-1].isdigit() else None
    high, wide = side or height, side or width
    rows = []
    for top in range(0, height, high):
        for left in range(0, width, wide):
            places = [values[:, top + i, left + j] for i in range(high) for j in range(wide)]
            mean = sum(places) / len(places)
            variance = sum((place - mean) ** 2 for place in places) / len(places)
            rows.append(mean if kind.startswith("mean") else np.sqrt(variance + 1e-6))
    return np.array(rows)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (6, 6), (7, 5), (1, 1)])
def test_every_kind_is_that_of_the_loops(size):
    map = _map(*size)
    features = multi_scale("m", map)
    assert list(features) == [feature_name("m", kind) for kind in KINDS if fits(kind, *size)]
    for kind in KINDS:
        if fits(kind, *size):
            expected = np.stack([oracle(kind, sample.numpy()) for sample in map])
            np.testing.assert_allclose(features[feature_name("m", kind)].numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [2, 5])
def test_projection_comes_before_the_pooling(length):
    # Windows of 4 places have fewer than the 6 channels, those of 16 and 64 more.
    rng = torch.Generator().manual_seed(0)
    map, projection = (torch.randn(size, generator=rng, dtype=torch.float64) for size in ((2, 6, 8, 8), (length, 6)))
    expected = multi_scale("m", torch.einsum("dc,bchw->bdhw", projection, map))
    found = multi_scale("m", map, projection=projection)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_gradient_through_the_covariance_is_that_of_the_places():
    map, projection = _map().requires_grad_(), _map(2, 2).flatten(2)[0].T.contiguous()
    assert torch.autograd.gradcheck(lambda map: tuple(multi_scale("m", map, ("std", "std_4"), projection).values()), map)


def test_windows_that_do_not_divide_the_map_are_left_out():
    assert list(multi_scale("m", _map(7, 7))) == ["m", "m_mean", "m_std"]
    assert list(multi_scale("m", _map(6, 6))) == ["m", "m_mean", "m_std", "m_mean_2", "m_std_2"]
    assert list(multi_scale("m", _map(2, 8), kinds=("std_4", "mean_2"))) == ["m_mean_2"]


def test_only_the_kinds_asked_for_are_given():
    assert list(multi_scale("m", _map(), kinds=("std", "all"))) == ["m_std", "m"]


def test_small_spread_about_a_large_mean_keeps_its_digits():
    small = _map() * 0.01
    std = multi_scale("m", (small + 1000).float(), kinds=("std_2",))["m_std_2"]
    expected = multi_scale("m", (small + 1000).float().double(), kinds=("std_2",))["m_std_2"]
    torch.testing.assert_close(std.double(), expected, rtol=1e-3, atol=0)


def test_constant_map_has_finite_gradient():
    map = torch.ones(1, 2, 4, 4, requires_grad=True)
    sum(value.sum() for value in multi_scale("m", map).values()).backward()
    assert bool(map.grad.isfinite().all())
    assert torch.equal(multi_scale("m", map)["m_std"], torch.full((1, 1, 2), 1e-3))


def test_half_precision_is_pooled_in_float32():
    features = multi_scale("m", _map().bfloat16())
    assert {value.dtype for value in features.values()} == {torch.float32}


def test_norm_x_is_the_root_mean_square_of_each_channel():
    map = _map(4, 5)
    expected = np.sqrt((map.numpy() ** 2).mean((2, 3)) + 1e-6)
    np.testing.assert_allclose(norm_x(map)[:, 0].numpy(), expected, rtol=1e-12)
    assert norm_x(map).shape == (2, 1, 3)


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'mean_2'"):
        multi_scale("m", _map(), kinds=("mean2",))


@pytest.mark.skipif(REFERENCE is None, reason="DRIFTING_REFERENCE names no folder with outputs of the release")
@pytest.mark.parametrize("case", ["mae_latent", "mae_pixel"])
def test_release_pools_the_same(case):
    with np.load(Path(REFERENCE) / case / "expected.npz") as arrays:
        released = {name[4:]: torch.tensor(arrays[name]) for name in arrays if name.startswith("act_")}
    maps = [name for name in released if f"{name}_mean" in released]
    assert len(maps) >= 5
    for name in maps:
        side = int(released[name].shape[1] ** 0.5)
        features = multi_scale(name, released[name].transpose(1, 2).unflatten(2, (side, side)))
        possible = {feature_name(name, kind) for kind in KINDS}
        assert set(features) == possible & set(released)
        for key, value in features.items():
            torch.testing.assert_close(value, released[key], rtol=1e-5, atol=1e-5)
