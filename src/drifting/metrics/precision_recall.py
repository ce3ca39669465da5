"""Precision, recall, density and coverage: how many samples look real, and how much of the real data they cover.

B_k(x) is the closed ball around x up to its k-th nearest neighbor in its own set, not counting x:

    precision = share of generated samples inside any B_3(real)      density  = mean number of B_5(real) around a generated one / 5
    recall    = share of real samples inside any B_3(generated)      coverage = share of B_5(real) with a generated sample inside

Equal distributions have an expected density of 1 and coverage of 1 - 2^-5 = 0.97. Precision and recall have no such constant, so
compare all four with those of held-out real data. All depend on the counts, so compare only figures of the same counts.

All pairs are compared in float64, and rounding does not decide ties: a sample on the border of a ball is inside, and a copy is on
the border if its original is. See `distances`.

Source: Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models" (2019), k = 3; Naeem et al.,
"Reliable fidelity and diversity metrics for generative models" (2020), section 3, k = 5. The release of the latter excludes points
on the border of a ball. Here they are included, as in the release of the former; this only matters for repeated points.

Shapes: n generated, m real, d features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError
from drifting.metrics.distances import ROUNDING, Pairs, squared_radii


class PrecisionRecall(NamedTuple):
    """Four figures in [0, 1], except that density can exceed 1; higher is better."""

    precision: float
    recall: float
    density: float
    coverage: float


@torch.no_grad()
def precision_recall(
    generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"], *, neighbors: int = 3, density_neighbors: int = 5
) -> PrecisionRecall:
    """Return precision, recall, density and coverage of generated features compared with real ones.

    Args:
        generated: features of samples.
        real: features of real data from the same encoder, preferably as many.
        neighbors: k of precision and recall.
        density_neighbors: k of density and coverage.

    Raises:
        InputError: if a set has no k-th neighbor, the feature sizes differ or a value is not finite.
    """
    check_features(generated=generated, real=real)
    if min(neighbors, density_neighbors) < 1:
        raise InputError(f"neighbors are {neighbors} and density_neighbors {density_neighbors}: both must be at least 1")
    most = max(neighbors, density_neighbors)
    for name, count, least in (("real", len(real), most), ("generated", len(generated), neighbors)):
        if count <= least:
            raise InputError(f"{name} has {count} samples, which have no neighbor number {least}: pass at least {least + 1}")
    narrow, wide = (radii[:, None] * (1 + ROUNDING) for radii in squared_radii(real, (neighbors, density_neighbors)))
    own = squared_radii(generated, (neighbors,))[0] * (1 + ROUNDING)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    inside, recalled, covered = 0, 0, 0
    pairs = Pairs(real, generated)
    for rows, squared, error in pairs.chunks():
        borders = (narrow[rows], wide[rows], own)
        unsure = torch.zeros_like(squared, dtype=torch.bool)
        for border in borders:
            unsure |= (squared - border).abs_() <= error
        pairs.measure_(squared, rows, unsure)
        near, within, recalling = (squared <= border for border in borders)
        precise |= near.any(0)
        recalled += int(recalling.any(1).sum())
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return PrecisionRecall(
        precision=float(precise.double().mean()),
        recall=recalled / len(real),
        density=inside / (density_neighbors * len(generated)),
        coverage=covered / len(real),
    )


def check_features(**features: Tensor) -> None:
    """Raise InputError unless all sets are [n, d] with the same d, not empty, floating and finite; errors use the names."""
    shapes = " and ".join(f"{name} {tuple(value.shape)}" for name, value in features.items())
    if any(value.ndim != 2 or value.numel() == 0 for value in features.values()):
        raise InputError(f"features have the shapes {shapes}: pass [n, d] with at least one of each, images flattened")
    if len({value.shape[1] for value in features.values()}) > 1:
        raise InputError(f"features have the shapes {shapes}: compute all with the same encoder, so that d agrees")
    for name, value in features.items():
        if not value.is_floating_point():
            raise InputError(f"{name} is {value.dtype}: pass floating point features")
        if not value.isfinite().all():
            bad = int((~value.isfinite()).any(1).sum())
            raise InputError(
                f"{name} has {bad} rows of {len(value)} with a value that is not finite: leave them out, or fix the encoder"
            )
