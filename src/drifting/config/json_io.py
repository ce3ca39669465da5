"""A configuration as JSON, and back."""

import dataclasses
from typing import Any

from drifting._json import read_value
from drifting.config.run import AnyConfig, ReleasedConfig
from drifting.errors import InputError

VERSION = 1
SavedConfig = AnyConfig | ReleasedConfig


def to_json(config: SavedConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, with its version; the class of every part stands beside its values, as "type"."""
    values: dict[str, Any] = {"version": VERSION, "type": type(config).__name__, **dataclasses.asdict(config)}
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if dataclasses.is_dataclass(part):
            values[field.name] = {"type": type(part).__name__, **values[field.name]}
    return values


def from_json(values: Any, origin: str) -> SavedConfig:
    """Return the configuration written by `to_json`; raises InputError if it is of a newer version or not one at all."""
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is not int:
        raise InputError(f"configuration '{origin}' has no version: name the folder of a run made by drifting")
    if version > VERSION:
        raise InputError(f"configuration '{origin}' has version {version}, newer than {VERSION}: update drifting to read it")
    try:
        return read_value(SavedConfig, {name: value for name, value in values.items() if name != "version"}, "")
    except InputError as error:
        raise InputError(f"configuration '{origin}' is damaged ({error}): restore it or train again") from None
