"""An animation of a training: the samples, where the drift field moves them, and the norm of the drift, which falls to its noise.

The picture of the README is made by `python examples/06_animation.py docs/images/training.gif`.
"""

import io
import sys

import torch
from PIL import Image
from torch import nn

from drifting.data.points import toy
from drifting.fields import mean_shift

TEMPERATURES = (0.05, 0.2, 0.8)


def drift(samples, targets):
    """Return where the field moves samples [n, 2], for all temperatures together."""
    return torch.stack([mean_shift(samples, targets, temperature=temperature) for temperature in TEMPERATURES]).sum(0)


def train(dataset, steps, n, snapshots):
    """Yield (step, samples, drift, mean square of the drift in every step until then) at each of the steps in `snapshots`."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    layers = [nn.Linear(4, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 2)]
    generator, norms = nn.Sequential(*layers), []
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        samples = generator(torch.randn(n, 4))
        moved = drift(samples.detach(), toy(dataset).draw(n, rng))
        norms.append(float(moved.square().mean()))
        if step in snapshots:
            yield step, samples.detach(), moved, norms
        loss = (samples - (samples.detach() + moved)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()


def draw(axes, data, state, floor, steps):
    """Draw one frame: samples and drifts on the left, the norms on the right."""
    step, samples, moved, norms = state
    left, right = axes
    left.clear()
    left.scatter(*data.T, s=2, color="0.75", linewidths=0)
    left.scatter(*samples.T, s=4, color="tab:orange", linewidths=0)
    some = slice(0, len(samples), 3)
    left.quiver(*samples[some].T, *moved[some].T, angles="xy", scale_units="xy", scale=0.5, width=0.004, color="tab:blue")
    limit = 1.25 * float(data.abs().max())
    left.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], title=f"step {step}: data, samples, drift")
    right.clear()
    right.loglog(range(1, len(norms) + 1), norms, color="tab:blue")
    right.axhline(floor, color="0.5", linestyle="--")
    lowest, highest = min([*norms, floor]), max([*norms, floor])
    right.text(1.2, 0.6 * floor, "real data against real data", fontsize=8, color="0.4", va="top")
    right.set(xlim=(1, steps), ylim=(lowest / 3, highest * 3), title="mean square of the drift")
    right.minorticks_off()


def main(out="training.gif", dataset="moons", steps=3000, n=512, frames=40):
    """Train on points of the plane and write the animation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    snapshots = sorted({round(steps ** (k / (frames - 1))) for k in range(frames)})
    rng = torch.Generator().manual_seed(1)
    data, other = toy(dataset).draw(n, rng), toy(dataset).draw(n, rng)
    floor = float(drift(other, data).square().mean())
    figure = Figure(figsize=(6.4, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes, pictures = figure.subplots(1, 2), []
    for state in train(dataset, steps, n, snapshots):
        draw(axes, data, state, floor, steps)
        png = io.BytesIO()
        figure.savefig(png)
        pictures.append(Image.open(png).convert("RGB").quantize(32))
    times = [*[120] * (len(pictures) - 1), 3000]  # milliseconds
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True)
    print(f"step {steps}: {len(pictures)} frames in {out}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "training.gif")
