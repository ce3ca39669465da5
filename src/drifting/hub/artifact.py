"""The authors' artifacts: a folder with `ema_params.msgpack`, a tree of arrays, and `metadata.json`, which describes the network.

An artifact is a folder, or "hub:NAME": one that the authors published on the Hugging Face Hub.

Source: files of the authors' release; the published artifacts are the folders `models/{gen,mae}/jax/NAME` of the repository
`Goodeat/drifting`.
"""

import functools
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from drifting._checks import nearest_name
from drifting._files import atomic_path
from drifting._json import load_json
from drifting._torch import shapes_only
from drifting.checkpoint import check_finite, different_names, load_state_dict, shapes_of_network
from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.mae_features import MAEFeatures
from drifting.errors import InputError, reason
from drifting.generators.dit import DiT
from drifting.hub.msgpack_tree import Array, read_tree, write_tree
from drifting.hub.release_format import ENCODER, GENERATOR, Metadata, Place, build_network, places
from drifting.nn import Attention

Network = DiT | MaskedAutoencoder
PARAMETERS, METADATA = "ema_params.msgpack", "metadata.json"
_NOUNS = {GENERATOR: "a generator", ENCODER: "an encoder"}

# The array whose length along an axis is the number of classes, and the axis.
_CLASSES = {GENERATOR: ("Embed_0/embedding", 0), ENCODER: ("fc/kernel", 1)}

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


@dataclass(frozen=True, kw_only=True)
class ReleasedConfig:
    """Configuration of a converted artifact, beside generator.safetensors or encoder.safetensors.

    Attributes:
        metadata: content of the artifact's metadata.json, from which the network is built; see `build_network`.
    """

    noun: ClassVar[str] = "converted artifact"

    metadata: dict[str, Any]

    @property
    def released_as(self) -> str:
        """Kind of the network in the release: "gen" or "mae"."""
        return str(self.metadata.get("kind"))


@dataclass(frozen=True)
class Artifact:
    """An artifact whose arrays have the names and shapes required by its metadata.

    Attributes:
        folder: folder of the artifact.
        metadata: content of metadata.json: kind and model_config.
        arrays: name in the release -> position in the file.
        places: our name of a weight -> its place in the arrays.
    """

    folder: Path
    metadata: Metadata
    arrays: Mapping[str, Array]
    places: Mapping[str, Place]

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the weights; None without classes."""
        return _classes_of(self.metadata["kind"], self.arrays)

    def described(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return dtype and shape of our weights by their names."""
        return {name: (self.arrays[place.released[0]].dtype, place.shape) for name, place in self.places.items()}

    def read(self, name: str) -> Tensor:
        """Return a weight by our name, in the precision of the file, or raise InputError if it is not finite."""
        place = self.places[name]
        parts = {part: self.arrays[part].read() for part in place.released}
        for part, values in parts.items():
            if not bool(values.isfinite().all()):
                raise InputError(
                    f"weights of '{self.folder / PARAMETERS}' are not finite in '{part}': download or convert them again"
                )
        return place.to_ours(list(parts.values()))

    def network(self) -> Network:
        """Return the network with these weights, in float32 and in evaluation mode."""
        return with_weights(self.metadata, str(self.folder), self.num_classes, ((name, self.read(name)) for name in self.places))


def read_artifact(folder: str | Path) -> Artifact:
    """Return an artifact of the release.

    Raises:
        InputError: if a file is missing or damaged, the metadata describe no supported network, or arrays are missing, unknown or
            of another shape.
    """
    folder = Path(folder)
    if not (folder / METADATA).is_file():
        raise InputError(f"artifact is '{folder}', which holds no {METADATA}: name a folder of {PARAMETERS} and {METADATA}")
    metadata = load_json(folder / METADATA, fix="download or convert it again")
    if not isinstance(metadata, dict):
        raise InputError(f"metadata of '{folder}' is a {type(metadata).__name__}: pass an object with kind and model_config")
    arrays = read_tree(folder / PARAMETERS)
    classes = _classes_of(metadata.get("kind"), arrays)
    network = shapes_of_network(lambda: build_network(metadata, str(folder), classes), len(arrays), folder / PARAMETERS)
    found = {place.name: place for place in places(network)}
    _check_arrays(folder / PARAMETERS, arrays, found)
    return Artifact(folder, metadata, arrays, found)


def write_artifact(folder: Path, metadata: Metadata, network: Network, read: Callable[[str], Tensor]) -> None:
    """Write an artifact of the release, one weight in memory at a time.

    Args:
        folder: folder of the artifact.
        metadata: kind and model_config.
        network: the network that the metadata describe; its weights are not used.
        read: returns a weight by our name.
    """
    parts = {part: (place, index) for place in places(network) for index, part in enumerate(place.released)}
    # Parts of the same weight are consecutive.
    kept = functools.lru_cache(maxsize=1)(read)
    write_tree(folder / PARAMETERS, parts, lambda part: parts[part][0].to_release(kept(parts[part][0].name))[parts[part][1]])
    with atomic_path(folder / METADATA) as scratch:
        scratch.write_text(json.dumps(metadata, indent=1))


def with_weights(metadata: Metadata, origin: str, num_classes: int | None, weights: Iterable[tuple[str, Tensor]]) -> Network:
    """Return the network of the metadata with weights by our names, in float32 and in evaluation mode; see `build_network`."""
    # Built on meta, because drawing initial weights would take longer than reading these.
    with shapes_only():
        network = build_network(metadata, origin, num_classes)
    loaded = {name: value.float().contiguous() for name, value in weights}
    check_finite(loaded.items(), origin)
    network.load_state_dict(loaded, assign=True)
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_angles()
    return network.eval()


def load_generator(folder: str | Path) -> DiT:
    """Return the generator of an artifact: generator(noise, labels, guidance_scale, style_indices=None), channels first.

    Raises:
        InputError: as in `read_artifact`, or if it is an encoder.
    """
    return cast(DiT, _of_kind(folder, GENERATOR).network())


def load_encoder(folder: str | Path) -> MAEFeatures:
    """Return the feature encoder of an artifact: images, channels first -> features with the names of the release.

    Images can have any size that the patches divide; features whose windows do not divide a map are left out.

    Raises:
        InputError: as in `read_artifact`, or if it is a generator.
    """
    return MAEFeatures(cast(MaskedAutoencoder, _of_kind(folder, ENCODER).network()))


def _of_kind(folder: str | Path, kind: str) -> Artifact:
    artifact = read_artifact(folder)
    found = artifact.metadata["kind"]
    if found != kind:
        raise InputError(f"artifact is '{folder}', {_NOUNS[found]}: name {_NOUNS[kind]}, or load it as such")
    return artifact


def _classes_of(kind: object, arrays: Mapping[str, Array]) -> int | None:
    name, axis = _CLASSES.get(str(kind), ("", 0))
    return arrays[name].shape[axis] if name in arrays and len(arrays[name].shape) == 2 else None


def _check_arrays(path: Path, arrays: Mapping[str, Array], found: Mapping[str, Place]) -> None:
    """Raise InputError naming the first two arrays that are missing, unknown or of another shape."""
    expected = {name: shape for place in found.values() for name, shape in place.released_shapes().items()}
    wrong = different_names(arrays, expected)
    both = [name for name in expected if name in arrays]
    wrong += [f"{name} is {arrays[name].shape}, not {expected[name]}" for name in both if arrays[name].shape != expected[name]]
    for place in found.values():
        if len({arrays[name].dtype for name in place.released if name in arrays}) > 1:
            wrong.append(f"{place.released[0]} and the other parts of this weight differ in precision")
    if wrong:
        more = f"; {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise InputError(f"weights of '{path}' do not fit its {METADATA} ({'; '.join(wrong[:2])}{more}): use those of this network")


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
            fix = "check the network, or name a downloaded folder"
            raise InputError(f"'{origin}' cannot be downloaded ({reason(error)}): {fix}") from None
    return Path(found[-1]).parent


def read_weights(origin: str) -> Mapping[str, Tensor]:
    """Return the weights of an encoder by our names, from a file or, in float32, from a folder of an artifact or hub:NAME."""
    place = artifact_folder(origin)
    if not place.is_dir():
        return load_state_dict(place)
    artifact = _of_kind(place, ENCODER)
    return {name: artifact.read(name).float() for name in artifact.places}
