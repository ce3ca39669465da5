"""The difference of the scores of two kernel densities: that of the data, and that of the other generated samples.

Equation, with y+ positives and y- negatives, sums over each set, and tau the temperature:

    V(x) = tau^2 ( grad_x log sum_j k(|x - y+_j| / tau)  -  grad_x log sum_j k(|x - y-_j| / tau) )

For the Gaussian kernel this is the difference of two centroids, sum_j k y+_j / sum_j k - sum_j k y-_j / sum_j k: the mean shift
with each set normalized on its own. The field of the paper has one joint normalization, and the mass S+ S- as a factor.

Fixed points: zero where both densities agree. In expectation a difference of order 1/m remains between sets of different sizes m.
Antisymmetric. It is the negative gradient of the first variation of the Kullback-Leibler divergence between the smoothed densities.

Cost: one exponential per pair and temperature, two products with the coordinates.

Source: the score view of drifting, arXiv:2603.07514 and 2603.09936; Cheng, Mean shift, mode seeking, and clustering, 1995.
"""

from dataclasses import dataclass
from typing import ClassVar

from drifting.fields.attraction import KernelField


@dataclass(frozen=True)
class KernelGradient(KernelField):
    """The difference of the scores of two kernel densities.

    Attributes:
        kernel: Kernel of the densities: laplace, gaussian, matern32 or matern52.
    """

    by_kernel: ClassVar[bool] = True
