"""Seven distributions in the plane, sampled anew at every step: the smallest data that show a drift field at work.

All lie within about [-1.5, 1.5]^2. `swiss_roll` and `checker` are those of the authors' notebook. `modes` are the equally likely
parts, whose shares a good generator must match.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import nearest_name
from drifting.data.points import PlaneData
from drifting.data.sources import StreamSource
from drifting.errors import InputError

Points = Float[Tensor, "n 2"]


@dataclass(frozen=True)
class Toy:
    """One toy distribution.

    Attributes:
        draw: (count, rng) -> `count` new points on the device of rng.
        modes: centers of the equally likely parts, or None for a connected distribution.
    """

    draw: Callable[[int, torch.Generator], Points]
    modes: Float[Tensor, "k 2"] | None = None


def toy(name: str) -> Toy:
    """Return a toy distribution by name; raises InputError with the nearest name if there is none."""
    if name not in TOYS:
        raise InputError(f"dataset is '{name}': did you mean '{nearest_name(name, TOYS)}'? There are {', '.join(TOYS)}")
    return TOYS[name]


def _uniform(count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng, device=rng.device)


def _choice(count: int, options: int, rng: torch.Generator) -> Tensor:
    return torch.randint(options, (count,), generator=rng, device=rng.device)


def _with_noise(x: Tensor, y: Tensor, scale: float, rng: torch.Generator) -> Points:
    points = torch.stack([x, y], 1)
    return points + scale * torch.randn(points.shape, generator=rng, device=rng.device)


def _moons(count: int, rng: torch.Generator) -> Points:
    angle = math.pi * _uniform(count, rng)
    lower = _choice(count, 2, rng)
    x = torch.where(lower == 1, 1 - angle.cos(), angle.cos())
    y = torch.where(lower == 1, 0.5 - angle.sin(), angle.sin())
    return _with_noise((x - 0.5) / 1.25, (y - 0.25) / 1.25, 0.05, rng)


def _swiss_roll(count: int, rng: torch.Generator) -> Points:
    angle = math.pi / 2 + 4 * math.pi * _uniform(count, rng)
    return _with_noise(angle * angle.cos() / (4.5 * math.pi), angle * angle.sin() / (4.5 * math.pi), 0.03, rng)


def _checker(count: int, rng: torch.Generator) -> Points:
    corners = _CHECKER_CENTERS.to(rng.device)[_choice(count, len(_CHECKER_CENTERS), rng)] - 0.25
    x, y = corners.unbind(1)
    return _with_noise(x + 0.5 * _uniform(count, rng), y + 0.5 * _uniform(count, rng), 0.05, rng)


def _circles(count: int, rng: torch.Generator) -> Points:
    angle = 2 * math.pi * _uniform(count, rng)
    radius = torch.where(_choice(count, 2, rng) == 1, 1.0, 0.5)
    return _with_noise(radius * angle.cos(), radius * angle.sin(), 0.04, rng)


def _spirals(count: int, rng: torch.Generator) -> Points:
    turn = _uniform(count, rng).sqrt()
    angle = 3 * math.pi * turn + math.pi * _choice(count, 2, rng)
    return _with_noise(turn * angle.cos(), turn * angle.sin(), 0.02, rng)


def _eight_gaussians(count: int, rng: torch.Generator) -> Points:
    x, y = _EIGHT_CENTERS.to(rng.device)[_choice(count, len(_EIGHT_CENTERS), rng)].unbind(1)
    return _with_noise(x, y, 0.1, rng)


def _pinwheel(count: int, rng: torch.Generator) -> Points:
    radial, tangential = torch.randn(2, count, generator=rng, device=rng.device)
    x, y = 0.7 + 0.18 * radial, 0.06 * tangential
    angle = 2 * math.pi / 5 * _choice(count, 5, rng) + 1.4 * (x - 0.7) / 0.7
    return torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], 1)


_CHECKER_CENTERS = torch.tensor(
    [(-0.75 + 0.5 * column, -0.75 + 0.5 * row) for row in range(4) for column in range(4) if (row + column) % 2 == 0]
)
_EIGHT_CENTERS = torch.tensor([(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)])

TOYS = {
    "moons": Toy(_moons),
    "swiss_roll": Toy(_swiss_roll),
    "checker": Toy(_checker, _CHECKER_CENTERS),
    "circles": Toy(_circles),
    "spirals": Toy(_spirals),
    "eight_gaussians": Toy(_eight_gaussians, _EIGHT_CENTERS),
    "pinwheel": Toy(_pinwheel),
}


@dataclass(frozen=True, kw_only=True)
class ToyData(PlaneData):
    """A distribution in the plane, see `toy`."""

    dataset: str

    @property
    def title(self) -> str:
        """Name of the distribution."""
        return self.dataset

    @property
    def modes(self) -> Float[Tensor, "k 2"] | None:
        """Centers of equally likely parts."""
        return toy(self.dataset).modes

    def source(self, seed: int, bank: Any = None, **options: Any) -> StreamSource:
        """Return a source of new samples of the distribution."""
        del seed, bank, options
        return StreamSource(toy(self.dataset).draw, (2,))
