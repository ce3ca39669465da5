"""The gradient of the maximum mean discrepancy (MMD) with a kernel.

Equation, with y+ positives and y- negatives, means over each set, and tau the temperature:

    V(x) = tau^2 grad_x ( mean_j k(|x - y+_j| / tau)  -  mean_j k(|x - y-_j| / tau) )

For the Gaussian kernel this is mean_j k (y+_j - x) - mean_j k (y-_j - x). A sample far from all others does not move, because
nothing normalizes the kernel: a wide temperature is needed to find far modes.

Fixed points: zero in expectation where both distributions are equal; zero everywhere only there, since the kernels tell all
distributions apart. Zero at the samples alone is weaker. Antisymmetric.

Cost: one exponential per pair and temperature, two products with the coordinates.

Source: Gretton et al., A kernel two-sample test, 2012; Arbel et al., Maximum mean discrepancy gradient flow, 2019.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from drifting._checks import check_choice
from drifting.fields.attraction import AttractionField
from drifting.fields.base import Statistics
from drifting.fields.kernels import KERNELS, Kernel


@dataclass(frozen=True)
class MaximumMeanDiscrepancy(AttractionField):
    """The gradient of the maximum mean discrepancy.

    Attributes:
        kernel: Kernel: laplace, gaussian, matern32 or matern52.
    """

    kernel: str = "gaussian"
    by_kernel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        check_choice("kernel", self.kernel, KERNELS)

    @property
    def profile(self) -> Kernel:
        """The kernel."""
        return KERNELS[self.kernel]

    def statistics(self, generated: Tensor, positives: Tensor, negatives: Tensor, **options: Any) -> Statistics:
        """Return how the kernel spreads, see `AttractionField.kernel_statistics`."""
        return self.kernel_statistics(generated, positives, negatives, **options)
