"""The latents of a run whose data are images: written first, once, beside the folder of the run."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from drifting._files import check_writable
from drifting.config import AnyConfig
from drifting.data.latents import INDEX, open_vae
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.pixels import DEFAULT_VAE
from drifting.distributed import Processes
from drifting.runs.folder import check_room

Config = TypeVar("Config", bound=AnyConfig)


def with_latents(config: Config, folder: Path, processes: Processes, *, overwrite: bool) -> tuple[Config, nn.Module | None]:
    """Return a configuration on cached latents; those of a folder of images are written to FOLDER/../IMAGES-latents first.

    Runs in one folder, such as an encoder and the generator that drifts in its features, share the cache. Starting an interrupted
    run again completes it.

    Args:
        config: configuration of the run, with the weights of its encoder.
        folder: folder of the run.
        processes: the processes that train it; the first one writes.
        overwrite: whether a run in the folder would be deleted.

    Returns:
        The configuration, and the trained network of its encoder if it was built to be checked before hours of work.

    Raises:
        InputError: if there is a run in the folder, or its encoder does not fit; else as `latents_writer.write_latents` does.
    """
    data: Any = config.data
    if not data.latent or data.files is not None or data.path is None:
        return config, None
    images = Path(data.path).expanduser().resolve()
    if not images.is_dir() or (images / INDEX).exists():
        return config, None
    check_room(folder, overwrite=overwrite, fix="pass --resume or --overwrite")
    check_writable(folder, "save_dir")
    cache, network = folder.resolve().parent / f"{images.name}-latents", None
    settings, encoder = CacheSettings(device=config.device), getattr(config, "encoder", None)
    with processes.main_process_first():
        if processes.is_main_process:
            vae, _ = open_vae(data.vae or DEFAULT_VAE)
            if encoder is not None and encoder.weights_file is not None:
                shape = vae.latent_shape(settings.image_size)
                network = dataclasses.replace(config, data=dataclasses.replace(data, image_shape=shape)).build_network()
            print(f"{images} holds images: their latents go to {cache} first", flush=True)
            write_latents(images, vae, cache, settings)
    return dataclasses.replace(config, data=dataclasses.replace(data, path=str(cache))), network
