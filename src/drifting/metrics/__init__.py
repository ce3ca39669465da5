"""Metrics: how far samples are from real data."""

from drifting.metrics.distances import (
    PrecisionRecall,
    energy_distance,
    energy_distances,
    mean_distance,
    precision_recall,
    within_class_distance,
)
from drifting.metrics.frechet import Gaussian, RunningGaussian, frechet_distance, gaussian_of, kernel_distance
from drifting.metrics.images import ColorComparison, Memorization, compare_colors
from drifting.metrics.inception import Inception, RunningInceptionScore, load_inception

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
    "within_class_distance",
]
