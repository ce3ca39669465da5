"""Where the real samples of a configuration come from: found and checked, read once in a process, drawn from.

Data sets in memory are read as a whole; `ImageFilesData` and `LatentsData` stay on disk behind a memory bank.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from drifting._progress import show_encoding, tell_lines
from drifting.config.data import Data, DigitsData, ImageFilesData, ImagesData, LatentsData, PointsData, StreamedData, ToyData
from drifting.config.facts import check_files, check_images, check_points, facts_of_files, facts_of_images, facts_of_points
from drifting.config.run import BankConfig, RunConfig
from drifting.data.bank import BankSource, MemoryBank
from drifting.data.dataset import InMemorySource, Source, StreamSource
from drifting.data.digits import load_digits
from drifting.data.features import FeatureCache
from drifting.data.image_folder import ImageFiles
from drifting.data.images import ImageSet, LabelError, load_images
from drifting.data.latents import LatentCache
from drifting.data.pixels import to_signed
from drifting.data.points import frame_of, load_points
from drifting.data.streamed import ImageRows, LatentRows, RowBankSource, Rows, RowSource
from drifting.data.toys import toy
from drifting.data.vae import VAE, load_vae
from drifting.distributed import join
from drifting.encoders.base import FeatureEncoder
from drifting.errors import InputError
from drifting.training.positives import Positives

AnyData = TypeVar("AnyData", bound=Data)


def find_data(data: Data, load: Callable[[ImagesData, str], ImageSet]) -> Data:
    """Return data with where they are and what they are filled in, found by looking; `load` reads images."""
    match data:
        case PointsData(path=path, scale=None):
            points = load_points(Path(path))
            centre, scale = frame_of(points, path)
            return PointsData(path=str(Path(path).resolve()), centre=centre, scale=scale, **facts_of_points(points))
        case ImagesData(image_shape=None):
            return find_images(data, load)
        case ImageFilesData(files=None):
            data = dataclasses.replace(data, path=_place(data))
            files = open_files(data)
            return dataclasses.replace(data, **facts_of_files(data, files, _checked_classes(data, files.num_classes)))
        case LatentsData(files=None):
            data = dataclasses.replace(data, path=_place(data))
            cache = open_latents(data)
            index, num_classes = cache.index, _checked_classes(data, cache.num_classes)
            of = {"vae": data.vae or index.vae, "vae_fingerprint": index.vae_fingerprint, "files": index.files}
            of |= {"num_classes": num_classes, "class_names": None if num_classes is None else index.class_names}
            return dataclasses.replace(data, image_shape=index.latent_shape, **of)
        case _:
            return data


def find_images(data: ImagesData, load: Callable[[ImagesData, str], ImageSet] | None = None) -> ImagesData:
    """Return images in memory with their place, shape and classes, found by reading them, by `load_split` if not by `load`."""
    path = str(Path(data.path).resolve()) if data.path and Path(data.path).exists() else data.path
    data = dataclasses.replace(data, path=path)
    found = (load or load_split)(data, "train")
    if data.colour and found.image_shape[0] != 3:
        grey = f"data is '{path or data.name}', whose images have {found.image_shape[0]} channel, not red, green and blue"
        raise InputError(f"{grey}: pass colour images, or train the preset images on these")
    return dataclasses.replace(data, conditional=found.labels is not None, **facts_of_images(found))


def _place(data: StreamedData) -> str:
    if data.path is None:
        what = "a cache that drifting latents wrote" if isinstance(data, LatentsData) else "a folder of images"
        raise InputError(f"data is missing: pass --data with {what}")
    return str(Path(data.path).expanduser().resolve())


def _checked_classes(data: StreamedData, found: int | None) -> int | None:
    if not data.conditional:
        return None
    if found is None:
        raise InputError(f"data is '{data.path}', which has no labels: use one sub-folder per class, or train without labels")
    return found


@functools.lru_cache(maxsize=4)
def _load_split(path: str | None, name: str, split: str, options: tuple) -> ImageSet:
    image_size, channels, labelled = options
    return load_images(path, name=name, split=split, image_size=image_size, channels=channels, labelled=labelled)


def load_split(data: ImagesData, split: str) -> ImageSet:
    """Return one split of the images of a configuration, read once; raises InputError if they are no longer those of the run."""
    images = _load_split(data.path, data.name, split, (data.image_size, data.channels, data.conditional))
    check_images(data, images, split)
    return images


def load_labelled(data: ImagesData, split: str) -> ImageSet:
    """Return one split with its labels, whether or not a generator learns them; without where there are none to be used."""
    try:
        return load_split(labelled(data), split)
    except LabelError:
        return load_split(labelled(data, False), split)


def labelled(data: ImagesData, conditional: bool = True) -> ImagesData:
    """Return data whose labels are used, or not; what was found in them is compared with them only if it was found that way."""
    return data if data.conditional == conditional else dataclasses.replace(data, conditional=conditional, image_shape=None)


def check_data(data: Data) -> None:
    """Raise InputError if data are no longer those that a run began with, as far as it kept what they were."""
    match data:
        case PointsData():
            open_points(data)
        case ImagesData():
            load_split(data, "train")
        case ImageFilesData():
            open_files(data)
        case LatentsData():
            open_latents(data)


def open_points(data: PointsData) -> Tensor:
    """Return the points of a configuration in float64; raises InputError if they are no longer those of the run."""
    points = load_points(Path(data.path))
    check_points(data, points)
    return points


# Listing a million files takes seconds.
_list_files = functools.lru_cache(maxsize=2)(ImageFiles)
_open_cache = functools.lru_cache(maxsize=2)(LatentCache)


_CACHES = (_load_split, _list_files, _open_cache, facts_of_images)


def forget_data() -> None:
    """Have all data read again when they are next asked for: what lies in a folder may have changed since."""
    for cache in _CACHES:
        cache.cache_clear()


@functools.lru_cache(maxsize=1)
def _load_vae(name: str) -> tuple[VAE, str]:
    vae = load_vae(name)
    return vae, vae.fingerprint()


def open_files(data: ImageFilesData, split: str = "train") -> ImageFiles:
    """Return the images of a configuration, listed once in a process; raises InputError if they are no longer those of the run."""
    files = _list_files(data.path or "", image_size=data.image_size, split=split)
    if split == "train":
        check_files(data, files)
    return files


def open_latents(data: LatentsData) -> LatentCache:
    """Return the cache of a configuration, opened once in a process; raises InputError if it is not that of the run."""
    return _open_cache(data.path or "", vae_fingerprint=data.vae_fingerprint, latent_shape=data.image_shape, files=data.files)


def open_vae(data: LatentsData, device: str | None = None) -> VAE:
    """Return the auto-encoder that latents were made with, on a device or where it is; raises InputError if it is another now."""
    if data.vae is None:
        raise InputError(f"data is '{data.path}', whose VAE is not known yet: resolve the configuration first")
    vae, found = _load_vae(data.vae)
    if data.vae_fingerprint not in (None, found):
        other = f"which is not the one that made the latents ({found}, not {data.vae_fingerprint})"
        raise InputError(f"vae is '{data.vae}', {other}: bring that back")
    return vae if device is None else vae.to(device)


def build_source(config: RunConfig) -> Source:
    """Return the real samples a run trains on."""
    match config.data:
        case ToyData(dataset=name):
            return StreamSource(toy(name).draw, (2,))
        case PointsData() as data:
            return InMemorySource(data.frame.standardise(open_points(data)))
        case DigitsData():
            split = load_digits()
            return InMemorySource(split.train, split.train_labels)
        case ImagesData() as data:
            images = load_split(data, "train")
            return InMemorySource(images.images, images.labels, to_signed)
        case ImageFilesData() | LatentsData() as data:
            return RowSource(open_rows(data, config.seed))


def build_positives(config: RunConfig, encoder: FeatureEncoder, folder: Path | None = None) -> Positives:
    """Return where the features of real samples come from: the whole data set or a bank, encoded anew or looked up.

    Args:
        config: of the run.
        encoder: its feature space.
        folder: where a cache of features goes that is too large for memory.
    """
    options = {"batch_size": config.schedule.microbatch_size, "later": config.schedule.labels_per_microbatch is not None}
    if isinstance(config.data, ImageFilesData | LatentsData) and config.bank is not None:
        rows, push = open_rows(config.data, config.seed), config.bank.push_per_step
        bank = _bank(config.bank, config.data.num_classes, rows.shape, rows.dtype, config.device)
        tell = tell_lines("reading real samples into the memory bank")
        return Positives(RowBankSource(rows, bank, push_per_step=push, seed=config.seed, tell=tell), encoder, **options)
    if not isinstance(config.data, ImagesData):
        return Positives(build_source(config), encoder, **options)
    images = load_split(config.data, "train")
    samples, prepare, shape, kind, cache = images.images, to_signed, images.image_shape, torch.float32, None
    if config.cache_features and config.encoder.objective is not None:
        on_device = functools.partial(_prepare_on, config.device)
        with show_encoding(len(samples), quiet=not join().is_main_process) as progress:
            cache = FeatureCache(encoder, samples, prepare=on_device, folder=folder, on_progress=progress.advance)
        samples, prepare, shape, kind = torch.arange(len(samples)), None, (), torch.long
    if config.bank is None:
        return Positives(InMemorySource(samples, images.labels, prepare), encoder, cache, **options)
    bank = _bank(config.bank, images.num_classes, shape, kind, config.device)
    push = config.bank.push_per_step
    source = BankSource(samples, images.labels, bank, push_per_step=push, seed=config.seed, prepare=prepare)
    return Positives(source, encoder, cache, **options)


def _bank(sizes: BankConfig, num_classes: int | None, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> MemoryBank:
    capacities = {"capacity_per_class": sizes.capacity_per_class, "unconditional_capacity": sizes.unconditional_capacity}
    kept_on = "cpu" if sizes.on_cpu else device
    return MemoryBank(num_classes, sample_shape=shape, device=kept_on, dtype=dtype, **capacities)


def open_rows(data: StreamedData, seed: int) -> Rows:
    """Return data that stay on disk by row, each varied by a stream of the seed whenever it is taken."""
    varied = {"labelled": data.conditional, "flip": data.flip, "seed": seed}
    return LatentRows(open_latents(data), **varied) if isinstance(data, LatentsData) else ImageRows(open_files(data), **varied)


def _prepare_on(device: str, images: Tensor) -> Tensor:
    return to_signed(images.to(device))
