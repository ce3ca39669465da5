"""Noise of the samples of a step that covers its space evenly: the points of a scrambled Sobol' sequence.

Sobol' points cover the space of the noise evenly: of n = 2^m of them, each half, quarter or other binary box of volume 1/n of
the unit cube has one, as far as the sequence allows. Hence the samples of a group represent the generator better than
independent ones, whose clusters and gaps are mostly chance. A point has fewer close neighbors than among independent ones, so a
sample is pushed by others that are farther away, and samples spread farther. Every point alone is standard normal, and every
step has new ones:

    y_i = L x_i + s  (mod 2),    u_i = sum_k y_ik 2^-k + 2^-m r_i,    z_i = the normal quantile of u_i

with x_i the first m binary digits of a coordinate of the sequence, L a random lower triangular matrix with ones on its diagonal and
s a random vector, both new for each coordinate and set, and r_i uniform in [0, 1).

Shapes: l sets, n points of each, d coordinates, m binary digits.

Source: Sobol' (1967); the scrambling by matrices is that of Matousek, "On the L2-discrepancy for anchored boxes" (1998). Their use
as the noise of a drift field is ours.
"""

import functools
from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError

NOISES = ("independent", "sobol")
# Smallest distance of a uniform number to 0 and 1 in float32, where the quantile is 5.3.
_EDGE = 2.0**-24


def sobol_noise(sets: int, count: int, shape: Sequence[int], rng: torch.Generator) -> Float[Tensor, "l n *noise"]:
    """Return standard normal noise on the device of rng. Each set covers the space evenly and is independent of the others.

    Args:
        sets: number of sets.
        count: number of points of each; a power of 2 covers the space best.
        shape: shape of the noise of one sample.
        rng: random stream.

    Raises:
        InputError: if the noise has more coordinates than there are Sobol' sequences.
    """
    dims, device = prod(shape), rng.device
    digits = _digits(count, dims, device)
    size = digits.shape[2]
    above = torch.randint(2, (sets, dims, size, size), generator=rng, device=device, dtype=digits.dtype)
    matrix = above.tril(-1) + torch.eye(size, device=device)
    shift = torch.randint(2, (sets, dims, 1, size), generator=rng, device=device, dtype=digits.dtype)
    scrambled = (digits.transpose(0, 1) @ matrix.mT + shift) % 2
    values = 0.5 ** torch.arange(1, size + 1, device=device)
    inside = torch.rand((sets, count, dims), generator=rng, device=device) * 0.5**size
    uniform = (scrambled @ values).transpose(1, 2) + inside
    return (torch.erfinv(2 * uniform.clamp(_EDGE, 1 - _EDGE) - 1) * 2**0.5).unflatten(2, tuple(shape))


@functools.lru_cache(maxsize=8)
def _digits(count: int, dims: int, device: torch.device) -> Float[Tensor, "n d m"]:
    """Return the first binary digits of Sobol' points, as many as tell `count` points apart in every coordinate."""
    most = torch.quasirandom.SobolEngine.MAXDIM
    if dims > most:
        raise InputError(f"noise is 'sobol', but has {dims} coordinates, of at most {most}: pass independent")
    size = max(1, (count - 1).bit_length())
    whole = (torch.quasirandom.SobolEngine(dims).draw(count, dtype=torch.float64) * 2**size).long()
    return (whole[:, :, None] >> torch.arange(size - 1, -1, -1) & 1).float().to(device)
