"""Your own feature encoder: samples drift in the space that it makes, here the features of a small classifier of digits.

An encoder is any callable from samples to features. A module is frozen by the trainer, and gradients pass through it to the
generator. Several feature maps are returned by name; each has its own scale and its own drift.
"""

import torch
from torch import nn

import drifting
from drifting.data import load_digits


class Features(nn.Module):
    """Digits [b, 1, 8, 8] -> their pixels and two layers of a classifier, each [b, channels]."""

    def __init__(self):
        super().__init__()
        self.early = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, stride=2), nn.SiLU(), nn.Flatten()
        )
        self.late = nn.Sequential(nn.Linear(16 * 9, 64), nn.SiLU())
        self.classes = nn.Linear(64, 10)

    def forward(self, images):
        """Return features by name. Pixels keep what a classifier would forget."""
        early = self.early(images)
        return {"pixels": images.flatten(1), "early": early, "late": self.late(early)}


def learn_classes(network, images, labels, steps):
    """Train the network as a classifier."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,))
        logits = network.classes(network(images[chosen])["late"])
        loss = nn.functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def main(steps=300, n=64):
    """Train the encoder, then a generator in its features, and print the raw drift norms of each feature."""
    torch.manual_seed(0)
    digits = load_digits()
    encoder = learn_classes(Features(), digits.train, digits.train_labels, steps)
    generator = nn.Sequential(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64), nn.Tanh())
    generator.append(nn.Unflatten(1, (1, 8, 8)))
    schedule = drifting.Schedule(steps=steps, generated=n, positives=2 * n, learning_rate=1e-3)
    trainer = drifting.Trainer(generator, digits.train, encoder=encoder, schedule=schedule, noise_shape=32)
    for step in trainer:
        if step.number % 100 == 0:
            norms = {name: float(sum(values.values())) for name, values in step.drift_norms.items()}
            print(f"step {step.number}: raw drift norms {norms}")
    samples = trainer.sample(200, seed=0)
    with torch.no_grad():
        sure = encoder.classes(encoder(samples)["late"]).softmax(1).max(1).values.mean()
    print(f"the classifier is sure of the class of a sample by {sure:.2f} on average")
    return samples


if __name__ == "__main__":
    main()
