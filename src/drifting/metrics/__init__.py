"""Metrics: how far samples are from real data."""

from typing import TYPE_CHECKING

from drifting._lazy import lazy_names

# Not lazily: its module has the name of the function.
from drifting.metrics.precision_recall import PrecisionRecall, precision_recall

if TYPE_CHECKING:
    from drifting.metrics.colour import ColourComparison, compare_colours
    from drifting.metrics.frechet import Gaussian, RunningGaussian, frechet_distance, gaussian_of, kernel_distance
    from drifting.metrics.inception import Inception, load_inception
    from drifting.metrics.inception_score import RunningInceptionScore
    from drifting.metrics.memorisation import Memorisation
    from drifting.metrics.two_sample import energy_distance, energy_distances, mean_distance

__all__ = [
    "ColourComparison",
    "Gaussian",
    "Inception",
    "Memorisation",
    "PrecisionRecall",
    "RunningGaussian",
    "RunningInceptionScore",
    "compare_colours",
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
        "colour": ("ColourComparison", "compare_colours"),
        "frechet": ("Gaussian", "RunningGaussian", "frechet_distance", "gaussian_of", "kernel_distance"),
        "inception": ("Inception", "load_inception"),
        "inception_score": ("RunningInceptionScore",),
        "memorisation": ("Memorisation",),
        "two_sample": ("energy_distance", "energy_distances", "mean_distance"),
    },
)
