"""A training step in parts, whose activations fit in memory, with the gradient of the whole.

The loss reaches the generator's weights w through the features f of its samples alone, so that

    d loss / dw = sum over micro-batches of (df / dw) (d loss / df)

A first pass without graph keeps the features of all samples. Their loss, with scale, drifts and drift norms of the whole batch,
gives d loss / df. A second pass makes every micro-batch again, with graph, and passes its share back.

This is exact, to rounding, for a generator and an encoder that are functions of their inputs and take every sample by itself:
without dropout, batch statistics or noise of their own.

Shapes: l labels, n generated samples per label, k locations.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.distributed import ALONE, Processes
from drifting.encoders.base import FeatureEncoder
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.training.step import Batch, compare


def micro_batched_step(
    generator: Callable[..., Tensor],
    encoder: FeatureEncoder,
    loss: DriftingLoss,
    batch: Batch,
    *,
    size: int,
    statistics: bool = False,
    processes: Processes = ALONE,
    unaveraged: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[FeatureLoss, int]:
    """Add the gradient of the loss of a batch to that of the generator's weights.

    Args:
        generator: the network.
        encoder: the feature space.
        loss: over its features.
        batch: what the step is computed from.
        size: samples of one pass; bounds the memory of activations and changes nothing else.
        statistics: also report how the kernels spread.
        processes: see `step.drifting_step`.
        unaveraged: gives a block in which gradients are not yet averaged over them: all micro-batches but the last.

    Returns:
        The report of `step.drifting_step`, whose losses are constants here; and the bytes that the features of the whole batch and
        their gradients take up.
    """
    prior, independent = (batch.noise, batch.style_indices), None
    features = _without_graph(generator, encoder, batch, *prior, size)
    if batch.independent_noise is not None:
        other = (batch.independent_noise, batch.independent_style_indices)
        independent = _without_graph(generator, encoder, batch, *other, size)
    # Older releases of torch use the weights that autocast cast without graph again, and those pass no gradient on.
    torch.clear_autocast_cache()
    for value in features.values():
        value.requires_grad_()
    report = compare(loss, features, independent, batch, statistics=statistics, processes=processes)
    gradients = dict(zip(features, torch.autograd.grad(report.loss, list(features.values())), strict=True))
    stored = sum(_bytes(part) for part in (features, gradients, independent or {}))
    report = _constant(report)
    del features, independent
    shares = {name: gradient.flatten(0, 1).split(size) for name, gradient in gradients.items()}
    last = len(next(iter(shares.values()))) - 1
    for index, inputs in enumerate(batch.inputs(*prior, size)):
        with nullcontext() if index == last else unaveraged():
            again = encoder(generator(*inputs))
            torch.autograd.backward([again[name] for name in shares], [share[index] for share in shares.values()])
    return report, stored


@torch.no_grad()
def _without_graph(
    generator: Callable[..., Tensor], encoder: FeatureEncoder, batch: Batch, noise: Tensor, codes: Tensor | None, size: int
) -> dict[str, Float[Tensor, "l n k _"]]:
    """Return the features of all generated samples."""
    parts = [encoder(generator(*inputs)) for inputs in batch.inputs(noise, codes, size)]
    return {name: torch.cat([part[name] for part in parts]).unflatten(0, noise.shape[:2]) for name in parts[0]}


def _bytes(features: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in features.values())


def _constant(report: FeatureLoss) -> FeatureLoss:
    """Return a report that holds on to no graph, and so to no features."""
    parts = {name: replace(feature, loss=feature.loss.detach()) for name, feature in report.features.items()}
    return FeatureLoss(loss=report.loss.detach(), features=parts)
