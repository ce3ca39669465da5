"""Your own drift field: any function with the arguments of `drifting.fields.Field`, here two mean shifts with Gaussian kernels.

    V(x) = sum_j k(x, y+_j) y+_j / sum_j k(x, y+_j) - sum_j k(x, y-_j) y-_j / sum_j k(x, y-_j)

If positives and negatives are swapped, its sign flips; so it is zero where they have one distribution. A field should keep that.
"""

import math

import torch
from torch import nn

import drifting
from drifting.data.points import toy


def two_mean_shifts(generated, positives, negatives, *, temperatures, weights=None, num_self=0, distances=None):
    """Return the drift [t, g, n, d] of generated [g, n, d] by positives [g, p, d] and negatives [g, m, d]."""
    if weights is not None:
        raise drifting.InputError("weights are given, which this field does not use: train without guidance")
    if distances is None:
        distances = torch.cdist(generated, torch.cat([negatives, positives], 1))
    squares = distances.square()
    own = torch.arange(num_self)
    squares[:, own, own] = math.inf  # a sample does not repel itself
    logits = -squares / (2 * temperatures.square()).reshape(-1, 1, 1, 1)
    away, toward = logits.split([negatives.shape[1], positives.shape[1]], dim=-1)
    return toward.softmax(-1) @ positives - away.softmax(-1) @ negatives


def main(steps=300, n=256):
    """Train a network on moons in this field and print the raw drift norms, which shrink."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 2))
    data = toy("moons").draw(4096, torch.Generator().manual_seed(0))
    loss = drifting.DriftingLoss(temperatures=(0.1, 0.4), field=two_mean_shifts, normalize_features=False)
    schedule = drifting.Schedule(steps=steps, generated=n, positives=n, learning_rate=1e-3)
    trainer = drifting.Trainer(generator, data, loss=loss, schedule=schedule, noise_shape=32)
    for step in trainer:
        if step.number % 100 == 0:
            print(f"step {step.number}: raw drift norms {step.drift_norms['sample']}")
    return trainer.sample(1000, seed=0)


if __name__ == "__main__":
    main()
