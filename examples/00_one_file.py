"""Drifting in one page: PyTorch only, nothing of this library. It learns eight Gaussians on a ring in about a minute.

A generator pushes noise forward in one pass. Every step, each sample x is asked where the drift field would move it: toward
real data, away from the other generated samples. The generator is then regressed on its own drifted samples:

    loss = mean || x - stopgrad(x + V(x)) ||^2

When generated and real samples have one distribution, attraction and repulsion balance and V is 0 but for noise.

Source: "Generative Modeling via Drifting", arXiv:2602.04770, Algorithms 1 and 2.
"""

import math

import torch
from torch import nn

TEMPERATURES = (0.05, 0.2, 0.8)


@torch.no_grad()
def drift(generated, positives, temperature):
    """Return V [n, d] for samples [n, d] and data [p, d]; the generated samples are also the negatives."""
    n = len(generated)
    to_negatives = torch.cdist(generated, generated, compute_mode="donot_use_mm_for_euclid_dist")
    to_negatives.fill_diagonal_(math.inf)  # a sample does not repel itself
    to_positives = torch.cdist(generated, positives, compute_mode="donot_use_mm_for_euclid_dist")
    logits = -torch.cat([to_negatives, to_positives], 1) / temperature
    affinity = (logits.softmax(0) * logits.softmax(1)).sqrt()  # normalized over samples and over targets
    repel, attract = affinity[:, :n], affinity[:, n:]
    # Each side is weighted by the other's mass, so that both pull equally hard.
    toward = (attract * repel.sum(1, keepdim=True)) @ positives
    away = (repel * attract.sum(1, keepdim=True)) @ generated
    return toward - away


def draw_data(n):
    """Draw n points of eight Gaussians on the unit circle."""
    angle = torch.randint(8, (n,)) * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2)


def main(steps=1000, n=512):
    """Train and print what shrinks: the mean square of the drift, and how the modes are shared out."""
    torch.manual_seed(0)
    layers = [nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 2)]
    generator = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        samples, data = generator(torch.randn(n, 32)), draw_data(n)
        v = torch.stack([drift(samples.detach(), data, temperature) for temperature in TEMPERATURES]).sum(0)
        loss = (samples - (samples.detach() + v)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: mean square of the drift {v.square().mean():.2e}")

    samples = generator(torch.randn(10_000, 32)).detach()  # ONE pass
    angle = torch.atan2(samples[:, 1], samples[:, 0])
    shares = torch.bincount((angle / (math.pi / 4)).round().long() % 8, minlength=8) / len(samples)
    print("share of each mode (0.125 is right):", [round(share, 3) for share in shares.tolist()])


if __name__ == "__main__":
    main()
