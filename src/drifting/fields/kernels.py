"""The kernels of the drift fields: functions of u = distance / temperature that are 1 at u = 0 and fall to 0.

    laplace    k = exp(-u)                                        the paper's
    gaussian   k = exp(-u^2 / 2)
    matern32   k = (1 + v) exp(-v),            v = sqrt(3) u      once differentiable
    matern52   k = (1 + v + v^2 / 3) exp(-v),  v = sqrt(5) u      twice differentiable

Laplace is the Matern kernel of order 1/2, and Gaussian its limit of infinite order. All of them tell any two distributions apart.
The gradient of a kernel in x, times the square of the temperature, has the unit of a length and points to y:

    temperature^2 grad_x k(|x - y| / temperature) = k(u) pull(u) (y - x),    pull(u) = -k'(u) / (u k(u))

Source: paper, section 3.3, for Laplace; Rasmussen and Williams, Gaussian Processes for Machine Learning, section 4.2, for Matern.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Temperatures at which u is larger are too small for float32, which could not hold the square.
FARTHEST = 1e18
# The pull of the Laplace kernel is infinite at u = 0, where it has no gradient.
_NEAREST = 1e-25


class Kernel(NamedTuple):
    """A kernel as two functions of u = distance / temperature; both may overwrite u.

    Attributes:
        log: the logarithm of the kernel.
        pull: the factor of (y - x) k(u) in the gradient.
    """

    log: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]


def _log_matern32(u: Tensor) -> Tensor:
    v = u.mul_(math.sqrt(3))
    return torch.log1p(v).sub_(v)


def _log_matern52(u: Tensor) -> Tensor:
    v = u.mul_(math.sqrt(5))
    return v.square().div_(3).add_(v).log1p_().sub_(v)


def _pull_matern52(u: Tensor) -> Tensor:
    v = u.mul_(math.sqrt(5))
    return (v + 1).mul_(5 / 3).div_(v.square().div_(3).add_(v).add_(1))


KERNELS = {
    "laplace": Kernel(log=torch.neg, pull=lambda u: u.clamp_(min=_NEAREST).reciprocal_()),
    "gaussian": Kernel(log=lambda u: u.square_().mul_(-0.5), pull=torch.ones_like),
    "matern32": Kernel(log=_log_matern32, pull=lambda u: u.mul_(math.sqrt(3)).add_(1).reciprocal_().mul_(3)),
    "matern52": Kernel(log=_log_matern52, pull=_pull_matern52),
}


def log_kernel(
    distances: Float[Tensor, "*shape"], scale: Tensor, kernel: str, out: Tensor | None = None
) -> Float[Tensor, "*shape"]:
    """Return the logarithm of a kernel, finite for any distances. `scale` is that of `pairwise.kernel_scale`."""
    return KERNELS[kernel].log(torch.mul(distances, -scale, out=out).clamp_(max=FARTHEST))
