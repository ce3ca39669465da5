"""Conditions with one real sample each, as in a policy: a network that makes both answers where there are two.

For every x, the answer y is on the upper or on the lower branch of a curve, each half of the time. A regression would answer with
their mean. The generated answers to one x repel each other, and over the steps both branches attract them.
"""

import torch
from torch import nn

import drifting
from drifting.fields import MeanShift


class Answer(nn.Module):
    """Noise and a condition -> an answer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, noise, conditions):
        """Return one answer for each noise and condition."""
        return self.layers(torch.cat([noise, conditions], 1))


def branch(x):
    """Return the upper branch; the lower one is its negative."""
    return 1 + 0.5 * torch.sin(3 * x)


def main(steps=1000, n=16):
    """Train on pairs (x, y) with n answers for each x, and print how far the answers to new x are from the nearer branch."""
    torch.manual_seed(0)
    x = 2 * torch.rand(4096, 1) - 1
    y = branch(x) * torch.randint(2, x.shape).mul(2).sub(1) + 0.02 * torch.randn_like(x)
    loss = drifting.DriftingLoss(temperatures=(0.2,), field=MeanShift(affinity_floor=0.0), scale_per_row=True)
    schedule = drifting.Schedule(
        steps=steps,
        labels_per_step=128,
        generated=n,
        positives=1,
        learning_rate=3e-3,
        decay_after=300,
        decay_power=1.0,
        ema_decay=0.99,
    )
    trainer = drifting.Trainer(Answer(), y, conditions=x, loss=loss, schedule=schedule, noise_shape=2)
    for step in trainer:
        if step.number % 100 == 0:
            print(f"step {step.number}: raw drift norms {step.drift_norms['sample']}")
    asked = torch.linspace(-0.9, 0.9, 10)[:, None]
    answers = trainer.sample(1000, conditions=asked).reshape(100, 10)  # answer i is to condition i modulo 10
    error = (answers.abs() - branch(asked).T).abs().mean()
    print(f"mean distance to the nearer branch {error:.2f}, share of upper answers {(answers > 0).float().mean():.2f}")
    return answers, branch(asked)[:, 0]


if __name__ == "__main__":
    main()
