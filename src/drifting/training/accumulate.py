"""A training step in parts, whose activations fit in memory, with the loss and the gradient of the whole.

**By samples.** The loss reaches the generator's weights w through the features f of its samples alone, so that

    d loss / dw = sum over microbatches of (df / dw) (d loss / df)

A first pass without graph keeps the features of all samples. Their loss, with scale, drifts and drift norms of the whole batch,
gives d loss / df. A second pass makes every microbatch again, with graph, and passes its share back.

This is exact, to rounding, for a generator and an encoder that are functions of their inputs and take every sample by itself:
without dropout, batch statistics or noise of their own.

**By labels.** Groups, labels x locations, meet in two places alone: the scale s of a feature, its mean distance, and the mean
square of its raw drift at every temperature. So three passes over the labels do, and no more than the features of some labels is
ever held:

    1. distances     -> s
    2. drifts, at s  -> their mean squares
    3. the loss, at both, with graph: its gradient is added to that of the weights

Real samples are encoded again in each. Microbatches, which keep the features of the whole step, take one pass less; but those of
the paper's recipe for ImageNet, 64 labels with 144 samples each, take up some 90 GB.

Shapes: l labels, n generated samples per label, m unconditional samples, k locations, t temperatures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.distributed import ALONE, Processes
from drifting.encoders.base import FeatureEncoder
from drifting.fields.base import mean_over
from drifting.loss import DriftingLoss, DriftLoss, FeatureLoss
from drifting.training.step import Batch, compare, drifting_step


def microbatched_step(
    generator: Callable[..., Tensor],
    encoder: FeatureEncoder,
    loss: DriftingLoss,
    batch: Batch,
    *,
    size: int,
    statistics: bool = False,
    processes: Processes = ALONE,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
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
        no_sync: gives a block in which gradients are not yet averaged over them: all microbatches but the last.

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
        with nullcontext() if index == last else no_sync():
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


Known = dict[str, DriftLoss]
Figures = dict[str, Float[Tensor, " _"]]


def label_batched_step(
    generator: Callable[..., Tensor],
    encoder: FeatureEncoder,
    loss: DriftingLoss,
    parts: Sequence[Callable[[], Batch]],
    *,
    statistics: bool = False,
    processes: Processes = ALONE,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> FeatureLoss:
    """Add the gradient of the loss of a step to that of the generator's weights.

    Args:
        generator: the network, a function of its inputs: it makes every sample three times.
        encoder: the feature space, likewise.
        loss: over its features.
        parts: each makes the batch of as many of the labels, the same one at every call.
        statistics: also report how the kernels spread.
        processes: those over which the labels are split.
        no_sync: gives a block in which gradients are not yet averaged over them: all parts but the last.

    Returns:
        The report of `step.drifting_step`, whose losses are constants here.
    """
    networks = (generator, encoder)
    known = _measured(networks, loss, parts, processes)
    # Older releases of torch use the weights that autocast cast without graph again, and those pass no gradient on.
    torch.clear_autocast_cache()
    reports: list[Known] = []
    for index, part in enumerate(parts):
        with nullcontext() if index == len(parts) - 1 else no_sync():
            report = drifting_step(*networks, loss, part(), statistics=statistics, known=known)
            (report.loss / len(parts)).backward()
        reports.append({name: replace(feature, loss=feature.loss.detach()) for name, feature in report.features.items()})
    features = {name: _joined([part[name] for part in reports], processes) for name in known}
    return FeatureLoss(loss=torch.stack([feature.loss.mean() for feature in features.values()]).sum(), features=features)


def _joined(parts: Sequence[DriftLoss], processes: Processes) -> DriftLoss:
    """Return the report of a feature over all labels: losses side by side, statistics of all processes averaged."""
    told = [part.statistics for part in parts if part.statistics is not None]
    mean = mean_over(_peers(processes), torch.stack([torch.stack(tuple(spread)) for spread in told]).mean(0)) if told else ()
    spread = type(told[0])(*mean) if told else None
    return replace(parts[0], loss=torch.cat([part.loss for part in parts]), statistics=spread)


@torch.no_grad()
def _measured(
    networks: tuple[Callable[..., Tensor], FeatureEncoder],
    loss: DriftingLoss,
    parts: Sequence[Callable[[], Batch]],
    processes: Processes,
) -> Known:
    """Return the scale and the drift norms of every feature, over all labels of all processes."""
    normalized = loss.settings["normalize_features"]
    # With a field that is zero, only the distances are computed.
    still = DriftingLoss(temperatures=(1.0,), field=_still, normalize_features=normalized)

    def distances(batch: Batch) -> Figures:
        features = drifting_step(*networks, still, batch).features
        return {name: torch.stack([feature.scale * _weight(batch), _weight(batch)]) for name, feature in features.items()}

    def squares(batch: Batch) -> Figures:
        features = drifting_step(*networks, loss, batch, known=known).features
        return {name: torch.stack(list(feature.drift_norms.values())) for name, feature in features.items()}

    means = _mean(map(distances, _made(parts)), len(parts), processes)
    scales = {name: above / below for name, (above, below) in means.items()}
    known = {name: DriftLoss(loss=scale[None], scale=scale, drift_norms={}) for name, scale in scales.items()}
    for name, norms in _mean(map(squares, _made(parts)), len(parts), processes).items():
        known[name] = replace(known[name], drift_norms=dict(zip(loss.temperatures, norms.unbind(), strict=True)))
    return known


def _made(parts: Sequence[Callable[[], Batch]]) -> Iterator[Batch]:
    return (part() for part in parts)


def _mean(figures: Iterable[Figures], count: int, processes: Processes) -> Figures:
    """Return the mean of named figures over the parts and over the processes."""
    sums: Figures = {}
    for found in figures:
        sums = {name: value + sums[name] if sums else value for name, value in found.items()}
    return {name: mean_over(_peers(processes), total / count) for name, total in sums.items()}


def _peers(processes: Processes) -> Processes | None:
    return processes if processes.size > 1 else None


def _weight(batch: Batch) -> Float[Tensor, ""]:
    """Return the mean weight of the targets, which is what the distances of a part are divided by."""
    noise = batch.noise if batch.independent_noise is None else batch.independent_noise
    ones = noise.shape[1] + next(iter(batch.positives.values())).shape[1]
    weights = batch.unconditional_weight
    if batch.unconditional is None or weights is None:
        return noise.new_ones(())
    count = next(iter(batch.unconditional.values())).shape[1]
    return (ones + count * weights.to(noise).mean()) / (ones + count)


def _still(generated: Float[Tensor, "g n d"], *sides: Tensor, **options: Any) -> Float[Tensor, "1 g n d"]:
    """Return the field that moves nothing."""
    del sides, options
    return torch.zeros_like(generated)[None]
