"""One training step: tensors in, loss and its report out, at once or in parts whose activations fit in memory. No optimizer.

The networks of a step can compute in bfloat16: half the memory and, on a GPU, a multiple of the speed. Under autocast products
and convolutions are rounded; what a network returns is float32 again, so the loss loses nothing. Weights stay in float32.

A step in parts has the loss and the gradient of the whole step, in one of two ways.

**By samples.** The loss depends on the generator's weights w only through the features f of its samples, so

    d loss / dw = sum over microbatches of (df / dw) (d loss / df)

A first pass without graph computes and stores the features of all samples. Their loss, with the scale, drifts and drift norms of
the whole batch, gives d loss / df. A second pass generates every microbatch again, with graph, and passes its share back.

This is exact up to rounding if the generator and the encoder are functions of their inputs and treat every sample separately,
without dropout, batch statistics or noise of their own.

**By labels.** Groups (labels x locations) share only two numbers: the scale s of a feature, which is its mean distance, and the
mean square of its raw drift at each temperature. So three passes over the labels suffice, and only the features of some labels are
stored at a time:

    1. distances     -> s
    2. drifts, at s  -> their mean squares
    3. the loss, with both, with graph: its gradient is added to that of the weights

Each pass encodes the real samples again. Microbatches need one pass less, but store the features of the whole step: about 90 GB for
the paper's recipe for ImageNet with 64 labels of 144 samples each.

Shapes: l labels, n generated, e detached, p positives and m unconditional samples per label, b = l n generated samples,
k locations, t temperatures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting._checks import PRECISIONS, check_computes, full_precision
from drifting.distributed import ALONE, Processes
from drifting.encoders.base import FeatureEncoder
from drifting.loss import DriftingLoss, DriftLoss, FeatureLoss, mean_over
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
        detached_noise: noise of further generated samples that repel too, but have no gradient; None for none.
        detached_style_indices: style codes of these.
        unconditional: features of real samples of any label that repel (guidance); None without guidance.
        unconditional_weight: weight of each unconditional sample of a label, see `guidance.unconditional_weight`; None for ones.
        temperature_factor: factor of all temperatures; None for 1.
        learns_temperature: whether to report how the factor should change.
    """

    noise: Float[Tensor, "l n *noise"]
    positives: Mapping[str, Float[Tensor, "l p k _"]]
    labels: Int[Tensor, " l"] | None = None
    guidance_scale: Float[Tensor, " l"] | None = None
    style_indices: Int[Tensor, "l n s"] | None = None
    independent_noise: Float[Tensor, "l n *noise"] | None = None
    independent_style_indices: Int[Tensor, "l n s"] | None = None
    detached_noise: Float[Tensor, "l e *noise"] | None = None
    detached_style_indices: Int[Tensor, "l e s"] | None = None
    unconditional: Mapping[str, Float[Tensor, "l m k _"]] | None = None
    unconditional_weight: Float[Tensor, " l"] | None = None
    temperature_factor: Float[Tensor, ""] | float | None = None
    learns_temperature: bool = False

    def of(self, labels: slice) -> "Batch":
        """Return the part of the batch with some of its labels."""

        def select(value: Any) -> Any:
            if isinstance(value, LazyFeatures):
                return value.of(labels)
            if isinstance(value, Mapping):
                return {name: feature[labels] for name, feature in value.items()}
            return value[labels] if isinstance(value, Tensor) and value.ndim else value

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


class Made(NamedTuple):
    """Features of the generated samples of a step.

    Attributes:
        generated: those of the samples from `noise`.
        independent: those of the samples from `independent_noise`, if there is any.
        detached: those of the samples from `detached_noise`, if there is any.
    """

    generated: SetFeatures
    independent: SetFeatures | None = None
    detached: SetFeatures | None = None


def drifting_step(
    generator: Callable[..., Tensor],
    encoder: FeatureEncoder,
    loss: DriftingLoss,
    batch: Batch,
    *,
    statistics: bool | str = False,
    processes: Processes = ALONE,
    known: Mapping[str, DriftLoss] | None = None,
) -> FeatureLoss:
    """Generate, encode and compare: return the loss of a batch, with gradients to the generator's weights.

    With several processes, each has a batch of its own labels or, without labels, its own samples of the population; the loss of
    the step is the mean of their losses. `known` holds scales and drift norms of more than this batch, as in `DriftingLoss`.
    """
    features = partial(_features, generator, encoder, batch)
    made = Made(features(batch.noise, batch.style_indices), **_without_gradient(batch, features))
    return compare(loss, made, batch, statistics=statistics, processes=processes, known=known)


def _without_gradient(batch: Batch, features: Callable[[Tensor, Tensor | None], SetFeatures]) -> dict[str, SetFeatures]:
    """Return the features of the generated samples of a batch without gradient."""
    noise = {"independent": batch.independent_noise, "detached": batch.detached_noise}
    codes = {"independent": batch.independent_style_indices, "detached": batch.detached_style_indices}
    with torch.no_grad():
        return {name: features(value, codes[name]) for name, value in noise.items() if value is not None}


def compare(
    loss: DriftingLoss,
    made: Made,
    batch: Batch,
    *,
    statistics: bool | str = False,
    processes: Processes = ALONE,
    known: Mapping[str, DriftLoss] | None = None,
) -> FeatureLoss:
    """Return the loss of a batch from the features of its generated samples."""
    generated, *others = made
    weights, shared = None, {}
    if batch.temperature_factor is not None:
        shared = {"temperature_factor": batch.temperature_factor, "learn_temperature": batch.learns_temperature}
    if processes.size > 1:
        shared["peers"] = processes
        if batch.labels is None:
            shared["population"] = processes.all_gather(generated, 1)
            others = [None if features is None else processes.all_gather(features, 1) for features in others]
    independent, detached = others
    if batch.unconditional is not None and batch.unconditional_weight is not None:
        count = next(iter(batch.unconditional.values())).shape[1]
        weights = {"unconditional": batch.unconditional_weight[:, None].expand(-1, count)}
    return loss(
        generated,
        batch.positives,
        batch.unconditional,
        generated_negatives=independent,
        detached=detached,
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
    """Return a network that computes in a precision and returns float32.

    Args:
        precision: compute precision, one of `_checks.PRECISIONS`.
        function: network that returns a tensor, or a dictionary of tensors.
        device: device of the network.
    """
    if _TYPES[precision] is None:
        return function
    check_computes(precision, device)

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


def microbatched_step(
    generator: Callable[..., Tensor],
    encoder: FeatureEncoder,
    loss: DriftingLoss,
    batch: Batch,
    *,
    size: int,
    statistics: bool | str = False,
    processes: Processes = ALONE,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[FeatureLoss, int]:
    """Add the gradient of the loss of a batch to that of the generator's weights.

    Args:
        generator: the network.
        encoder: feature encoder.
        loss: drifting loss of the features.
        batch: inputs of the step.
        size: number of samples of one pass, which bounds the memory of activations and changes no result.
        statistics: whether to report the statistics of the field and of the batch, as in `drifting_loss`.
        processes: see `drifting_step`.
        no_sync: returns a context that postpones averaging gradients over the processes, used for all microbatches but the last.

    Returns:
        The report of `drifting_step`, with losses that are constants, and the size in bytes of the features of the whole batch
        and their gradients.
    """
    prior, features_of = (batch.noise, batch.style_indices), partial(_without_graph, generator, encoder, batch, size)
    features, others = features_of(*prior), _without_gradient(batch, features_of)
    # Older releases of torch would reuse the weights that autocast cast without graph, which pass no gradient.
    torch.clear_autocast_cache()
    for value in features.values():
        value.requires_grad_()
    report = compare(loss, Made(features, **others), batch, statistics=statistics, processes=processes)
    gradients = dict(zip(features, torch.autograd.grad(report.loss, list(features.values())), strict=True))
    kept = [value for part in (features, gradients, *others.values()) for value in part.values()]
    stored = sum(value.numel() * value.element_size() for value in kept)
    report = _constant(report)
    del features, others, kept
    shares = {name: gradient.flatten(0, 1).split(size) for name, gradient in gradients.items()}
    last = len(next(iter(shares.values()))) - 1
    for index, inputs in enumerate(batch.inputs(*prior, size)):
        with nullcontext() if index == last else no_sync():
            again = encoder(generator(*inputs))
            torch.autograd.backward([again[name] for name in shares], [share[index] for share in shares.values()])
    return report, stored


@torch.no_grad()
def _without_graph(
    generator: Callable[..., Tensor], encoder: FeatureEncoder, batch: Batch, size: int, noise: Tensor, codes: Tensor | None
) -> dict[str, Float[Tensor, "l n k _"]]:
    """Return the features of samples from noise, made and encoded `size` at a time."""
    parts = [encoder(generator(*inputs)) for inputs in batch.inputs(noise, codes, size)]
    return {name: torch.cat([part[name] for part in parts]).unflatten(0, noise.shape[:2]) for name in parts[0]}


def _constant(report: FeatureLoss) -> FeatureLoss:
    """Return a report without graph, so that it keeps no features in memory."""
    parts = {name: replace(feature, loss=feature.loss.detach()) for name, feature in report.features.items()}
    return FeatureLoss(loss=report.loss.detach(), features=parts)


# Feature -> its scale and drift norms, and feature -> numbers of it.
Known = dict[str, DriftLoss]
Figures = dict[str, Float[Tensor, " _"]]


def label_batched_step(
    generator: Callable[..., Tensor],
    encoder: FeatureEncoder,
    loss: DriftingLoss,
    parts: Sequence[Callable[[], Batch]],
    *,
    statistics: bool | str = False,
    processes: Processes = ALONE,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> FeatureLoss:
    """Add the gradient of the loss of a step to that of the generator's weights.

    Args:
        generator: the network, a function of its inputs; it makes every sample three times.
        encoder: feature encoder, also a function of its inputs.
        loss: drifting loss of the features.
        parts: functions that return the batch of some of the labels, each the same batch at every call and of the same size.
        statistics: whether to report the statistics of the field and of the batch, as in `drifting_loss`.
        processes: processes that share the labels.
        no_sync: returns a context that postpones averaging gradients over the processes, used for all parts but the last.

    Returns:
        The report of `drifting_step`, with losses that are constants.
    """
    networks = (generator, encoder)
    known = _scales_and_norms(networks, loss, parts, processes)
    # Older releases of torch would reuse the weights that autocast cast without graph, which pass no gradient.
    torch.clear_autocast_cache()
    reports: list[Known] = []
    for index, part in enumerate(parts):
        with nullcontext() if index == len(parts) - 1 else no_sync():
            report = drifting_step(*networks, loss, part(), statistics=statistics, known=known)
            (report.loss / len(parts)).backward()
        reports.append({name: replace(feature, loss=feature.loss.detach()) for name, feature in report.features.items()})
    features = {name: _join_reports([part[name] for part in reports], processes) for name in known}
    return FeatureLoss(loss=torch.stack([feature.loss.mean() for feature in features.values()]).sum(), features=features)


def _join_reports(parts: Sequence[DriftLoss], processes: Processes) -> DriftLoss:
    """Return the report of a feature over all labels: losses side by side, statistics averaged over parts and processes."""
    means: dict[str, Any] = {"statistics": None, "batch": None}
    for kind in means:
        reported = [values for part in parts if (values := getattr(part, kind)) is not None]
        if reported:
            over_parts = (torch.stack(each).mean(0) for each in zip(*reported, strict=True))
            means[kind] = type(reported[0])(*(mean_over(_peers(processes), value) for value in over_parts))
    slopes = [part.temperature_slope for part in parts if part.temperature_slope is not None]
    slope = mean_over(_peers(processes), torch.stack(slopes).mean()) if slopes else None
    return replace(parts[0], loss=torch.cat([part.loss for part in parts]), **means, temperature_slope=slope)


@torch.no_grad()
def _scales_and_norms(
    networks: tuple[Callable[..., Tensor], FeatureEncoder],
    loss: DriftingLoss,
    parts: Sequence[Callable[[], Batch]],
    processes: Processes,
) -> Known:
    """Return the scale and the drift norms of every feature, over all labels of all processes."""
    normalized = loss.settings["normalize_features"]
    # With a field of zeros, only the distances are computed.
    only_distances = DriftingLoss(temperatures=(1.0,), field=_zero_field, normalize_features=normalized)

    def distances(batch: Batch) -> Figures:
        features = drifting_step(*networks, only_distances, replace(batch, learns_temperature=False)).features
        return {name: torch.stack([feature.scale * _weight(batch), _weight(batch)]) for name, feature in features.items()}

    def squares(batch: Batch) -> Figures:
        features = drifting_step(*networks, loss, replace(batch, learns_temperature=False), known=known).features
        return {name: torch.stack(list(feature.drift_norms.values())) for name, feature in features.items()}

    means = _mean((distances(part()) for part in parts), len(parts), processes)
    scales = {name: total / weight for name, (total, weight) in means.items()}
    known = {name: DriftLoss(loss=scale[None], scale=scale, drift_norms={}) for name, scale in scales.items()}
    for name, norms in _mean((squares(part()) for part in parts), len(parts), processes).items():
        known[name] = replace(known[name], drift_norms=dict(zip(loss.temperatures, norms.unbind(), strict=True)))
    return known


def _mean(figures: Iterable[Figures], count: int, processes: Processes) -> Figures:
    """Return the mean of named numbers over the parts and over the processes."""
    sums: Figures = {}
    for part in figures:
        sums = {name: value + sums[name] if sums else value for name, value in part.items()}
    return {name: mean_over(_peers(processes), total / count) for name, total in sums.items()}


def _peers(processes: Processes) -> Processes | None:
    return processes if processes.size > 1 else None


def _weight(batch: Batch) -> Float[Tensor, ""]:
    """Return the mean weight of the targets, by which the distances of a part are divided."""
    noise = batch.noise if batch.independent_noise is None else batch.independent_noise
    ones = noise.shape[1] + (0 if batch.detached_noise is None else batch.detached_noise.shape[1])
    ones += next(iter(batch.positives.values())).shape[1]
    weights = batch.unconditional_weight
    if batch.unconditional is None or weights is None:
        return noise.new_ones(())
    count = next(iter(batch.unconditional.values())).shape[1]
    return (ones + count * weights.to(noise).mean()) / (ones + count)


def _zero_field(generated: Float[Tensor, "g n d"], *targets: Tensor, **options: Any) -> Float[Tensor, "1 g n d"]:
    """Return a drift of zero."""
    del targets, options
    return torch.zeros_like(generated)[None]
