"""The method in float64, one pair of samples after the other: slow, obvious, and sharing no code with the library.

Source: paper, Algorithm 2 and appendix A.6, with the constants of the authors' release.
"""

import math
from typing import NamedTuple

import numpy as np


class OracleLoss(NamedTuple):
    """The loss of each group, the gradient of its sum, the feature scale, and the drift norm of each temperature."""

    loss: np.ndarray
    grad: np.ndarray
    scale: float
    drift_norms: list[float]


class OracleField(NamedTuple):
    """The normalized distances, weights, coordinates and number of negatives of one group."""

    distances: list[list[float]]
    weights: list[float]
    targets: np.ndarray
    num_negatives: int


def pairwise(rows, columns, smallest=0.0):
    """Return the Euclidean distance of every row to every column, as lists."""
    return [[max(math.dist(row, column), smallest) for column in columns] for row in rows]


def softmax(logits):
    """Return the softmax of a list in which None is a masked entry: 0, as is everything where all are masked."""
    known = [logit for logit in logits if logit is not None]
    if not known:
        return [0.0 for _ in logits]
    top = max(known)
    exponentials = [0.0 if logit is None else math.exp(logit - top) for logit in logits]
    total = math.fsum(exponentials)
    return [value / total for value in exponentials]


def affinities(distances, temperature, *, num_self=0, floor=0.0):
    """Return sqrt(max(row softmax * column softmax, floor)); the pairs (i, i) with i < num_self are masked before the floor."""
    rows, columns = len(distances), len(distances[0])
    logits = [[None if i == j < num_self else -distances[i][j] / temperature for j in range(columns)] for i in range(rows)]
    by_row = [softmax(logits[i]) for i in range(rows)]
    by_column = [softmax([logits[i][j] for i in range(rows)]) for j in range(columns)]
    return [[math.sqrt(max(by_row[i][j] * by_column[j][i], floor)) for j in range(columns)] for i in range(rows)]


def cross_weighted(affinity, targets, num_negatives):
    """Return the drift of each row: attraction times the mass of repulsion, minus repulsion times the mass of attraction."""
    drift = []
    for row in affinity:
        mass_negative = math.fsum(row[:num_negatives])
        mass_positive = math.fsum(row[num_negatives:])
        moved = np.zeros(len(targets[0]))
        for j, value in enumerate(row):
            weight = -mass_positive if j < num_negatives else mass_negative
            moved = moved + weight * value * targets[j]
        drift.append(moved)
    return np.stack(drift)


def field(problem, temperature, num_self, floor):
    """Return the drift [n, d] of one group at one temperature."""
    affinity = affinities(problem.distances, temperature, num_self=num_self, floor=floor)
    weighted = [[value * weight for value, weight in zip(row, problem.weights, strict=True)] for row in affinity]
    return cross_weighted(weighted, problem.targets, problem.num_negatives)


def mean_shift(generated, positives, negatives=None, *, temperature, floor=0.0, positive_weights=None, negative_weights=None):
    """Return the mean-shift drift [n, d] of one problem; without negatives the generated samples repel, each blind to itself."""
    generated, positives = _wide(generated), _wide(positives)
    num_self = len(generated) if negatives is None else 0
    negatives = generated if negatives is None else _wide(negatives)
    targets = np.concatenate([negatives, positives])
    weights = _ones_or(negative_weights, len(negatives)) + _ones_or(positive_weights, len(positives))
    problem = OracleField(pairwise(generated, targets), weights, targets, len(negatives))
    return field(problem, temperature, num_self, floor)


def drifting_loss(
    generated,
    positives,
    unconditional=None,
    *,
    generated_weights=None,
    positive_weights=None,
    unconditional_weights=None,
    temperatures=(0.02, 0.05, 0.2),
    floor=1e-6,
    generated_negatives=None,
    detached=None,
    drift_clip=None,
):
    """Return the drifting loss of one feature map [g, n, d], with its gradient."""
    generated = _wide(generated)
    groups, rows, channels = generated.shape
    num_self = rows if generated_negatives is None else 0
    repelling = generated if generated_negatives is None else _wide(generated_negatives)
    sets = [(repelling, generated_weights), (detached, None), (unconditional, unconditional_weights), (positives, positive_weights)]
    problems = [_group(generated[g], [(_at(samples, g), _at(weights, g)) for samples, weights in sets]) for g in range(groups)]

    scale = _scale(problems)
    unit = max(scale / math.sqrt(channels), 1e-3)
    problems = [_normalized(problem, max(scale, 1e-3), unit) for problem in problems]
    total, norms = np.zeros(generated.shape), []
    for temperature in temperatures:
        drift = np.stack([field(problem, temperature, num_self, floor) for problem in problems])
        norms.append(math.fsum(value * value for value in drift.ravel()) / drift.size)
        total = total + drift / math.sqrt(max(norms[-1], 1e-8))
    if drift_clip is not None:
        total = np.stack([np.stack([_shortened(drift, drift_clip) for drift in group]) for group in total])
    loss = [math.fsum(value * value for value in total[g].ravel()) / (rows * channels) for g in range(groups)]
    return OracleLoss(np.array(loss), -2 * total / (rows * channels * unit), scale, norms)


def _group(generated, sets):
    """Return the problem of one group; the last of the (samples, weights) sets are its positives."""
    sets = [(_wide(samples), weights) for samples, weights in sets if samples is not None]
    targets = np.concatenate([samples for samples, _ in sets])
    weights = [weight for samples, given in sets for weight in _ones_or(given, len(samples))]
    return OracleField(pairwise(generated, targets, 1e-4), weights, targets, len(targets) - len(sets[-1][0]))


def _scale(problems):
    """Return mean(distance * weight) / mean(weight) over every pair of every group."""
    above, below = [], []
    for problem in problems:
        for row in problem.distances:
            above += [distance * weight for distance, weight in zip(row, problem.weights, strict=True)]
            below += problem.weights
    return math.fsum(above) / math.fsum(below)


def _normalized(problem, scale, unit):
    distances = [[distance / scale for distance in row] for row in problem.distances]
    return problem._replace(distances=distances, targets=problem.targets / unit)


def _shortened(drift, largest):
    """Return the drift of one sample, with a root mean square over its channels of at most `largest`."""
    size = math.sqrt(math.fsum(value * value for value in drift) / len(drift))
    return drift if size <= largest else drift * (largest / size)


def _wide(samples):
    return np.asarray(samples, dtype=np.float64)


def _ones_or(weights, count):
    return [1.0] * count if weights is None else [float(weight) for weight in weights]


def _at(values, index):
    return None if values is None else values[index]
