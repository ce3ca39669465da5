"""The authors' published weights: read their artifacts as networks of this library, and write networks as artifacts."""

from drifting.hub.artifact import (
    PUBLISHED,
    Artifact,
    artifact_folder,
    load_encoder,
    load_generator,
    read_artifact,
    write_artifact,
)
from drifting.hub.release_format import build_network, metadata_of

__all__ = [
    "PUBLISHED",
    "Artifact",
    "artifact_folder",
    "build_network",
    "load_encoder",
    "load_generator",
    "metadata_of",
    "read_artifact",
    "write_artifact",
]
