"""The configuration of a run: frozen, complete, and saved as JSON in the run folder and in every checkpoint.

`run` says what there is and builds it, `json_io` turns it into JSON and back. What a configuration is made of stands beside its
parts: in `data`, `encoders` and `generators`.
"""

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
    "from_json",
    "to_json",
]
