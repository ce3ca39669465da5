"""A network of the authors' release in a folder of ours."""

from dataclasses import dataclass
from typing import Any

from drifting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReleasedConfig:
    """A converted artifact: config.json stands beside generator.safetensors or encoder.safetensors.

    Attributes:
        metadata: the artifact's metadata.json, whole, from which the network is built; see `official.build_network`.
    """

    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise InputError unless there is metadata."""
        if not isinstance(self.metadata, dict):
            raise InputError(f"metadata is {self.metadata!r}: convert the artifact again")
