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
from typing import ClassVar

from drifting.fields.attraction import KernelField


@dataclass(frozen=True)
class MaximumMeanDiscrepancy(KernelField):
    """The gradient of the maximum mean discrepancy.

    Attributes:
        kernel: Kernel: laplace, gaussian, matern32 or matern52.
    """

    by_kernel: ClassVar[bool] = False
