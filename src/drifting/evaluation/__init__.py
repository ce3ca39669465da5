"""How good the samples of a run are, each figure beside the same figure for real data: the floor."""

from drifting.evaluation.base import Metrics, Sampler, as_text
from drifting.evaluation.digits import evaluate_digits
from drifting.evaluation.images import Extractor, Seen, compare, evaluate_images, frechet_curve, see
from drifting.evaluation.points import evaluate_points, mode_shares

__all__ = [
    "Extractor",
    "Metrics",
    "Sampler",
    "Seen",
    "as_text",
    "compare",
    "evaluate_digits",
    "evaluate_images",
    "evaluate_points",
    "frechet_curve",
    "mode_shares",
    "see",
]
