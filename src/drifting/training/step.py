"""One training step, pure: tensors in, loss and its report out. No optimiser, no device code, no logging.

Shapes: l labels, n generated per label, p positives per label.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from drifting.encoders.base import FeatureEncoder
from drifting.generators.base import Generator
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.training.positives import encode_sets


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step is computed from.

    Attributes:
        noise: one noise per generated sample.
        labels: the class of each group, or None where there are none (l = 1).
        positives: features of real samples of each label.
        independent_noise: noise of a second generated batch that repels in place of the first; None for the paper's field.
    """

    noise: Float[Tensor, "l n *noise"]
    positives: Mapping[str, Float[Tensor, "l p k _"]]
    labels: Int[Tensor, " l"] | None = None
    independent_noise: Float[Tensor, "l n *noise"] | None = None


def drifting_step(
    generator: Generator, encoder: FeatureEncoder, loss: DriftingLoss, batch: Batch, *, statistics: bool = False
) -> FeatureLoss:
    """Generate, encode and compare: return the loss of a batch, with gradient into the generator's weights."""
    generated = _generate(generator, batch.noise, batch.labels)
    independent = None
    if batch.independent_noise is not None:
        independent = encode_sets(encoder, _generate(generator, batch.independent_noise, batch.labels).detach())
    return loss(encode_sets(encoder, generated), batch.positives, generated_negatives=independent, statistics=statistics)


def _generate(generator: Generator, noise: Tensor, labels: Tensor | None) -> Float[Tensor, "l n *sample"]:
    per_sample = None if labels is None else labels.repeat_interleave(noise.shape[1])
    return generator(noise.flatten(0, 1), per_sample).unflatten(0, noise.shape[:2])
