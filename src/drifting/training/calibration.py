"""Propose temperatures for a loss from real features, before any training.

At a low temperature a sample follows its nearest positive, at a high one the mean of all, and both stall a training. In between,
the effective number of positives that attract a sample, (sum_j A_ij)^2 / sum_j A_ij^2, tells how far it looks. Real samples take
the place of the generated ones, in groups as large as those of a step, so the numbers are those of a generator that is done. At the
start of a training, when samples are far from the data, the same temperatures look at fewer positives.

Three temperatures are proposed: one that looks at few positives, for details; one at a quarter of them; and one at most of them,
which moves mass between distant parts of the data.

Shapes: l labels, n generated, p positives, k locations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_counts, feature_maps
from drifting.errors import InputError
from drifting.fields import Field, MeanShift
from drifting.loss import DriftingLoss

# Temperatures relative to the mean distance at which the kernel is measured; more between them are interpolated.
_GRID = tuple(0.002 * 10 ** (index / 8) for index in range(33))
# Fewest positives that can tell temperatures apart.
FEWEST = 4
# Effective numbers of positives to aim at, as shares of all; but no fewer than `_LEAST`.
_FEW, _FRACTION, _MOST, _LEAST = 0.05, 0.25, 0.7, 2.0
# Effective number of positives below which it counts as this one, on logarithmic axes.
_NONE = 1e-3


@dataclass(frozen=True)
class Proposal:
    """One proposed temperature.

    Attributes:
        aim: what the temperature is for.
        temperature: the temperature, with two digits.
        neighbors: feature -> effective number of positives of a sample at this temperature.
    """

    aim: str
    temperature: float
    neighbors: dict[str, float]


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate_temperatures`.

    Attributes:
        proposals: proposed temperatures, the lowest first.
        present: the same figures of the temperatures that were named.
        generated, positives: size of a group.
    """

    proposals: tuple[Proposal, ...]
    present: tuple[Proposal, ...]
    generated: int
    positives: int

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The proposed temperatures."""
        return tuple(proposal.temperature for proposal in self.proposals)


@torch.no_grad()
def calibrate_temperatures(
    features: Tensor | Mapping[str, Float[Tensor, "l n+p k _"]],
    *,
    generated: int,
    field: Field | None = None,
    normalize_features: bool = True,
    present: Sequence[float] = (),
) -> Calibration:
    """Propose temperatures from features of real samples.

    Args:
        features: real samples of each label, [n + p, d], [l, n + p, d] or by name [l, n + p, k, d]: as many as the generated
            samples and the positives of a step together, all different.
        generated: number of generated samples of each label in a step; the other samples are positives.
        field: the drift field; the mean shift without a floor by default, and in place of a field without statistics.
        normalize_features: whether the loss divides features by their scale.
        present: temperatures to report beside the proposed ones.

    Raises:
        InputError: if fewer than 4 positives are left, or features are NaN or infinite.
    """
    check_counts({"generated": generated})
    maps = feature_maps(features)
    positives = next(iter(maps.values())).shape[1] - generated
    if positives < FEWEST:
        reason = f"positives is {positives} for each label, too few to tell temperatures apart"
        raise InputError(f"{reason}: pass at least {FEWEST}, or a larger batch_size")
    for name, value in maps.items():
        if not value.isfinite().all():
            raise InputError(f"features has NaN or infinite numbers in '{name}': check the encoder and its images")
    measured = field if field is not None and hasattr(field, "statistics") else MeanShift()
    found: dict[str, tuple[list[float], list[float]]] = {}
    for name, value in maps.items():
        moved, real = {name: value[:, :generated]}, {name: value[:, generated:]}
        grid = _GRID
        if not normalize_features:
            once = DriftingLoss(temperatures=(1.0,))(moved, real)
            scale = float(once.features[name].scale)
            grid = tuple(scale * temperature for temperature in _GRID)
        loss = DriftingLoss(temperatures=grid, field=measured, normalize_features=normalize_features)
        statistics = loss(moved, real, statistics="field").features[name].statistics
        neighbors = statistics.positive_neighbors.tolist()  # pyright: ignore - a field with statistics of a kernel
        # Where the kernel is flat already, rounding may turn the order of neighboring temperatures around.
        found[name] = (list(grid), [max(neighbors[: index + 1]) for index in range(len(neighbors))])
    aims = {"few": max(_LEAST, _FEW * positives), "a quarter": max(_LEAST, _FRACTION * positives), "most": _MOST * positives}
    proposals: list[Proposal] = []
    for aim, wanted in aims.items():
        logs = [math.log(_interpolated(wanted, values, grid)) for grid, values in found.values()]
        temperature = float(f"{math.exp(sum(logs) / len(logs)):.2g}")
        # Nearer to the one before, it would look at the same positives.
        if not proposals or temperature >= 1.5 * proposals[-1].temperature:
            proposals.append(_proposal(aim, temperature, found))
    named = tuple(_proposal("now", float(temperature), found) for temperature in present)
    return Calibration(tuple(proposals), named, generated, positives)


def _proposal(aim: str, temperature: float, found: Mapping[str, tuple[list[float], list[float]]]) -> Proposal:
    return Proposal(aim, temperature, {name: _interpolated(temperature, grid, values) for name, (grid, values) in found.items()})


def _interpolated(wanted: float, known: Sequence[float], values: Sequence[float]) -> float:
    """Return the value where the known numbers, which do not fall, reach the wanted one, on logarithmic axes."""
    index = next((index for index, number in enumerate(known) if number >= wanted), len(known))
    if index in (0, len(known)):
        return values[min(index, len(known) - 1)]
    # A kernel that is 0 at all positives has no logarithm.
    (low, high), (before, after) = ((max(each, _NONE) for each in some[index - 1 : index + 1]) for some in (known, values))
    share = math.log(wanted / low) / math.log(high / low)
    return before * (after / before) ** share
