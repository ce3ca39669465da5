"""How good the samples of a run are, each figure beside the same figure for real data: the floor.

Shapes: s samples, k modes.
"""

import statistics
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.data.images import LabelledSplit
from drifting.metrics.two_sample import energy_distance, mean_distance

# (count, seed) -> samples
Sampler = Callable[[int, int], Tensor]
Metrics = dict[str, float | list[float]]
SEEDS = 5
DRIFT_BATCHES = 25


def evaluate_points(
    sampler: Sampler,
    real: Sampler,
    *,
    count: int,
    drift: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    modes: Float[Tensor, "k 2"] | None = None,
) -> Metrics:
    """Compare points of a generator with real ones: squared energy distance, the drift that is left, the share of every mode.

    Args:
        sampler: draws from the generator.
        real: draws real points; of one draw of twice the count, one half is compared with, the other gives the floor.
        count: points on each side.
        drift: (generated, positives) -> the raw drift of training.
        batch: points on each side of the drift, on which its noise depends: those of a training step.
        modes: centres of equally likely parts of the distribution.

    Returns:
        `energy_distance` and its floor (medians over 5 seeds); `drift_norm`, the mean square of the drift, and `drift_length`, its
        mean Euclidean length, with their floors (means over 25 batches); `mode_shares`, each relative to its true share.
    """
    distances, floors = [], []
    for seed in range(SEEDS):
        reference, other = real(2 * count, seed).split(count)
        within = mean_distance(reference, reference)
        distances.append(energy_distance(sampler(count, seed), reference, within_y=within))
        floors.append(energy_distance(other, reference, within_y=within))
    metrics: Metrics = {
        "num_samples": count,
        "energy_distance": statistics.median(distances),
        "energy_distance_floor": statistics.median(floors),
    }
    metrics |= _remaining_drift(sampler, real, drift, batch)
    if modes is not None:
        metrics["mode_shares"] = mode_shares(sampler(count, 0), modes).tolist()
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
    nearest = torch.cdist(samples, modes).argmin(1)
    return torch.bincount(nearest, minlength=len(modes)) * len(modes) / len(samples)


def evaluate_digits(sampler: Sampler, split: LabelledSplit) -> Metrics:
    """Compare generated digits, classes in turn, with real ones: are they the digits asked for, spread like real ones, and new?

    Returns:
        `nearest_neighbour_accuracy` and `logistic_accuracy`: share of samples that classifiers fit on the training digits name as
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

    return {"nearest_neighbour": KNeighborsClassifier(1), "logistic": LogisticRegression(max_iter=2000)}


def _nearest(samples: Float[Tensor, "s d"], real: Float[Tensor, "r d"]) -> float:
    return float(torch.cdist(samples, real).amin(1).median())
