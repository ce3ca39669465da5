"""Points in the plane: the smallest runs, in which the field can be watched."""

from drifting.config import LossConfig, MLPConfig, PointsData, RunConfig, ToyData
from drifting.data.toys import toy as check_toy
from drifting.errors import InputError
from drifting.training.loop import Schedule

# The anchors keep the setting of the authors' notebook. The others need a long-range temperature beside it: at 0.05 alone no mass
# moves between modes that lie far apart.
ANCHORS = ("swiss_roll", "checker")
ANCHOR_TEMPERATURES = (0.05,)
WIDE_TEMPERATURES = (0.05, 0.2, 0.8)


def toy(dataset: str | None = None, data: str | None = None) -> RunConfig:
    """Train on a toy distribution, or on the user's own points.

    Args:
        dataset: one of `data.toys.TOYS`; moons by default.
        data: path of a .npy file of shape [n, 2], instead of a toy.

    Source: the authors' notebook (PAPER: swiss roll and checkerboard; the rest is ours).
    """
    if dataset is not None and data is not None:
        raise InputError(f"dataset is '{dataset}' and data is '{data}': pass one of them")
    dataset = dataset or "moons"
    check_toy(dataset)
    temperatures = ANCHOR_TEMPERATURES if data is None and dataset in ANCHORS else WIDE_TEMPERATURES
    return RunConfig(
        preset="toy",
        data=ToyData(dataset=dataset) if data is None else PointsData(path=data),
        generator=MLPConfig(noise_dim=32, width=256, depth=3),
        loss=LossConfig(temperatures=temperatures, affinity_floor=0.0, normalize_features=False, normalize_drift=False),
        schedule=Schedule(
            steps=2000,
            generated=2048,
            positives=2048,
            learning_rate=1e-3,
            betas=(0.9, 0.999),
            max_grad_norm=None,
            ema_decay=0.995,
        ),
    )
