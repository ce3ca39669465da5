"""The drifting loss of a flat labeled batch, whose classes have different numbers of samples; see `loss.DriftingLoss`.

Classes with equal counts are computed together. Scale and drift norms are means over all of them, so a first pass finds the scale,
a second one the drift norms, and the third one has the gradient.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drifting._checks import Features, flat_feature_maps, groups_of_labels, weighted_mean
from drifting.errors import InputError


def loss_of_labels(
    loss: Callable[..., Any], generated: Features, positives: Features, classes: Tensor | tuple[Tensor, Tensor]
) -> Any:
    """Return the `FeatureLoss` of a flat batch in which each class is a group, from the `DriftingLoss` of whole groups."""
    pair = (classes, classes) if isinstance(classes, Tensor) else classes
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        raise InputError(f"labels is a {type(classes).__name__}: pass a tensor, or a pair of tensors for generated and positives")
    labels, positive_labels = pair
    made, real = flat_feature_maps(generated, labels, "generated"), flat_feature_maps(positives, positive_labels, "positive")
    parts = [
        ({name: value[rows] for name, value in made.items()}, {name: value[others] for name, value in real.items()})
        for rows, others in groups_of_labels(labels, positive_labels)
    ]
    if len(parts) == 1:
        return loss(*parts[0])
    samples, pairs = [], []
    for ours, theirs in parts:
        groups, count = next(iter(ours.values())).shape[:2]
        samples.append(groups * count)
        pairs.append(groups * count * (count + next(iter(theirs.values())).shape[1]))
    with torch.no_grad():
        reports = [loss(*part).features for part in parts]
        scales = {name: weighted_mean([report[name].scale for report in reports], pairs) for name in made}
        known = {name: replace(reports[0][name], scale=scale, drift_norms={}) for name, scale in scales.items()}
        reports = [loss(*part, known=known).features for part in parts]
    for name, report in known.items():
        norms = [each[name].drift_norms for each in reports]
        known[name] = replace(report, drift_norms={key: weighted_mean([one[key] for one in norms], samples) for key in norms[0]})
    losses = [loss(*part, known=known) for part in parts]
    features = {name: replace(known[name], loss=torch.cat([part.features[name].loss for part in losses])) for name in known}
    return replace(losses[0], loss=weighted_mean([part.loss for part in losses], samples), features=features)
