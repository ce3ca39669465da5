"""Changes of a problem in place, after which some samples are far from all others."""

from typing import Any


def outlier_row(samples: Any) -> None:
    samples.generated[0, 1] += 40


def far_target(samples: Any) -> None:
    samples.positives[0, 2] -= 60


def both_together(samples: Any) -> None:
    samples.generated[0, 0] += 50
    samples.generated[0, 4] += 50.1
    samples.positives[0, :2] += 50.2
