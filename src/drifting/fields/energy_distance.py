"""The gradient of the energy distance: unit vectors toward data minus unit vectors toward the other generated samples.

Equation, with y+ positives and y- negatives, means over each set, and tau the temperature:

    V(x) = tau ( mean_j (y+_j - x) / |y+_j - x|  -  mean_j (y-_j - x) / |y-_j - x| )

It is tau times the negative gradient of the witness mean |x - y+| - mean |x - y-| of the energy distance 2 E|X - Y| - E|X - X'| -
E|Y - Y'|. There is no bandwidth: the temperature is the length of a step, so temperatures other than the first repeat its
direction. It is the limit of `MaximumMeanDiscrepancy` with the Laplace kernel at a large temperature, and far samples pull as
strongly as near ones.

Fixed points: zero in expectation where both distributions are equal; zero everywhere only there. Antisymmetric.

Cost: one division per pair and temperature, two products with the coordinates.

Source: Szekely and Rizzo, Energy statistics, 2013.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from drifting.fields.attraction import AttractionField
from drifting.fields.kernels import KERNELS, Kernel

# Only the pull of the Laplace kernel is left where the kernel itself is flat.
_DISTANCE = Kernel(log=torch.zeros_like, pull=KERNELS["laplace"].pull)


@dataclass(frozen=True)
class EnergyDistance(AttractionField):
    """The gradient of the energy distance."""

    by_kernel: ClassVar[bool] = False

    @property
    def profile(self) -> Kernel:
        """A constant with the pull 1 / u."""
        return _DISTANCE
