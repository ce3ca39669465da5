"""A configuration as JSON, and back."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

from drifting.config.data import Data
from drifting.config.networks import Encoder, Generator, LoneEncoder
from drifting.config.released import ReleasedConfig
from drifting.config.schema import AnyConfig, BankConfig, LossConfig
from drifting.errors import InputError
from drifting.training.schedule import Schedule

VERSION = 1

SavedConfig = AnyConfig | ReleasedConfig

# Fields that hold one of several classes, with its name beside its values.
_CHOICES: dict[str, tuple[type, ...]] = {
    "data": get_args(Data),
    "generator": get_args(Generator),
    "encoder": get_args(Encoder | LoneEncoder),
    "bank": (BankConfig,),
    "loss": (LossConfig,),
    "schedule": (Schedule,),
}


def to_json(config: SavedConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, with its version."""
    values: dict[str, Any] = {"version": VERSION, "type": type(config).__name__, **dataclasses.asdict(config)}
    for name in _CHOICES:
        if values.get(name) is not None:
            values[name] = {"type": type(getattr(config, name)).__name__, **values[name]}
    return values


def from_json(values: dict[str, Any], origin: str) -> SavedConfig:
    """Return the configuration written by `to_json`; raises InputError if it is of a newer version or not one at all."""
    version = values.get("version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise InputError(f"configuration '{origin}' has no version: name the folder of a run made by drifting")
    if version > VERSION:
        raise InputError(f"configuration '{origin}' has version {version}, newer than {VERSION}: update drifting to read it")
    try:
        fields = {name: value for name, value in values.items() if name != "version"}
        for name, kinds in _CHOICES.items():
            if fields.get(name) is not None:
                fields[name] = _of_type(fields[name], kinds)
        return _of_type(fields, get_args(SavedConfig))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"configuration '{origin}' is damaged ({error}): restore it or train again") from None


def _of_type(values: dict[str, Any], kinds: Sequence[type]) -> Any:
    kind = {kind.__name__: kind for kind in kinds}[values["type"]]
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name != "type"}
    return kind(**fields)
