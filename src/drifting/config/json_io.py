"""A configuration as JSON, and back."""

import dataclasses
from typing import Any

from drifting._json import read_value
from drifting.config.run import AnyConfig, ReleasedConfig
from drifting.errors import InputError

# 2: the drift field holds its own parameters; before, `affinity_floor` was the loss's.
VERSION = 2
# Settings that earlier versions saved under another name -> their name now.
RENAMED = {
    "micro_batch": "microbatch_size",
    "labels_per_pass": "labels_per_microbatch",
    "checkpointing": "gradient_checkpointing",
    "unguided_share": "unguided_prob",
    "colour": "color",
    "grey": "gray",
    "centre": "center",
    "normalise": "normalize",
    "normalised": "normalized",
    "frames": "snapshots",
    "frame_samples": "snapshot_samples",
}
SavedConfig = AnyConfig | ReleasedConfig


def to_json(config: SavedConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, with its version and, as "type", the class of every part."""
    return {"version": VERSION, **_with_types(config, dataclasses.asdict(config))}


def _with_types(part: Any, values: dict[str, Any]) -> dict[str, Any]:
    inside = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    parts = {name: _with_types(value, values[name]) for name, value in inside.items() if dataclasses.is_dataclass(value)}
    return {"type": type(part).__name__, **values, **parts}


def from_json(values: Any, origin: str) -> SavedConfig:
    """Return the configuration written by `to_json`, or raise InputError if it is damaged or of a newer version."""
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is not int:
        raise InputError(f"configuration '{origin}' has no version: name the folder of a run made by drifting")
    if version > VERSION:
        raise InputError(f"configuration '{origin}' has version {version}, newer than {VERSION}: update drifting to read it")
    try:
        return read_value(SavedConfig, _moved(_renamed({name: value for name, value in values.items() if name != "version"})), "")
    except InputError as error:
        raise InputError(f"configuration '{origin}' is damaged ({error}): restore it or train again") from None


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration and its parts with the present names of the settings."""
    if values.get("type") == "ReleasedConfig":
        return values
    parts = {name: _renamed(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {new if (new := RENAMED.get(name, name)) not in parts else name: value for name, value in parts.items()}


def _moved(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an earlier version with each setting in its present part."""
    loss = values.get("loss")
    if isinstance(loss, dict) and "affinity_floor" in loss and "field" not in loss:
        floor, rest = loss["affinity_floor"], {name: value for name, value in loss.items() if name != "affinity_floor"}
        return {**values, "loss": {**rest, "field": {"type": "MeanShift", "affinity_floor": floor}}}
    return values
