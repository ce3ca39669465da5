"""A recipe on latents that is given images: their latents are written first, once, beside the folder of its run."""

import dataclasses
from pathlib import Path
from typing import TypeVar

from drifting import config as configuration
from drifting._files import check_writable
from drifting.config import EncoderRunConfig, LatentsData, RunConfig
from drifting.data.latents import INDEX
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.vae import DEFAULT, load_vae
from drifting.distributed import Processes
from drifting.run_folder import check_room

Config = TypeVar("Config", RunConfig, EncoderRunConfig)


def with_latents(config: Config, folder: Path, processes: Processes, *, overwrite: bool) -> Config:
    """Return a configuration whose latents are a cache: that of FOLDER/../IMAGES-latents, made here, where images are named.

    Runs beside each other, such as an encoder and the generator that drifts in its features, share it. Stopped on the way it goes
    on, when the run is started again.

    Args:
        config: of the run, its weights found.
        folder: of the run.
        processes: those that train it, the first of which writes.
        overwrite: whether a run in the folder would be deleted.

    Raises:
        InputError: if there is a run in the folder, or its encoder does not fit; else as `latents_writer.write_latents` does.
    """
    data = config.data
    if not isinstance(data, LatentsData) or data.files is not None or data.path is None:
        return config
    images = Path(data.path).expanduser().resolve()
    if not images.is_dir() or (images / INDEX).exists():
        return config
    check_room(folder, overwrite=overwrite, mend="pass --resume or --overwrite")
    check_writable(folder, "save_dir")
    cache = folder.resolve().parent / f"{images.name}-latents"
    settings, vae = CacheSettings(device=config.device), data.vae or DEFAULT
    with processes.leads_the_way():
        if processes.leads:
            if isinstance(config, RunConfig):
                # Weights that do not fit are told now, not after hours.
                shape = load_vae(vae).latent_shape(settings.image_size)
                configuration.build_network(dataclasses.replace(config, data=dataclasses.replace(data, image_shape=shape)))
            print(f"{images} holds images: their latents go to {cache} first", flush=True)
            write_latents(images, vae, cache, settings)
    return dataclasses.replace(config, data=dataclasses.replace(data, path=str(cache)))
