"""The authors' published weights on the Hugging Face Hub.

Source: folders `models/{gen,mae}/jax/NAME` of the repository `Goodeat/drifting`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from drifting._checks import nearest_name
from drifting.checkpoint import load_state_dict
from drifting.errors import InputError
from drifting.hub.artifact import METADATA, PARAMETERS, encoder_weights
from drifting.hub.model_config import ENCODER, GENERATOR

REPOSITORY = "Goodeat/drifting"
PREFIX = "hub:"

# Name -> kind.
PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("latent_L_sota", "latent_B_sota", "pixel_L_sota", "pixel_B_sota", "ablation"), GENERATOR),
        **dict.fromkeys(("mae_latent_640", "mae_pixel_640", "mae_latent_256"), ENCODER),
    }
)

# Seconds to wait for an answer of the Hub.
_PATIENCE = 10


def artifact_folder(origin: str) -> Path:
    """Return the folder of the artifact hub:NAME, downloaded if necessary; any other name is returned as a path.

    Raises:
        InputError: if there is no published artifact with this name, or it cannot be downloaded.
    """
    if not origin.startswith(PREFIX):
        return Path(origin)
    name = origin.removeprefix(PREFIX)
    if name not in PUBLISHED:
        raise InputError(f"hub name is '{name}': did you mean '{nearest_name(name, PUBLISHED)}'? There are {', '.join(PUBLISHED)}")
    hub: Any = importlib.import_module("huggingface_hub")
    files = [f"models/{PUBLISHED[name]}/jax/{name}/{file}" for file in (METADATA, PARAMETERS)]
    found = [hub.try_to_load_from_cache(REPOSITORY, file) for file in files]
    if not all(isinstance(path, str) for path in found):
        try:
            # One request first: without a network, the download would retry six times, for half a minute.
            hub.get_hf_file_metadata(hub.hf_hub_url(REPOSITORY, files[0]), timeout=_PATIENCE)
            found = [hub.hf_hub_download(REPOSITORY, file) for file in files]
        except Exception as error:  # every layer below (HTTP, Hub, disk) raises its own kinds
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(
                f"'{origin}' cannot be downloaded ({reason}): check the network, or name a downloaded folder"
            ) from None
    return Path(found[-1]).parent


def read_weights(origin: str) -> Mapping[str, Tensor]:
    """Return the weights of an encoder from a file, a folder of an artifact, or hub:NAME."""
    place = artifact_folder(origin)
    return encoder_weights(place) if place.is_dir() else load_state_dict(place)
