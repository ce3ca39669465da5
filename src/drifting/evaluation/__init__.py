"""How good the samples of a run are, each figure beside the same figure for real data: the floor."""

from drifting.evaluation.base import Metrics, Sampler, as_text
from drifting.evaluation.curve import frechet_curve
from drifting.evaluation.digits import evaluate_digits
from drifting.evaluation.images import Extractor, Seen, Sides, compare, evaluate_images, see
from drifting.evaluation.points import evaluate_points, mode_shares

__all__ = [
    "Extractor",
    "Metrics",
    "Sampler",
    "Seen",
    "Sides",
    "as_text",
    "compare",
    "evaluate_digits",
    "evaluate_images",
    "evaluate_points",
    "frechet_curve",
    "mode_shares",
    "see",
]
