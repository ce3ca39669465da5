"""The drifting loss: regress every generated sample on its own drifted version, in a feature space.

Equation, per group, with x the generated samples, s the feature scale and V_t the raw drift at temperature t:

    loss = mean || x/s - stopgrad( x/s + sum_t V_t / rms(V_t) ) ||^2,    d loss / dx = -2 sum_t V_t / rms(V_t) / (n d s)

The normalized loss is nearly constant, about (number of temperatures)^2, so it says nothing about convergence. Watch `drift_norms`,
the mean squares before normalization: they shrink as training converges.

Shapes: g groups (label x location), n generated, p positives, m unconditional negatives, r independent generated negatives,
e detached ones, d feature channels, l labels, k locations.

Source: paper, Algorithm 1 and appendix A.6; the constants are those of the authors' release.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import (
    Features,
    check_feature_maps,
    check_loss,
    check_shapes,
    feature_maps,
    full_precision,
    join_weights,
    not_compiled,
    one_group,
)
from drifting.errors import InputError
from drifting.fields import pairwise
from drifting.fields.backends import open_drifts
from drifting.fields.base import Drifts, Field, Peers, Problem, Statistics
from drifting.fields.batch import BatchStatistics, Scaling, batch_statistics
from drifting.fields.diagnostics import field_statistics
from drifting.fields.mean_shift import MeanShift
from drifting.fields.row_scale import open_row_scaled
from drifting.fields.temperature import multiplied, temperature_slope

TEMPERATURES = (0.02, 0.05, 0.2)
FIELD_OF_THE_RELEASE = MeanShift(affinity_floor=1e-6)
_SMALLEST_DISTANCE = 1e-4
_SMALLEST_SCALE = 1e-3
_SMALLEST_DRIFT_NORM = 1e-8


@dataclass(frozen=True)
class DriftLoss:
    """The result of `drifting_loss`. Only `loss` has a gradient.

    Attributes:
        loss: one value per group.
        scale: the feature scale: the weighted mean distance of the call, or 1 if features are not normalized.
        drift_norms: temperature -> mean square of the raw drift over all groups, samples and channels.
        statistics: statistics of the field's kernel, one number per temperature and name; None if they were not requested or the
            field has none.
        batch: what the batch says about the training; None if it was not requested.
        temperature_slope: derivative of the objective of a learned temperature, see `fields.temperature`; None if not requested.
    """

    loss: Float[Tensor, " g"]
    scale: Float[Tensor, ""]
    drift_norms: dict[float, Float[Tensor, ""]]
    statistics: Statistics | None = None
    batch: BatchStatistics | None = None
    temperature_slope: Float[Tensor, ""] | None = None


@not_compiled
def drifting_loss(  # noqa: PLR0913 - the one function whose arguments are the method
    generated: Float[Tensor, "*g n d"],
    positives: Float[Tensor, "*g p d"],
    unconditional: Float[Tensor, "*g m d"] | None = None,
    *,
    generated_weights: Float[Tensor, "*g _"] | None = None,
    positive_weights: Float[Tensor, "*g p"] | None = None,
    unconditional_weights: Float[Tensor, "*g m"] | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    field: Field = FIELD_OF_THE_RELEASE,
    generated_negatives: Float[Tensor, "*g r d"] | None = None,
    detached: Float[Tensor, "*g e d"] | None = None,
    normalize_features: bool = True,
    normalize_drift: bool = True,
    scale_per_row: bool = False,
    drift_clip: float | None = None,
    temperature_factor: Tensor | float | None = None,
    learn_temperature: bool = False,
    scale: Tensor | float | None = None,
    drift_norms: Mapping[float, Tensor] | None = None,
    statistics: bool | str = False,
    memory: pairwise.Memory | None = None,
    peers: Peers | None = None,
    population: Float[Tensor, "*g N d"] | None = None,
) -> DriftLoss:
    """Return the drifting loss of one feature map.

    Args:
        generated: features of the generated samples, [g, n, d], or [n, d] for one group; they receive the gradient.
        positives: features of real samples of the group, which attract.
        unconditional: features of real samples of any class, which repel as well, for guidance.
        generated_weights: weight of each generated sample (or of each of `generated_negatives`) as a negative; ones by default.
        positive_weights: weight of each positive; ones by default.
        unconditional_weights: weight of each unconditional negative; see `guidance.unconditional_weight`.
        temperatures: kernel bandwidths, each above 0, relative to the mean distance; in the units of the features if
            `normalize_features` is False.
        field: the drift field with its parameters; the mean shift of the release by default. Use `MeanShift(affinity_floor=0.0)`
            for points in few dimensions.
        generated_negatives: an independent second generated batch that repels instead of `generated`; no pair is masked.
        detached: further generated samples of the group that repel too, with a weight of 1, but are not moved.
        normalize_features: whether to divide features by the scale; if not, `scale` is 1.
        normalize_drift: whether to scale the drift of every temperature to a mean square of 1 before the drifts are added.
        scale_per_row: whether to give every generated sample a scale of its own, see `fields.row_scale`; for small groups.
        drift_clip: largest root mean square over the channels of the summed drift of a sample, relative to the unit of
            `drift_norms`, in which a normalized drift of one temperature has 1; a longer drift is shortened. None for no limit.
        temperature_factor: factor of all temperatures, which keep their names in the report; None for 1.
        learn_temperature: whether to return how the factor should change; not with `population`, which is refused.
        scale: the feature scale, if it was computed elsewhere (microbatches, several devices).
        drift_norms: the raw mean squares, if they were computed elsewhere; they normalize the drift and are returned.
        statistics: whether to return the statistics of the field and of the batch too, at the cost of two or three passes;
            "field" for those of the field alone.
        memory: memory for the distances; keeping one object between calls makes them faster on a CPU.
        peers: the processes over which the groups of a step are split evenly. Scale, drift norms and statistics cover all
            processes, `loss` covers the groups of this one, and the loss of the step is the mean over processes.
        population: pass this if the samples of each group are split over `peers` instead: the features of the generated samples of
            all processes in rank order, of which `generated` are the rows [rank n, (rank + 1) n). `generated_weights` then cover
            all N samples. Every other argument is the same on all processes, and the drift is that of the whole population.

    Raises:
        InputError: if shapes do not match, temperatures are not positive, finite and different, or a second batch is missing.

    Source: paper, Algorithm 1 and appendix A.6. As in the release, one scale and one drift norm per temperature cover all groups of
    a call. Unlike in the release, features are centered before distances, and a sample is masked from itself exactly, up to the
    affinity floor.
    """
    check_loss(temperatures, drift_clip, field, generated, positives, has_independent=generated_negatives is not None)
    if generated.ndim == 2:
        generated, positives = generated[None], positives[None]
        unconditional, detached = one_group(unconditional), one_group(detached)
        generated_negatives, population = one_group(generated_negatives), one_group(population)
        weights = (generated_weights, positive_weights, unconditional_weights)
        generated_weights, positive_weights, unconditional_weights = map(one_group, weights)
    features = full_precision(generated)
    fixed = features.detach()
    everyone = _population(fixed, population, peers)
    repelling = (everyone if generated_negatives is None else generated_negatives, generated_weights)
    num_self = fixed.shape[1] if generated_negatives is None else 0
    sets = (repelling, (detached, None), (unconditional, unconditional_weights), (positives, positive_weights))
    problem = _problem(fixed, sets, num_self=num_self, peers=None if population is None else peers)
    smallest = _SMALLEST_DISTANCE if normalize_features else 0.0
    scaled = open_row_scaled(field, problem, detached, smallest=smallest, memory=memory) if scale_per_row else None
    drifts = scaled or open_drifts(field, problem, smallest=smallest, memory=memory)
    feature_scale = _feature_scale(drifts, problem, scale, peers) if normalize_features else fixed.new_ones(())
    unit = (feature_scale / fixed.shape[-1] ** 0.5).clamp(min=_SMALLEST_SCALE) if normalize_features else feature_scale
    row_scale = None if scaled is None else scaled.scale_rows(feature_scale, smallest=_SMALLEST_SCALE)
    kernels = [float(temperature) for temperature in temperatures]
    kernels = kernels if temperature_factor is None else multiplied(kernels, temperature_factor, like=fixed)
    bandwidths = _bandwidths(feature_scale, kernels)
    spread, batch = field_statistics(drifts, field, problem, bandwidths) if statistics else None, None
    if statistics and statistics != "field":
        scaling = Scaling(kernels, normalize_features, _SMALLEST_SCALE, _SMALLEST_DISTANCE, scale_per_row)
        batch = batch_statistics(field, scaling, replace(problem, generated=full_precision(everyone), peers=None))
    slope = temperature_slope(problem, bandwidths, smallest=smallest, row_scale=row_scale) if learn_temperature else None
    norms = _norms(drifts.root_mean_squares(bandwidths) / unit, temperatures, drift_norms, peers)
    factors = torch.stack(list(norms.values())).clamp(min=_SMALLEST_DRIFT_NORM).rsqrt()
    total = drifts.total(factors if normalize_drift else torch.ones_like(factors))
    total = total if drift_clip is None else _clipped(total, unit, drift_clip)
    features = features if row_scale is None else features / row_scale
    everywhere = (_mean_of_each(peers, spread), _mean_of_each(peers, batch), None if slope is None else mean_over(peers, slope))
    return DriftLoss(_Regression.apply(features, total, unit), feature_scale, norms, *everywhere)


class _Regression(torch.autograd.Function):
    """mean || x - stopgrad(x + V) ||^2 / unit^2 of each group: the residual is V itself, so no digits are lost in x."""

    @staticmethod
    def forward(ctx: Any, features: Float[Tensor, "g n d"], drift: Float[Tensor, "g n d"], unit: Tensor) -> Float[Tensor, " g"]:
        ctx.save_for_backward(drift, unit)
        return torch.linalg.vector_norm(drift, dim=2).square().mean(1) / drift.shape[2] / unit.square()

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, " g"]) -> tuple[Float[Tensor, "g n d"], None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        drift, unit = ctx.saved_tensors
        return drift * (gradient * (-2 / drift[0].numel()) / unit.square())[:, None, None], None, None


@dataclass(frozen=True)
class FeatureLoss:
    """The result of `DriftingLoss`: the scalar to minimize, and feature name -> `DriftLoss`."""

    loss: Float[Tensor, ""]
    features: dict[str, DriftLoss]


class DriftingLoss(nn.Module):
    """The drifting loss of one tensor or of named feature maps: the sum over features of the mean over groups.

    Every location of a map is a group of its own; locations are never mixed.

    Args:
        temperatures, field, normalize_features, normalize_drift, scale_per_row, drift_clip: as in `drifting_loss`.

    Source: paper, appendix A.5 and A.6.
    """

    def __init__(
        self,
        *,
        temperatures: Sequence[float] = TEMPERATURES,
        field: Field = FIELD_OF_THE_RELEASE,
        normalize_features: bool = True,
        normalize_drift: bool = True,
        scale_per_row: bool = False,
        drift_clip: float | None = None,
    ) -> None:
        super().__init__()
        check_loss(temperatures, drift_clip, field)
        self.temperatures = tuple(float(temperature) for temperature in temperatures)
        self.settings = {
            "temperatures": self.temperatures,
            "field": field,
            "normalize_features": normalize_features,
            "normalize_drift": normalize_drift,
            "scale_per_row": scale_per_row,
            "drift_clip": drift_clip,
            "memory": pairwise.Memory(),
        }

    @property
    def field(self) -> Field:
        """The drift field of this loss."""
        return self.settings["field"]

    @not_compiled
    def forward(
        self,
        generated: Features,
        positives: Features,
        unconditional: Features | None = None,
        *,
        labels: Tensor | tuple[Tensor, Tensor] | None = None,
        generated_negatives: Features | None = None,
        detached: Features | None = None,
        weights: Mapping[str, Float[Tensor, "..."]] | None = None,
        known: Mapping[str, DriftLoss] | None = None,
        **options: Any,
    ) -> FeatureLoss:
        """Return the loss over all features, with a report for each.

        Features are a tensor or a dict of named tensors: [n, d] for one population, [l, n, d] for one population per label, or
        [l, n, k, d] by name, for k locations. The report of a tensor without a name is called "sample".

        A labeled batch is flat, [b, d] or by name [b, k, d], and comes with `labels`; every class is then a population. Classes
        may have different numbers of samples: scale and drift norms are means over all of them, and every generated sample counts
        once. A class with a single generated sample has no negatives, so its drift is 0 without an affinity floor.

        `torch.compile` does not compile this loss but runs it eagerly. Leave it out of a step compiled with `fullgraph=True`.

        Args:
            generated: features of the generated samples of each label.
            positives: the same for real samples of the label.
            unconditional: the same for real samples of any label, for guidance.
            labels: the class of each sample of a flat batch, or a pair (classes of the generated samples, classes of the
                positives). Positives of classes that were not generated are ignored.
            generated_negatives: the same for an independent generated batch that repels instead of `generated`.
            detached: the same for further generated samples that only repel.
            weights: any of "generated", "positive" and "unconditional" -> weight of each sample, as in `drifting_loss`.
            known: reports of the whole batch, whose `scale` and `drift_norms`, if any, replace those of this part.
            options: `statistics` and `peers`, as in `drifting_loss`, and `population`, the features of the generated samples of all
                peers, if the samples of a label are split over them. With peers, the loss of a step is the mean over processes.

        Raises:
            InputError: if the names of the features differ, the shapes do not match, or a class has no positives.
        """
        if labels is not None:
            rest = (unconditional, generated_negatives, detached, weights, known)
            if any(value is not None for value in rest) or options:
                raise InputError("labels go with generated and positives only: for other arguments pass features [labels, n, d]")
            from drifting.labeled_batch import loss_of_labels

            return loss_of_labels(self, generated, positives, labels)
        ours, real = feature_maps(generated), feature_maps(positives)
        others = {"unconditional": unconditional, "generated_negatives": generated_negatives, "detached": detached}
        others["population"] = options.pop("population", None)
        further = {key: feature_maps(value) for key, value in others.items() if value is not None}
        check_feature_maps(ours, real, *further.values(), known)
        if unknown := set(weights or ()) - {"generated", "positive", "unconditional"}:
            raise InputError(f"weights are named {sorted(unknown)}: name them generated, positive and unconditional")
        reports = {}
        for name, features in ours.items():
            locations = features.shape[2]
            per_group = {
                f"{key}_weights": torch.atleast_2d(value).repeat_interleave(locations, 0) for key, value in (weights or {}).items()
            }
            elsewhere = {} if known is None else {"scale": known[name].scale, "drift_norms": known[name].drift_norms or None}
            reports[name] = drifting_loss(
                _as_groups(features),
                _as_groups(real[name]),
                **{key: _as_groups(value[name]) for key, value in further.items()},
                **options,
                **self.settings,
                **per_group,
                **elsewhere,
            )
        total = torch.stack([report.loss.mean() for report in reports.values()]).sum()
        return FeatureLoss(loss=total, features=reports)

    if TYPE_CHECKING:
        __call__ = forward


def mean_over(peers: Peers | None, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the mean of every element over the processes, or `value` itself if there is only one process."""
    return value if peers is None else peers.all_reduce_sum(value) / peers.size


def _population(fixed: Float[Tensor, "g n d"], population: Tensor | None, peers: Peers | None) -> Float[Tensor, "g N d"]:
    """Return the generated samples of all processes: `population` if there is one, else `fixed`."""
    if fixed.ndim != 3:
        raise InputError(f"generated has shape {tuple(fixed.shape)}: pass [g, n, d], with g = 1 for a single problem")
    if population is None:
        return fixed
    if peers is None:
        raise InputError("population is given without peers: pass the processes over which its samples are split")
    expected = tuple(peers.size * size if axis == 1 else size for axis, size in enumerate(fixed.shape))
    if population.shape != expected:
        raise InputError(f"population has shape {tuple(population.shape)}: pass {expected}, the samples of {peers.size} processes")
    return population


def _problem(
    fixed: Float[Tensor, "g n d"], sets: Sequence[tuple[Tensor | None, Tensor | None]], *, num_self: int, peers: Peers | None
) -> Problem:
    """Return the problem of a call, from (samples, weights) of every set; the last two are unconditional and positives."""
    full = [(full_precision(samples.detach()), weights) for samples, weights in sets if samples is not None]
    check_shapes(fixed, *(samples for samples, _ in full))
    first, *further, positives = (samples for samples, _ in full)
    # The backends take the generated samples and one more set.
    negatives = [first, torch.cat(further, 1)] if len(further) > 1 else [first, *further]
    unconditional = sets[-2][0]
    last = 0 if unconditional is None else unconditional.shape[1]
    return Problem(fixed, negatives, positives, join_weights(*full), num_self, peers, num_unconditional=last)


def _as_groups(features: Float[Tensor, "l n k d"]) -> Float[Tensor, "l*k n d"]:
    return features.transpose(1, 2).flatten(0, 1)


def _feature_scale(drifts: Drifts, problem: Problem, known: Tensor | float | None, peers: Peers | None) -> Float[Tensor, ""]:
    """Return the known scale, or mean(distance * weight) / mean(weight) over all groups, rows and targets of all processes,
    including self-distances.
    """
    if known is not None:
        return torch.as_tensor(known).to(problem.generated).detach()
    mean, weights = drifts.mean_distance(), problem.weights
    if weights is None:
        return mean_over(peers, mean)
    above, below = mean_over(peers, torch.stack([mean, weights.mean()]))
    return above / below.clamp(min=torch.finfo(weights.dtype).tiny)


def _bandwidths(scale: Float[Tensor, ""], temperatures: Sequence[float | Tensor]) -> Float[Tensor, " t"]:
    """Return the temperatures in the units of the features."""
    # A tensor of temperatures would have to be moved to the device, which waits for it, once per feature.
    smallest = scale.clamp(min=_SMALLEST_SCALE)
    return torch.stack([smallest * temperature for temperature in temperatures])


def _clipped(total: Float[Tensor, "g n d"], unit: Float[Tensor, ""], largest: float) -> Float[Tensor, "g n d"]:
    """Return the drifts, those whose root mean square over the channels exceeds the largest one in this unit shortened to it."""
    sizes = torch.linalg.vector_norm(total, dim=2, keepdim=True) / total.shape[2] ** 0.5
    return total * (largest * unit / sizes).clamp(max=1)


def _norms(
    sizes: Float[Tensor, " t"], temperatures: Sequence[float], known: Mapping[float, Tensor] | None, peers: Peers | None
) -> dict[float, Tensor]:
    """Return the mean square of the drift at each temperature, from its root, or the known ones."""
    if known is None:
        return dict(zip(map(float, temperatures), mean_over(peers, sizes.square()).unbind(), strict=True))
    missing = [float(temperature) for temperature in temperatures if float(temperature) not in known]
    if missing:
        raise InputError(f"drift_norms has no entry for temperature {missing[0]}: pass one for each of {tuple(temperatures)}")
    return {float(temperature): torch.as_tensor(known[float(temperature)]).to(sizes).detach() for temperature in temperatures}


def _mean_of_each(peers: Peers | None, values: Any) -> Any:
    return None if values is None else type(values)(*(mean_over(peers, value) for value in values))
