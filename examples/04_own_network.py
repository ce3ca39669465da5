"""Your own network, trained by the loop of the library: any module from noise to samples, any data, any encoder."""

from torch import nn

import drifting
from drifting.data import load_digits


def main(steps=300, n=64):
    """Train a network on the digits of scikit-learn and print the raw drift norms, which shrink."""
    network = nn.Sequential(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64), nn.Tanh())
    schedule = drifting.Schedule(steps=steps, generated=n, positives=n, learning_rate=1e-3)
    trainer = drifting.Trainer(network, load_digits().train.flatten(1), schedule=schedule, noise_shape=32)
    for step in trainer:
        if step.number % 100 == 0:
            print(f"step {step.number}: raw drift norms {step.drift_norms['sample']}")
    return trainer.sample(100, seed=0)  # float32 [100, 64], of averaged weights, one pass


if __name__ == "__main__":
    main()
