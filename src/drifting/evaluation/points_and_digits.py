"""Points in the plane and digits of 8 x 8 pixels, which are few and small enough to compare all of them at once.

Points are measured by their distance from the data, the remaining drift and the share of every mode; digits by classifiers, their
distance from the data and their nearest training digits. `Metrics` are the figures of any evaluation.

Shapes: s samples, r real samples, d pixels, k modes.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.data.images import LabeledSplit
from drifting.metrics.distances import energy_distance, energy_distances
from drifting.metrics.memorization import nearest

# (count, seed) -> samples
Sampler = Callable[[int, int], Tensor]
# The extractor and the reference are names; all others are figures.
Metrics = dict[str, int | float | Sequence[float] | Sequence[int] | str]

SEEDS = 5
DRIFT_BATCHES = 25


def as_text(value: int | float | Sequence[float] | Sequence[int] | str) -> str:
    """Return a figure as text: a count as it is, a number with five digits, several numbers with four digits each."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value) if isinstance(value, str | int) else " ".join(f"{part:.4g}" for part in value)


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
    """Compare generated points with real ones: squared energy distance, remaining drift, and the share of every mode.

    Args:
        sampler: draws from the generator.
        real: draws real points; one half of a draw of twice the count is the reference, the other half makes the floor.
        count: number of points on each side.
        drift: (generated, positives) -> the raw drift of training.
        batch: number of points on each side of the drift, as in a training step, because its noise depends on it.
        endless: whether two draws of real points never share a point; in a finite set, only the halves of one draw never do.
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
    modes_of = torch.cdist(samples, modes, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return torch.bincount(modes_of, minlength=len(modes)) * len(modes) / len(samples)


def evaluate_digits(sampler: Sampler, split: LabeledSplit) -> Metrics:
    """Compare generated digits, with classes in turn, with real ones: their labels, their distribution, and whether they are new.

    Returns:
        `nearest_neighbor_accuracy` and `logistic_accuracy`: share of samples that classifiers fit on the training digits name as
        their label (the floors: the same for held-out digits). `energy_distance` to the held-out digits (floor: of the training
        digits). `nearest_distance`: median distance to the nearest training digit (floor: of held-out digits).
    """
    train, held_out = split.train.flatten(1), split.held_out.flatten(1)
    samples = sampler(len(train), 0).flatten(1)
    labels = torch.arange(len(samples)) % 10
    metrics: Metrics = {"num_samples": len(samples)}
    for name, classifier in _classifiers().items():
        classifier.fit(train, split.train_labels)
        metrics[f"{name}_accuracy"] = float(classifier.score(samples, labels))
        metrics[f"{name}_accuracy_floor"] = float(classifier.score(held_out, split.held_out_labels))
    metrics["energy_distance"] = energy_distance(samples, held_out)
    metrics["energy_distance_floor"] = energy_distance(train, held_out)
    metrics["nearest_distance"] = _nearest(samples, train)
    metrics["nearest_distance_floor"] = _nearest(held_out, train)
    return metrics


def _classifiers() -> dict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    return {"nearest_neighbor": KNeighborsClassifier(1), "logistic": LogisticRegression(max_iter=2000)}


def _nearest(samples: Float[Tensor, "s d"], real: Float[Tensor, "r d"]) -> float:
    return float(nearest(samples, real)[0].median())
