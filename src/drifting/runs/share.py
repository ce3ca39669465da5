"""Networks of the authors' release as folders of ours, and back; and samples of their generators.

A converted folder holds config.json and generator.safetensors or encoder.safetensors, with the weights under our names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from drifting import config as configuration
from drifting._files import check_writable
from drifting._json import save_json
from drifting._progress import CountProgress
from drifting.checkpoint import check_weights, load_tensors, shapes_of_network, write_tensors
from drifting.config import SavedConfig
from drifting.data.pixels import DEFAULT_VAE, VAE, load_vae, to_bytes
from drifting.distributed import join
from drifting.encoders.mae import MaskedAutoencoder
from drifting.errors import InputError
from drifting.generators.dit import DiT
from drifting.hub import Artifact, artifact_folder, build_network, metadata_of, read_artifact, write_artifact
from drifting.hub.artifact import METADATA, PARAMETERS, PREFIX, Network, ReleasedConfig, with_weights
from drifting.hub.msgpack_tree import DTYPES
from drifting.hub.repository import download_repository, repository_id
from drifting.runs import run as trained
from drifting.runs import samples as files
from drifting.runs.folder import CONFIG, ENCODER_WEIGHTS, SHARED, WEIGHTS
from drifting.sampling import Sampler, check_labels, check_request, label_numbers

_WEIGHTS = {"gen": WEIGHTS, "mae": ENCODER_WEIGHTS}
_WRITTEN = (METADATA, PARAMETERS, CONFIG, WEIGHTS, ENCODER_WEIGHTS)

# Weights that have as many rows as there are classes.
_PER_CLASS = ("condition.classes.weight", "classify.weight")
_LATENT_CHANNELS, _PIXEL_CHANNELS = 4, (1, 3)

# Large networks on few cores: more at once would take memory and save no time.
_BATCH_SIZE = 8


@dataclass(frozen=True)
class ReleasedGenerator(Sampler):
    """A generator of the release, with the auto-encoder that decodes its latents; None for one that makes pixels."""

    generator: DiT
    vae: VAE | None = None
    class_names: None = None

    def _exporter(self) -> Callable[[Tensor], Tensor]:
        def export(samples: Tensor) -> Tensor:
            images = to_bytes(samples) if self.vae is None else _decoded(self.vae, samples)
            return images.movedim(1, -1)

        return export

    def _options(self, seed: int, labels: Sequence[int | str] | None, guidance_scale: float | None) -> dict[str, Any]:
        return {**super()._options(seed, labels, guidance_scale), "batch_size": _BATCH_SIZE}

    def _progress(self, count: int) -> CountProgress:
        return _show("sampling", count, unit="samples")


def _show(title: str, count: int, *, unit: str = "images") -> CountProgress:
    # Not where the command prints the path of its picture.
    return CountProgress(title, count, unit=unit, console=Console(stderr=True, quiet=not join().is_main_process))


def _decoded(vae: VAE, latents: Tensor) -> Tensor:
    """Return images as bytes, of which many fit into memory."""
    if len(latents) <= _BATCH_SIZE * join().size:  # a part
        return to_bytes(vae.decode(latents))
    images: list[Tensor] = []
    with _show("decoding", len(latents)) as progress:
        for part in latents.split(_BATCH_SIZE):
            images.append(to_bytes(vae.decode(part)))
            progress.advance(sum(map(len, images)))
    return torch.cat(images)


def convert(origin: str, out: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Turn an artifact into a folder of ours, or a folder of ours into an artifact, and return the files; every bit is kept.

    Args:
        origin: hub:NAME, the folder of an artifact, one that was converted, or one of a training.
        out: the folder to write.
        overwrite: replace an earlier conversion that is there.

    Raises:
        InputError: if there is nothing to convert, the release's format cannot hold it, or `out` cannot be written.
    """
    folder, out = artifact_folder(origin), Path(out)
    if out.resolve() == folder.resolve():
        raise InputError(f"out is '{out}', the folder that is converted: name another")
    check_writable(out, "out")
    if there := sorted(path.name for path in out.glob("*")):
        if other := [name for name in there if name not in _WRITTEN]:
            raise InputError(f"out is '{out}', which holds other files, such as {other[0]}: name another folder")
        if not overwrite:
            raise InputError(f"out is '{out}', which holds an earlier conversion: pass --overwrite, or name another folder")
    if not folder.is_dir():
        raise InputError(f"source is '{origin}', which is not a folder: name one, or {PREFIX}NAME for published weights")
    files = _to_ours(read_artifact(folder), out) if (folder / METADATA).exists() else _to_artifact(folder, out)
    for name in {*there} - {file.name for file in files}:
        (out / name).unlink()
    return files


def load(
    place: str | Path, *, vae: str | None = None, labels: Sequence[int | str] | None = None
) -> "trained.Run | ReleasedGenerator":
    """Return a generator, ready to sample on the CPU: that of a run, or one of the authors, converted or not.

    Args:
        place: the folder of a run, of an artifact or of a converted one, hub:NAME for what the authors published, or owner/name for
            a run that was shared on the Hugging Face Hub. A folder goes before a repository, unless it is hub:owner/name.
        vae: Hub id or folder of the auto-encoder that decodes the latents of an artifact; None for that of the paper.
        labels: labels of the samples to come; checked before anything else is loaded.

    Raises:
        InputError: if it is not a generator, its samples cannot be shown, the auto-encoder makes other latents, or a repository
            cannot be reached or holds anything but a shared run.
    """
    repository = repository_id(str(place))
    if repository is None:
        folder = artifact_folder(str(place))
    else:
        folder = download_repository(repository, required=(CONFIG, WEIGHTS), limits=SHARED)
    config = configuration.load_config(folder / CONFIG) if (folder / CONFIG).exists() else None
    if (folder / METADATA).exists():
        network = read_artifact(folder).network()
    elif config is not None and (metadata := _metadata(config)) is not None:
        weights, like = _opened(folder, config)
        network = with_weights(metadata, str(folder), like.num_classes, weights.items())
    elif vae is not None:
        raise InputError(f"vae is '{vae}', but '{folder}' was trained here and knows what decodes its samples: leave it out")
    else:
        return trained.load_run(folder)
    if not isinstance(network, DiT):
        raise InputError(f"run is '{place}', an encoder, not a generator: name the folder of a generator")
    check_labels(label_numbers(labels, None), network.num_classes)
    return ReleasedGenerator(network, _decoder_of(network, vae))


def write_samples(
    origin: str,
    out: str | Path,
    count: int,
    *,
    vae: str | None = None,
    labels: Sequence[int | str] | None = None,
    noise_scale: float | None = None,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Write samples of a run or an artifact as a file or a folder; see `load` and `samples.write_samples`.

    Their noise has the standard deviation `noise_scale`, None for that of the generator.
    """
    files.check_output(out, overwrite=overwrite)
    check_request(count, options.get("seed", 0))
    sampler = load(origin, vae=vae, labels=labels)
    sampler.generator.noise_scale = noise_scale or sampler.generator.noise_scale
    files.write_samples(sampler, out, count, labels=labels, overwrite=overwrite, **options)


def _to_ours(artifact: Artifact, out: Path) -> list[Path]:
    weights, config = out / _WEIGHTS[artifact.metadata["kind"]], ReleasedConfig(metadata=artifact.metadata)
    write_tensors(weights, artifact.described(), artifact.read)
    save_json(out / CONFIG, configuration.to_json(config))
    return [out / CONFIG, weights]


def _to_artifact(folder: Path, out: Path) -> list[Path]:
    config = configuration.load_config(folder / CONFIG)
    weights, network = _opened(folder, config)
    write_artifact(out, _metadata(config) or metadata_of(network), network, weights.__getitem__)
    return [out / METADATA, out / PARAMETERS]


def _opened(folder: Path, config: SavedConfig) -> tuple[dict[str, Tensor], Network]:
    """Return the weights of a folder, read as they are used, and the network that they fit, without any of its own."""
    part = getattr(config, "generator", getattr(config, "encoder", config))
    kind = getattr(part, "released_as", None)
    if kind is None:
        raise InputError(f"run is '{folder}', of {type(part).__name__}, which the release does not have: name a DiT or an MAE")
    file = _WEIGHTS.get(kind, WEIGHTS)
    weights = load_tensors(folder / file, fix="restore it, or train, convert or download it again")
    classes = next((len(weights[name]) for name in _PER_CLASS if name in weights and weights[name].ndim), None)
    network = shapes_of_network(lambda: _network(config, folder, classes), len(weights), folder / file)
    if odd := {value.dtype for value in weights.values()} - set(DTYPES.values()):
        raise InputError(f"weights of '{folder / file}' are {odd.pop()}, which the release's format cannot hold: convert others")
    check_weights(network, weights, str(folder / file))
    return weights, network


def _network(config: SavedConfig, folder: Path, num_classes: int | None) -> Network:
    settings: Any = config
    if (metadata := _metadata(config)) is not None:
        return build_network(metadata, str(folder), num_classes)
    if settings.noun == "generator":
        return cast(DiT, settings.build_generator())
    # Not as a training builds it: that would look at the images.
    sizes = {name: getattr(settings.encoder, name) for name in ("width", "patch", "depths")}
    return MaskedAutoencoder(getattr(settings.data, "image_shape", None) or (), **sizes, num_classes=num_classes)


def _metadata(config: SavedConfig) -> dict[str, Any] | None:
    """Return the metadata of a converted artifact; None for a training."""
    return getattr(config, "metadata", None)


def _decoder_of(generator: DiT, vae: str | None) -> VAE | None:
    """Return what makes images of the samples, None where they are images, or raise InputError if nothing does."""
    channels = generator.sample_shape[0]
    if channels in _PIXEL_CHANNELS:
        if vae is not None:
            raise InputError(f"vae is '{vae}', but this generator makes pixels: leave it out")
        return None
    if vae is None and channels != _LATENT_CHANNELS:
        raise InputError(f"vae is missing for latents of {channels} channels: name the auto-encoder that decodes them")
    decoder = load_vae(vae or DEFAULT_VAE)
    if decoder.latent_channels != channels:
        found = f"which decodes latents of {decoder.latent_channels} channels, not {channels}"
        raise InputError(f"vae is '{vae or DEFAULT_VAE}', {found}: name that of the generator's latents")
    return decoder
