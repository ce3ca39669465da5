"""Digits of 8 x 8 pixels: are they the digits asked for, spread like real ones, and new?

Shapes: s samples, r real samples, d pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.data.digits import LabeledSplit
from drifting.evaluation.base import Metrics, Sampler
from drifting.metrics.distances import energy_distance
from drifting.metrics.memorization import nearest


def evaluate_digits(sampler: Sampler, split: LabeledSplit) -> Metrics:
    """Compare generated digits, classes in turn, with real ones: are they the digits asked for, spread like real ones, and new?

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
