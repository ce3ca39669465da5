import math

import pytest
import torch

from drifting.data.points import TOYS, toy
from drifting.errors import InputError

COUNT = 8000


def _draw(name: str, count: int = COUNT, seed: int = 0) -> torch.Tensor:
    return toy(name).draw(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TOYS)
def test_points_are_finite_and_within_the_promised_square(name):
    points = _draw(name)
    assert points.shape == (COUNT, 2)
    assert points.dtype == torch.float32
    assert bool(points.isfinite().all())
    assert float(points.abs().max()) < 1.6


@pytest.mark.parametrize("name", TOYS)
def test_points_fill_a_fair_part_of_the_square(name):
    points = _draw(name)
    assert float(points.mean(0).abs().max()) < 0.15
    assert bool((points.std(0) > 0.3).all())
    assert bool((points.std(0) < 0.8).all())


@pytest.mark.parametrize("name", TOYS)
def test_points_are_a_function_of_the_stream_alone(name):
    first = _draw(name, 50)
    torch.manual_seed(1)
    assert torch.equal(_draw(name, 50), first)
    assert not torch.equal(_draw(name, 50, seed=1), first)


@pytest.mark.parametrize("name", TOYS)
def test_a_stream_goes_on_to_new_points(name):
    rng = torch.Generator().manual_seed(0)
    first, second = toy(name).draw(50, rng), toy(name).draw(50, rng)
    assert not torch.isin(first, second).any()


@pytest.mark.parametrize("name", TOYS)
def test_one_point_can_be_drawn(name):
    assert _draw(name, 1).shape == (1, 2)


@pytest.mark.parametrize("name", [name for name, one in TOYS.items() if one.modes is not None])
def test_modes_are_equally_likely(name):
    modes = toy(name).modes
    counts = torch.bincount(torch.cdist(_draw(name), modes).argmin(1), minlength=len(modes))
    expected = COUNT / len(modes)
    assert float(((counts - expected) ** 2 / expected).sum()) < 30


@pytest.mark.parametrize(("name", "number"), [("checker", 8), ("eight_gaussians", 8), ("gaussian_grid", 25)])
def test_modes_are_where_the_points_are(name, number):
    modes = toy(name).modes
    points = _draw(name)
    nearest = torch.cdist(points, modes).argmin(1)
    means = torch.stack([points[nearest == index].mean(0) for index in range(len(modes))])
    assert len(modes) == number
    torch.testing.assert_close(means, modes, rtol=0, atol=0.03)


def test_circles_have_their_two_radii():
    radius = _draw("circles").norm(dim=1)
    outer = radius > 0.75
    assert float(outer.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(radius[outer].mean()) == pytest.approx(1, abs=0.01)
    assert float(radius[~outer].mean()) == pytest.approx(0.5, abs=0.01)


def test_spirals_are_two_arms_turned_by_half_a_turn():
    points = _draw("spirals")
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    phase = torch.remainder(angle - 3 * math.pi * radius, 2 * math.pi)
    far = radius > 0.3
    to_first = torch.minimum(phase, 2 * math.pi - phase)[far]
    to_second = (phase - math.pi).abs()[far]
    assert float(torch.minimum(to_first, to_second).quantile(0.99)) < 0.5
    assert float((to_first < to_second).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_pinwheel_has_five_equal_arms():
    points = _draw("pinwheel")
    turned = torch.tensor(
        [[math.cos(2 * math.pi / 5), -math.sin(2 * math.pi / 5)], [math.sin(2 * math.pi / 5), math.cos(2 * math.pi / 5)]]
    )
    moments = [points.mul(points.norm(dim=1, keepdim=True) ** power).mean(0).norm() for power in (0, 1)]
    assert float(max(moments)) < 0.03
    covariance, rotated = points.T.cov(), (points @ turned.T).T.cov()
    torch.testing.assert_close(covariance, rotated, rtol=0, atol=0.02)


@pytest.mark.parametrize(("typed", "meant"), [("moon", "moons"), ("swissroll", "swiss_roll"), ("8gaussians", "eight_gaussians")])
def test_nearest_name_is_offered(typed, meant):
    with pytest.raises(InputError, match=rf"dataset is '{typed}': did you mean '{meant}'\?"):
        toy(typed)
