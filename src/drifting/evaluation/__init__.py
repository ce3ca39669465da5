"""Evaluation of the samples of a run. Beside each figure stands the same figure for real data: the floor."""

from drifting.evaluation.extractors import Classifier, Extractor
from drifting.evaluation.figures import (
    Metrics,
    Sampler,
    Sides,
    compare,
    evaluate_digits,
    evaluate_images,
    evaluate_points,
    frechet_curve,
    mode_shares,
)
from drifting.evaluation.statistics import ImageStatistics, collect_statistics
from drifting.evaluation.tables import as_text

__all__ = [
    "Classifier",
    "Extractor",
    "ImageStatistics",
    "Metrics",
    "Sampler",
    "Sides",
    "as_text",
    "collect_statistics",
    "compare",
    "evaluate_digits",
    "evaluate_images",
    "evaluate_points",
    "frechet_curve",
    "mode_shares",
]
