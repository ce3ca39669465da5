"""A network of the authors' release in a folder of ours."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ReleasedConfig:
    """A converted artifact: config.json stands beside generator.safetensors or encoder.safetensors.

    Attributes:
        metadata: the artifact's metadata.json, whole, from which the network is built; see `hub.build_network`.
    """

    metadata: dict[str, Any]
