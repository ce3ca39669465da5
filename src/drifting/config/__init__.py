"""The configuration of a run: frozen, complete and JSON, written into the run folder and into every checkpoint.

`data`, `networks` and `schema` say what there is, `serial` turns it into JSON and back, `build` makes everything from it and
`report` what it shows.
"""

from drifting.config.build import (
    build_encoder,
    build_export,
    build_generator,
    build_loss,
    build_network,
    build_positives,
    build_source,
    load_labelled,
    load_split,
    resolve,
)
from drifting.config.data import (
    DigitsData,
    ImageFilesData,
    ImagesData,
    LatentsData,
    PointsData,
    ToyData,
)
from drifting.config.networks import (
    AutoencoderConfig,
    DecoderMLPConfig,
    DiTConfig,
    MAEConfig,
    MLPConfig,
    PixelsConfig,
    ResNetConfig,
    SimCLRConfig,
    UNetConfig,
)
from drifting.config.released import ReleasedConfig
from drifting.config.report import build_evaluation, build_pictures
from drifting.config.schema import (
    AnyConfig,
    BankConfig,
    ClassifierConfig,
    EncoderRunConfig,
    LossConfig,
    RunConfig,
)
from drifting.config.serial import VERSION, SavedConfig, from_json, to_json
from drifting.data.pixels import to_bytes, to_signed

__all__ = [
    "VERSION",
    "AnyConfig",
    "AutoencoderConfig",
    "BankConfig",
    "ClassifierConfig",
    "DecoderMLPConfig",
    "DiTConfig",
    "DigitsData",
    "EncoderRunConfig",
    "ImageFilesData",
    "ImagesData",
    "LatentsData",
    "LossConfig",
    "MAEConfig",
    "MLPConfig",
    "PixelsConfig",
    "PointsData",
    "ReleasedConfig",
    "ResNetConfig",
    "RunConfig",
    "SavedConfig",
    "SimCLRConfig",
    "ToyData",
    "UNetConfig",
    "build_encoder",
    "build_evaluation",
    "build_export",
    "build_generator",
    "build_loss",
    "build_network",
    "build_pictures",
    "build_positives",
    "build_source",
    "from_json",
    "load_labelled",
    "load_split",
    "resolve",
    "to_bytes",
    "to_json",
    "to_signed",
]
