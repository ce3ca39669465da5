"""The loss in your own loop: any generator, any frozen encoder, with the figures that tell whether it learns.

The network may compute in bfloat16 under autocast and may be compiled. The loss computes in float32 either way and stays outside
`torch.compile`: a compiled function that calls it runs it as it is.
"""

import torch
from torch import nn

import drifting
from drifting.data.points import toy
from drifting.fields import MeanShift


def main(steps=300, n=512, autocast=False, backend=None):
    """Train a small network on moons and print what is worth watching: raw drift norm and effective neighbors.

    With `autocast` the network computes in bfloat16, with a `backend`, such as "inductor", it is compiled.
    """
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    generator = nn.Sequential(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 2))
    network = generator if backend is None else torch.compile(generator, backend=backend)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    loss_of = drifting.DriftingLoss(
        temperatures=(0.05, 0.2, 0.8), field=MeanShift(affinity_floor=0.0), normalize_features=False, normalize_drift=False
    )
    for step in range(1, steps + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            generated = network(torch.randn(n, 32))
        positives = toy("moons").draw(n, rng)
        # Points are features as they are. An encoder would be applied to both here.
        report = loss_of(generated, positives, statistics=step % 100 == 0)
        optimizer.zero_grad()
        report.loss.backward()
        optimizer.step()
        if step % 100 == 0:
            feature = report.features["sample"]
            norms = {temperature: f"{float(norm):.1e}" for temperature, norm in feature.drift_norms.items()}
            print(f"step {step}: raw drift norms {norms}, {feature.statistics}")


if __name__ == "__main__":
    main()
    main(autocast=True)
    main(backend="inductor")
