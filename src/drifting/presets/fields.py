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


FIELDS: Mapping[str, FieldChoice] = {
    "mean-shift": FieldChoice("the paper's field", MeanShift(affinity_floor=0.0)),
    "release": FieldChoice("the paper's field with the affinity floor of the authors' release", MeanShift(affinity_floor=1e-6)),
    "gaussian": FieldChoice("the paper's field with a Gaussian kernel", MeanShift(kernel="gaussian")),
    "rows": FieldChoice("the paper's field, normalized over the targets of each row alone", MeanShift(normalization="rows")),
    "abc": FieldChoice("the paper's field with centroids corrected for few samples", MeanShift(bias_correction=True)),
    "lookahead": FieldChoice("the paper's field, and the drift after it", Lookahead(MeanShift())),
    "energy-distance": FieldChoice("the gradient of the energy distance", EnergyDistance()),
    "mmd": FieldChoice("the gradient of the maximum mean discrepancy, Gaussian kernel", MaximumMeanDiscrepancy()),
    "score": FieldChoice("the difference of the scores of two kernel densities, Gaussian kernel", KernelGradient()),
    "sinkhorn": FieldChoice(
        "entropic transport to data minus that to a second generated batch", Sinkhorn(), {"schedule.independent_negatives": True}
    ),
    "sinkhorn-masked": FieldChoice("entropic transport to data minus that to the other samples of the batch", Sinkhorn()),
    "second-batch": FieldChoice(
        "the paper's field, repelled by a second generated batch",
        MeanShift(affinity_floor=0.0),
        {"schedule.independent_negatives": True},
    ),
}


def field_choice(name: str) -> FieldChoice:
    """Return a field by name, or raise InputError with the nearest name."""
    if name not in FIELDS:
        raise InputError(f"fields has '{name}': did you mean '{nearest_name(name, FIELDS)}'? There are {', '.join(FIELDS)}")
    return FIELDS[name]
