"""The configuration of a run: frozen, complete and JSON, written into the run folder and into every checkpoint.

`run` says what there is, `json_io` turns it into JSON and back, `build` makes everything from it. What a configuration is made of
stands beside its parts: in `data`, `encoders` and `generators`.
"""

from drifting.config.build import build_encoder, build_generator, build_loss, build_network, build_positives, resolve
from drifting.config.encoders import find_weights, with_weights
from drifting.config.json_io import VERSION, SavedConfig, from_json, to_json
from drifting.config.run import AnyConfig, ClassifierConfig, EncoderRunConfig, LossConfig, ReleasedConfig, RunConfig

__all__ = [
    "VERSION",
    "AnyConfig",
    "ClassifierConfig",
    "EncoderRunConfig",
    "LossConfig",
    "ReleasedConfig",
    "RunConfig",
    "SavedConfig",
    "build_encoder",
    "build_generator",
    "build_loss",
    "build_network",
    "build_positives",
    "find_weights",
    "from_json",
    "resolve",
    "to_json",
    "with_weights",
]
