"""Points in the plane: how far they are from the data, how much drift is left, and whether every mode has its share.

Shapes: s samples, k modes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.evaluation.base import Metrics, Sampler
from drifting.metrics.distances import energy_distances

SEEDS = 5
DRIFT_BATCHES = 25


def evaluate_points(
    sampler: Sampler,
    real: Sampler,
    *,
    count: int,
    drift: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    endless: bool = True,
    modes: Float[Tensor, "k 2"] | None = None,
) -> Metrics:
    """Compare points of a generator with real ones: squared energy distance, the drift that is left, the share of every mode.

    Args:
        sampler: draws from the generator.
        real: draws real points; of one draw of twice the count, one half is compared with, the other gives the floor.
        count: points on each side.
        drift: (generated, positives) -> the raw drift of training.
        batch: points on each side of the drift, on which its noise depends: those of a training step.
        endless: whether no two draws of real points share a point; of a finite set only the two halves of one draw do not.
        modes: centers of equally likely parts of the distribution.

    Returns:
        `energy_distance` and its floor (medians over all pairs of 5 draws on each side: one pair alone is off by a factor of two
        either way); `drift_norm`, the mean square of the drift, and `drift_length`, its mean Euclidean length, with their floors
        (means over 25 batches); `mode_shares`, each relative to its true share.
    """
    references, others = zip(*(real(2 * count, seed).split(count) for seed in range(SEEDS)), strict=True)
    samples = [sampler(count, seed) for seed in range(SEEDS)]
    distances, floors = energy_distances([*samples, *others], references).split(SEEDS)
    metrics: Metrics = {
        "num_samples": count,
        "energy_distance": distances.quantile(0.5).item(),
        "energy_distance_floor": (floors if endless else floors.diagonal()).quantile(0.5).item(),
    }
    metrics |= _remaining_drift(sampler, real, drift, batch)
    if modes is not None:
        metrics["mode_shares"] = mode_shares(samples[0], modes).tolist()
    return metrics


def _remaining_drift(sampler: Sampler, real: Sampler, drift: Callable[[Tensor, Tensor], Tensor], batch: int) -> Metrics:
    figures = []
    for seed in range(DRIFT_BATCHES):
        positives, fresh = real(2 * batch, seed).split(batch)
        for generated in (sampler(batch, seed), fresh):
            vectors = drift(generated, positives)
            figures.append(torch.stack([vectors.square().mean(), vectors.norm(dim=1).mean()]))
    (norm, length), (norm_floor, length_floor) = torch.stack(figures).unflatten(0, (-1, 2)).mean(0).tolist()
    return {"drift_norm": norm, "drift_norm_floor": norm_floor, "drift_length": length, "drift_length_floor": length_floor}


def mode_shares(samples: Float[Tensor, "s 2"], modes: Float[Tensor, "k 2"]) -> Float[Tensor, " k"]:
    """Return the share of samples nearest to each mode, relative to an equal share: 1 is right, 0 a missing mode."""
    nearest = torch.cdist(samples, modes, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return torch.bincount(nearest, minlength=len(modes)) * len(modes) / len(samples)
