"""One training step, pure: tensors in, loss and its report out. No optimizer, no logging.

The networks of a step can compute in bfloat16: half the memory and, on a GPU, a multiple of the speed. Under autocast matrix
products and convolutions are rounded to bfloat16; what a network returns is float32 again, so distances, affinities and the loss
lose nothing. Weights, their gradients and their averages stay in float32.

Shapes: l labels, n generated, p positives and m unconditional samples per label, b = l n generated samples.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting._checks import PRECISIONS, full_precision
from drifting.distributed import ALONE, Processes
from drifting.encoders.base import FeatureEncoder
from drifting.loss import DriftingLoss, DriftLoss, FeatureLoss
from drifting.training.positives import LazyFeatures, encode_sets

_TYPES = dict(zip(PRECISIONS, (None, torch.bfloat16), strict=True))
SetFeatures = Mapping[str, Float[Tensor, "l n k _"]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The inputs of a step.

    Attributes:
        noise: noise of every generated sample.
        style_indices: style codes of every generated sample; None for a generator without style codes.
        labels: class of each group; None without labels (l = 1).
        guidance_scale: guidance scale that the generator takes for each label; None for a generator that takes none.
        positives: features of real samples of each label.
        independent_noise: noise of a second generated batch that repels instead of the first; None for the paper's field.
        independent_style_indices: style codes of the second batch.
        unconditional: features of real samples of any label that repel (guidance); None without guidance.
        unconditional_weight: weight of each unconditional sample of a label, see `guidance.unconditional_weight`; None for ones.
    """

    noise: Float[Tensor, "l n *noise"]
    positives: Mapping[str, Float[Tensor, "l p k _"]]
    labels: Int[Tensor, " l"] | None = None
    guidance_scale: Float[Tensor, " l"] | None = None
    style_indices: Int[Tensor, "l n s"] | None = None
    independent_noise: Float[Tensor, "l n *noise"] | None = None
    independent_style_indices: Int[Tensor, "l n s"] | None = None
    unconditional: Mapping[str, Float[Tensor, "l m k _"]] | None = None
    unconditional_weight: Float[Tensor, " l"] | None = None

    def of(self, labels: slice) -> "Batch":
        """Return the part of the batch with some of its labels."""

        def select(value: Any) -> Any:
            if isinstance(value, LazyFeatures):
                return value.of(labels)
            if isinstance(value, Mapping):
                return {name: feature[labels] for name, feature in value.items()}
            return None if value is None else value[labels]

        return Batch(**{name: select(value) for name, value in vars(self).items()})

    def inputs(
        self, noise: Float[Tensor, "l n *noise"], codes: Int[Tensor, "l n s"] | None, size: int | None = None
    ) -> Iterator[tuple[Tensor | None, ...]]:
        """Yield the arguments of the generator for at most `size` samples at a time; by default, for all at once."""
        per_label = (self.labels, self.guidance_scale)
        arguments = [noise.flatten(0, 1)]
        arguments += [None if value is None else value.repeat_interleave(noise.shape[1]) for value in per_label]
        arguments += [] if codes is None else [codes.flatten(0, 1)]
        count = noise.shape[:2].numel()
        for start in range(0, count, size or count):
            yield tuple(None if value is None else value[start : start + (size or count)] for value in arguments)


def drifting_step(
    generator: Callable[..., Tensor],
    encoder: FeatureEncoder,
    loss: DriftingLoss,
    batch: Batch,
    *,
    statistics: bool = False,
    processes: Processes = ALONE,
    known: Mapping[str, DriftLoss] | None = None,
) -> FeatureLoss:
    """Generate, encode and compare: return the loss of a batch, with gradients to the generator's weights.

    With several processes, each has a batch of its own labels or, without labels, its own samples of the population; the loss of
    the step is the mean of their losses. `known` holds scales and drift norms of more than this batch, as in `DriftingLoss`.
    """
    generated, independent = _features(generator, encoder, batch, batch.noise, batch.style_indices), None
    if batch.independent_noise is not None:
        with torch.no_grad():
            independent = _features(generator, encoder, batch, batch.independent_noise, batch.independent_style_indices)
    return compare(loss, generated, independent, batch, statistics=statistics, processes=processes, known=known)


def compare(
    loss: DriftingLoss,
    generated: SetFeatures,
    independent: SetFeatures | None,
    batch: Batch,
    *,
    statistics: bool = False,
    processes: Processes = ALONE,
    known: Mapping[str, DriftLoss] | None = None,
) -> FeatureLoss:
    """Return the loss of a batch from the features of its generated samples and of those from `independent_noise`."""
    weights, shared = None, {}
    if processes.size > 1:
        shared["peers"] = processes
        if batch.labels is None:
            shared["population"] = processes.all_gather(generated, 1)
            independent = None if independent is None else processes.all_gather(independent, 1)
    if batch.unconditional is not None and batch.unconditional_weight is not None:
        count = next(iter(batch.unconditional.values())).shape[1]
        weights = {"unconditional": batch.unconditional_weight[:, None].expand(-1, count)}
    return loss(
        generated,
        batch.positives,
        batch.unconditional,
        generated_negatives=independent,
        weights=weights,
        statistics=statistics,
        known=known,
        **shared,
    )


def _features(
    generator: Callable[..., Tensor], encoder: FeatureEncoder, batch: Batch, noise: Tensor, codes: Tensor | None
) -> dict[str, Tensor]:
    (inputs,) = batch.inputs(noise, codes)
    return encode_sets(encoder, generator(*inputs).unflatten(0, noise.shape[:2]))


def computed_in(precision: str, function: Callable[..., Any], device: torch.device | str) -> Callable[..., Any]:
    """Return a generator or an encoder that computes in a precision and returns float32.

    Args:
        precision: compute precision, one of `_checks.PRECISIONS`.
        function: network that returns a tensor, or a dictionary of tensors.
        device: device of the network.
    """
    if _TYPES[precision] is None:
        return function

    def run(*arguments: Tensor | None) -> Any:
        with computing_in(precision, device):
            result = function(*arguments)
        if isinstance(result, Tensor):
            return full_precision(result)
        return {name: full_precision(value) for name, value in result.items()}

    return run


def computing_in(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context in which networks compute in a precision, one of `PRECISIONS`, on a device."""
    dtype = _TYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)
