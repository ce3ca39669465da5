"""Figures of a training by name, from reports of the loss or lines of a log, and their medians over thirds of the training.

A figure is KIND/FEATURE/TEMPERATURE, KIND/FEATURE or KIND/PART -> number.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from drifting.loss import DriftLoss

# A drift norm has the name DRIFT_NORM/feature/temperature.
DRIFT_NORM = "drift_norm"
# The drift norm of real data has the name NOISE_FLOOR/feature/temperature.
NOISE_FLOOR = "noise_floor"
# Lines with a figure that a verdict needs.
FEWEST_LINES = 3

Line = Mapping[str, Any]


def drift_norms(features: Mapping[str, DriftLoss]) -> dict[str, Tensor]:
    """Return drift_norm/FEATURE/TEMPERATURE -> raw drift norm, on the device."""
    return {
        f"{DRIFT_NORM}/{name}/{temperature:g}": norm
        for name, report in features.items()
        for temperature, norm in report.drift_norms.items()
    }


def batch_figures(features: Mapping[str, DriftLoss]) -> dict[str, float]:
    """Return the statistics of field and batch by name: KIND/FEATURE/TEMPERATURE or KIND/FEATURE. NaN is left out."""
    return {name: value for name, value in _figures(features) if not math.isnan(value)}


def _figures(features: Mapping[str, DriftLoss]) -> Iterator[tuple[str, float]]:
    for feature, report in features.items():
        measured: list[Any] = [values for values in (report.statistics, report.batch) if values is not None]
        for kind, value in (item for values in measured for item in values._asdict().items()):
            if value.ndim == 0:
                yield f"{kind}/{feature}", float(value)
                continue
            for temperature, number in zip(report.drift_norms, value.tolist(), strict=True):
                yield f"{kind}/{feature}/{temperature:g}", number


@dataclass
class History:
    """Lines of figures, and medians over thirds of them."""

    lines: Sequence[Line]
    values: dict[str, list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.lines:
            for name, value in line.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self.values.setdefault(name, []).append(float(value))

    def broken(self, *kinds: str) -> tuple[str, int] | None:
        """Return a figure of some kinds that is NaN or infinite in the last line, and the step since which one is; or None."""
        found = None
        for line in reversed(self.lines):
            wrong = (name for name, value in line.items() if name.partition("/")[0] in kinds and _is_broken(value))
            if (name := next(wrong, None)) is None:
                break
            found = name, line["step"]
        return found

    def names(self, kind: str) -> list[str]:
        """Return FEATURE or FEATURE/TEMPERATURE of the figures of a kind that occur often enough."""
        names = [name.partition("/")[2] for name in self.values if name.startswith(f"{kind}/")]
        return [name for name in names if len(self.values[f"{kind}/{name}"]) >= FEWEST_LINES]

    def series(self, name: str) -> list[float]:
        """Return all values of a figure."""
        return self.values.get(name, [])

    def recent(self, kind: str, name: str, *, third: int = 0) -> float:
        """Return the median of a figure over the last third of its values, or over the one before it by `third` thirds."""
        values = self.series(f"{kind}/{name}")
        size = max(1, len(values) // 3)
        end = len(values) - third * size
        return statistics.median(values[max(0, end - size) : end] or values[:1])

    def by_feature(self, kind: str) -> dict[str, list[str]]:
        """Return feature -> its temperatures in the figures of a kind, the smallest first."""
        found: dict[str, list[str]] = {}
        for name in self.names(kind):
            feature, _, temperature = name.rpartition("/")
            found.setdefault(feature, []).append(temperature)
        return {feature: sorted(temperatures, key=number) for feature, temperatures in found.items()}


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def number(text: str) -> float:
    """Return a temperature as a number; infinity if the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.inf
