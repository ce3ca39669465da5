"""One training step in float64, written out: the features of a map one window after the other, the field one group after the other.

Only the networks themselves are the library's; what stands between them, and the bank, shares no code with it.

Shapes: b samples, c channels, h x w places of a map, k locations, l labels, n generated, m unconditional, p positives, d channels.

Source: paper, Algorithm 1 and 2, appendix A.5 to A.7, with the constants of the authors' release.
"""

from collections import Counter, deque
from typing import NamedTuple

import torch


class OracleStep(NamedTuple):
    """Of a step the gradient of every weight, and of every feature the loss, the scale, and the drift norm at each temperature."""

    gradients: dict[str, torch.Tensor]
    losses: dict[str, float]
    scales: dict[str, float]
    drift_norms: dict[str, list[float]]


class OracleBank:
    """The latest samples of each class, and of all together, as bytes."""

    def __init__(self, num_classes, capacity, unconditional_capacity):
        self._classes = [deque(maxlen=capacity) for _ in range(num_classes)]
        self._all = deque(maxlen=unconditional_capacity)

    def push(self, samples, labels):
        for sample, label in zip(samples, labels, strict=True):
            self._classes[int(label)].append(_key(sample))
            self._all.append(_key(sample))

    def can_give(self, samples, label=None):
        """Return whether a set of samples may have been drawn from a class, or from all: no slot twice."""
        held = self._all if label is None else self._classes[int(label)]
        return Counter(map(_key, samples)) <= Counter(held)


def step(generator, autoencoder, batch, positives, unconditional, *, temperatures, floor=1e-6):
    """Return losses and gradients, from noise, labels, codes and guidance scales of a batch and from real samples.

    Networks and samples are float64, `positives` [l, p, ...] and `unconditional` [l, m, ...].
    """
    labels, count = len(batch.labels), batch.noise.shape[1]
    condition = [torch.stack([value] * count, 1).flatten() for value in (batch.labels, batch.guidance_scale)]
    samples = generator(batch.noise.double().flatten(0, 1), *condition, batch.style_indices.flatten(0, 1))
    generated = _of_labels(features(autoencoder, samples), labels)
    with torch.no_grad():
        attract, repel = (_of_labels(features(autoencoder, real.flatten(0, 1)), labels) for real in (positives, unconditional))
    weights = [(float(alpha) - 1) * (count - 1) / unconditional.shape[1] for alpha in batch.guidance_scale]
    found = {name: feature_loss(generated[name], repel[name], attract[name], weights, temperatures, floor) for name in generated}
    loss = sum(value for value, _, _ in found.values())
    named = dict(generator.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    losses, scales, norms = ({name: values[index] for name, values in found.items()} for index in range(3))
    return OracleStep(gradients, {name: float(value.detach()) for name, value in losses.items()}, scales, norms)


def features(autoencoder, samples):
    """Return every feature [b, k, d] that the release uses, and the flattened sample."""
    patch, roots = autoencoder.patch, []
    for row in range(patch):
        for column in range(patch):
            for channel in range(samples.shape[1]):
                values = samples[:, channel, row::patch, column::patch]
                roots.append(torch.sqrt((values**2).mean((1, 2)) + 1e-6))
    found = {"norm_x": torch.stack(roots, 1)[:, None]}
    for name, map in autoencoder.maps(samples).items():
        _, _, block = name.partition("_blk")
        if not block or int(block) % 2 == 0:
            found |= pooled(name, map)
    return {**found, "global.sample": samples.flatten(1)[:, None]}


def pooled(name, map):
    """Return the locations of a map [b, c, h, w], and mean and deviation of the whole and of its windows of 2 x 2 and 4 x 4."""
    height, width = map.shape[2:]

    def window(top, left, high, wide):
        return [map[:, :, row, column] for row in range(top, top + high) for column in range(left, left + wide)]

    found = {name: torch.stack(window(0, 0, height, width), 1)}
    for suffix, high, wide in (("", height, width), ("_2", 2, 2), ("_4", 4, 4)):
        if height % high == 0 and width % wide == 0:
            corners = [(top, left) for top in range(0, height, high) for left in range(0, width, wide)]
            windows = [window(top, left, high, wide) for top, left in corners]
            found[f"{name}_mean{suffix}"] = torch.stack([_mean(vectors) for vectors in windows], 1)
            found[f"{name}_std{suffix}"] = torch.stack([_deviation(vectors) for vectors in windows], 1)
    return found


def feature_loss(generated, unconditional, positives, unconditional_weights, temperatures, floor):
    """Return the loss of one feature [l, _, k, d] with gradient, its scale, and its drift norm at each temperature."""
    groups = []
    for label, weight in enumerate(unconditional_weights):
        for place in range(generated.shape[2]):
            samples, repel, attract = (part[label, :, place] for part in (generated, unconditional, positives))
            targets = torch.cat([samples.detach(), repel, attract])
            weights = torch.tensor([1.0] * len(samples) + [weight] * len(repel) + [1.0] * len(attract), dtype=torch.float64)
            groups.append((samples, targets, weights, len(samples) + len(repel)))
    distances = [_distances(samples.detach(), targets) for samples, targets, _, _ in groups]
    above = sum(float((matrix * group[2]).sum()) for matrix, group in zip(distances, groups, strict=True))
    scale = above / sum(len(group[0]) * float(group[2].sum()) for group in groups)
    unit = max(scale / generated.shape[3] ** 0.5, 1e-3)
    totals, norms = [0.0] * len(groups), []
    for temperature in temperatures:
        drifts = [
            drift(targets / unit, matrix / max(scale, 1e-3) / temperature, weights, negatives, floor)
            for matrix, (_, targets, weights, negatives) in zip(distances, groups, strict=True)
        ]
        norms.append(sum(float((value**2).mean()) for value in drifts) / len(drifts))
        totals = [total + value / max(norms[-1], 1e-8) ** 0.5 for total, value in zip(totals, drifts, strict=True)]
    losses = []
    for (samples, _, _, _), total in zip(groups, totals, strict=True):
        goal = (samples / unit + total).detach()
        losses.append(((samples / unit - goal) ** 2).mean())
    return sum(losses) / len(losses), scale, norms


def drift(targets, distances, weights, negatives, floor):
    """Return the drift [n, d] of one group: Algorithm 2, the generated samples being the first rows of the targets."""
    logits = -distances.clone()
    for row in range(len(logits)):
        logits[row, row] = -torch.inf
    affinity = torch.sqrt((logits.softmax(1) * logits.softmax(0)).clamp(min=floor)) * weights
    mass = affinity[:, :negatives].sum(1, keepdim=True), affinity[:, negatives:].sum(1, keepdim=True)
    toward = (affinity[:, negatives:] * mass[0]) @ targets[negatives:]
    return toward - (affinity[:, :negatives] * mass[1]) @ targets[:negatives]


def _distances(samples, targets):
    return torch.stack([torch.sqrt(((sample - targets) ** 2).sum(1)).clamp(min=1e-4) for sample in samples])


def _mean(vectors):
    return sum(vectors) / len(vectors)


def _deviation(vectors):
    center = _mean(vectors)
    return torch.sqrt(_mean([(vector - center) ** 2 for vector in vectors]) + 1e-6)


def _of_labels(features, labels):
    return {name: value.unflatten(0, (labels, -1)) for name, value in features.items()}


def _key(sample):
    return sample.double().contiguous().numpy().tobytes()
