"""The loss on the batches of a labeled DataLoader: a generator of the digits that it is asked for, in your own loop."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import drifting
from drifting.data.images import load_digits


class Generator(nn.Module):
    """Noise and labels -> images of 8 x 8 pixels, flat."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Embedding(10, 32)
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64), nn.Tanh())

    def forward(self, noise, labels):
        """Return one image for each noise and label."""
        return self.layers(torch.cat([noise, self.classes(labels)], 1))


def main(steps=300, n=256):
    """Train on the digits of scikit-learn and print the raw drift norms, which shrink."""
    torch.manual_seed(0)
    digits = load_digits()
    loader = DataLoader(TensorDataset(digits.train.flatten(1), digits.train_labels), batch_size=n, shuffle=True, drop_last=True)
    generator, loss_of = Generator(), drifting.DriftingLoss(temperatures=(0.05, 0.2))
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    step = 0
    while step < steps:
        for images, labels in loader:
            # Samples of the labels of the batch. Classes need not have equal counts; an encoder would be applied to both here.
            generated = generator(torch.randn(len(labels), 32), labels)
            report = loss_of(generated, images, labels=labels)
            optimizer.zero_grad()
            report.loss.backward()
            optimizer.step()
            step += 1
            if step % 100 == 0:
                norms = {temperature: f"{float(norm):.1e}" for temperature, norm in report.features["sample"].drift_norms.items()}
                print(f"step {step}: raw drift norms {norms}")
            if step == steps:
                break
    return generator


if __name__ == "__main__":
    main()
