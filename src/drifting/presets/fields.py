"""Named drift fields with the settings that go with them, for comparisons on equal terms."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drifting._checks import nearest_name
from drifting.config import RunConfig
from drifting.errors import InputError
from drifting.fields import DriftField, EnergyDistance, KernelGradient, Lookahead, MaximumMeanDiscrepancy, MeanShift, Sinkhorn
from drifting.presets.settings import adjust


@dataclass(frozen=True)
class FieldChoice:
    """A drift field, or an option of the training, as a change of a preset.

    Attributes:
        what: what it is, for tables.
        field: the drift field; None for that of the preset.
        settings: further settings by their dotted names, see `presets.adjust`.
    """

    what: str
    field: DriftField | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def apply(self, config: RunConfig) -> RunConfig:
        """Return a configuration with this field and these settings."""
        if self.field is not None:
            config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, field=self.field))
        return adjust(config, **self.settings) if self.settings else config


# Without the affinity floor of the release, with which every class would end at its mean.
PAPER = MeanShift(affinity_floor=0.0)
# The fields of presets that were found better with a lookahead, see docs/fields.md.
AHEAD, TWICE_AHEAD = Lookahead(field=PAPER), Lookahead(field=PAPER, lookahead_steps=2)

_SECOND_BATCH = {"schedule.independent_negatives": True}

FIELDS: Mapping[str, FieldChoice] = {
    "preset": FieldChoice("the field that the preset has"),
    "mean-shift": FieldChoice("the paper's field", PAPER),
    "release": FieldChoice("the same with the affinity floor of the authors' release", MeanShift(affinity_floor=1e-6)),
    "gaussian": FieldChoice("a Gaussian kernel", MeanShift(kernel="gaussian")),
    "matern32": FieldChoice("a Matern kernel of order 3/2", MeanShift(kernel="matern32")),
    "matern52": FieldChoice("a Matern kernel of order 5/2", MeanShift(kernel="matern52")),
    "rows": FieldChoice("affinities normalized over rows alone", MeanShift(normalization="rows")),
    "bias-corrected": FieldChoice("centroids corrected for few samples (ABC)", MeanShift(bias_correction=True)),
    "repulsion": FieldChoice("the paper's field with 3 % more repulsion", MeanShift(affinity_floor=0.0, repulsion=1.03)),
    "balanced": FieldChoice(
        "the paper's field with a repulsion that follows the diversity", MeanShift(affinity_floor=0.0, balance=1.0)
    ),
    "lookahead": FieldChoice("the drifts of one further move", AHEAD),
    "lookahead-2": FieldChoice("the drifts of two further moves", TWICE_AHEAD),
    "lookahead-shared": FieldChoice("those of one move that all temperatures share", Lookahead(field=PAPER, shared_moves=True)),
    "energy-distance": FieldChoice("the gradient of the energy distance", EnergyDistance()),
    "mmd": FieldChoice("the gradient of a maximum mean discrepancy", MaximumMeanDiscrepancy()),
    "kernel-gradient": FieldChoice("the difference of the scores of kernel densities", KernelGradient()),
    "sinkhorn": FieldChoice(
        "entropic transport, with a second generated batch", Sinkhorn(), {"loss.temperatures": (0.05,), **_SECOND_BATCH}
    ),
    "sinkhorn-masked": FieldChoice("the same against the other samples of the batch", Sinkhorn(), {"loss.temperatures": (0.05,)}),
    "sinkhorn-own": FieldChoice(
        "the gradient of the Sinkhorn divergence of the batch", Sinkhorn(mask_self=False), {"loss.temperatures": (0.05,)}
    ),
    "second-batch": FieldChoice("the paper's field, repelled by a second generated batch", PAPER, _SECOND_BATCH),
    "sobol-noise": FieldChoice("the paper's field, with noise that covers its space evenly", PAPER, {"schedule.noise": "sobol"}),
    "detached": FieldChoice("the paper's field, with 192 more samples that repel", PAPER, {"schedule.detached_samples": 192}),
    "clipped": FieldChoice("the paper's field, with drifts of limited length", PAPER, {"loss.drift_clip": 3.0}),
    "annealed": FieldChoice("the paper's field, at falling temperatures", PAPER, {"schedule.temperature_factors": (3.0, 1.0)}),
    "learned-temperature": FieldChoice(
        "the paper's field, at temperatures that are learned", PAPER, {"schedule.temperature_learning_rate": 1e-3}
    ),
    "scale-per-row": FieldChoice(
        "the paper's field, with a scale for each sample",
        PAPER,
        {"loss.scale_per_row": True, "loss.normalize_features": True},
    ),
}


def field_choice(name: str) -> FieldChoice:
    """Return a field by name, or raise InputError with the nearest name."""
    if name not in FIELDS:
        raise InputError(f"fields has '{name}': did you mean '{nearest_name(name, FIELDS)}'? There are {', '.join(FIELDS)}")
    return FIELDS[name]
