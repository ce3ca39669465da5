"""One training step, pure: tensors in, loss and its report out. No optimiser, no device code, no logging.

Shapes: l labels, n generated, p positives and m unconditional samples per label.
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
        unconditional: features of real samples of any label, which repel: guidance; None for none.
        unconditional_weight: of each of them, see `guidance.unconditional_weight`.
    """

    noise: Float[Tensor, "l n *noise"]
    positives: Mapping[str, Float[Tensor, "l p k _"]]
    labels: Int[Tensor, " l"] | None = None
    independent_noise: Float[Tensor, "l n *noise"] | None = None
    unconditional: Mapping[str, Float[Tensor, "l m k _"]] | None = None
    unconditional_weight: float = 0.0


def drifting_step(
    generator: Generator, encoder: FeatureEncoder, loss: DriftingLoss, batch: Batch, *, statistics: bool = False
) -> FeatureLoss:
    """Generate, encode and compare: return the loss of a batch, with gradient into the generator's weights."""
    generated = _generate(generator, batch.noise, batch.labels)
    independent = None
    if batch.independent_noise is not None:
        independent = encode_sets(encoder, _generate(generator, batch.independent_noise, batch.labels).detach())
    weights = None
    if batch.unconditional is not None:
        labels, count = next(iter(batch.unconditional.values())).shape[:2]
        weights = {"unconditional": generated.new_full((labels, count), batch.unconditional_weight)}
    return loss(
        encode_sets(encoder, generated),
        batch.positives,
        batch.unconditional,
        generated_negatives=independent,
        weights=weights,
        statistics=statistics,
    )


def _generate(generator: Generator, noise: Tensor, labels: Tensor | None) -> Float[Tensor, "l n *sample"]:
    per_sample = None if labels is None else labels.repeat_interleave(noise.shape[1])
    return generator(noise.flatten(0, 1), per_sample).unflatten(0, noise.shape[:2])
