"""The configuration of a run: frozen, complete and JSON, written into the run folder and into every checkpoint.

`data`, `networks` and `run` say what there is, `json_io` turns it into JSON and back, `sources` opens the data, `build` makes
everything else from it, `export` what becomes of its samples.
"""

from drifting.config.build import (
    build_encoder,
    build_generator,
    build_loss,
    build_network,
    resolve,
)
from drifting.config.data import (
    DigitsData,
    ImageFilesData,
    ImagesData,
    LatentsData,
    PointsData,
    StreamedData,
    ToyData,
)
from drifting.config.encoders import find_weights, with_weights
from drifting.config.export import Decoder, build_decoder, build_export, exported_shape
from drifting.config.found import found_lines
from drifting.config.json_io import VERSION, SavedConfig, from_json, to_json
from drifting.config.run import AnyConfig, BankConfig, ClassifierConfig, EncoderRunConfig, LossConfig, ReleasedConfig, RunConfig
from drifting.config.sources import (
    build_positives,
    build_source,
    check_data,
    find_images,
    forget_data,
    load_labelled,
    load_split,
    open_files,
    open_latents,
    open_rows,
    open_vae,
)
from drifting.data.pixels import to_bytes, to_signed

__all__ = [
    "VERSION",
    "AnyConfig",
    "BankConfig",
    "ClassifierConfig",
    "Decoder",
    "DigitsData",
    "EncoderRunConfig",
    "ImageFilesData",
    "ImagesData",
    "LatentsData",
    "LossConfig",
    "PointsData",
    "ReleasedConfig",
    "RunConfig",
    "SavedConfig",
    "StreamedData",
    "ToyData",
    "build_decoder",
    "build_encoder",
    "build_export",
    "build_generator",
    "build_loss",
    "build_network",
    "build_positives",
    "build_source",
    "check_data",
    "exported_shape",
    "find_images",
    "find_weights",
    "forget_data",
    "found_lines",
    "from_json",
    "load_labelled",
    "load_split",
    "open_files",
    "open_latents",
    "open_rows",
    "open_vae",
    "resolve",
    "to_bytes",
    "to_json",
    "to_signed",
    "with_weights",
]
