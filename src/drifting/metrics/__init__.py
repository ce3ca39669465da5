"""Metrics: how far samples are from real data."""

from typing import TYPE_CHECKING

from drifting._lazy import lazy_names

# Not lazily: its module has the name of the function.
from drifting.metrics.precision_recall import PrecisionRecall, precision_recall

if TYPE_CHECKING:
    from drifting.metrics.color import ColorComparison, compare_colors
    from drifting.metrics.frechet import Gaussian, RunningGaussian, frechet_distance, gaussian_of, kernel_distance
    from drifting.metrics.inception import Inception, load_inception
    from drifting.metrics.inception_score import RunningInceptionScore
    from drifting.metrics.memorization import Memorization
    from drifting.metrics.two_sample import energy_distance, energy_distances, mean_distance

__all__ = [
    "ColorComparison",
    "Gaussian",
    "Inception",
    "Memorization",
    "PrecisionRecall",
    "RunningGaussian",
    "RunningInceptionScore",
    "compare_colors",
    "energy_distance",
    "energy_distances",
    "frechet_distance",
    "gaussian_of",
    "kernel_distance",
    "load_inception",
    "mean_distance",
    "precision_recall",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "color": ("ColorComparison", "compare_colors"),
        "frechet": ("Gaussian", "RunningGaussian", "frechet_distance", "gaussian_of", "kernel_distance"),
        "inception": ("Inception", "load_inception"),
        "inception_score": ("RunningInceptionScore",),
        "memorization": ("Memorization",),
        "two_sample": ("energy_distance", "energy_distances", "mean_distance"),
    },
)
