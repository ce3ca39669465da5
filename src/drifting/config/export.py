"""How the samples of a run become what its user wants: points in their coordinates, images as bytes.

Shapes: b samples, c channels, h x w pixels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from drifting.config.data import DigitsData, ImageFilesData, ImagesData, LatentsData, PointsData
from drifting.config.run import RunConfig
from drifting.config.sources import open_vae
from drifting.data.pixels import to_bytes
from drifting.data.vae import VAE
from drifting.errors import InputError

_AT_ONCE = 64

Decoder = Callable[[Float[Tensor, "b *sample"]], UInt8[Tensor, "b c h w"]]


def build_export(config: RunConfig) -> Callable[[Tensor], Tensor]:
    """Return the map from the generator's samples to the user's form: points in their coordinates, images as uint8 [n, h, w, c]."""
    match config.data:
        case PointsData() as data:
            return data.frame.restore
        case DigitsData() | ImagesData() | ImageFilesData() | LatentsData():
            decode = build_decoder(config)
            return lambda samples: decode(samples).movedim(1, -1)
        case _:
            return lambda points: points


def build_decoder(config: RunConfig, device: str = "cpu") -> Decoder:
    """Return the map from samples of a run of images to bytes, which stay on the device of the samples.

    Args:
        config: of the run; its auto-encoder, where the samples are latents, is loaded here, once in a process.
        device: where the auto-encoder runs.

    Raises:
        InputError: if the auto-encoder is not there, or is one of other latents.
    """
    if not isinstance(config.data, LatentsData):
        return to_bytes
    vae = _vae_of(config.data, device)
    # Of many images only the bytes are held together.
    return lambda latents: torch.cat([to_bytes(vae.decode(part)) for part in latents.split(_AT_ONCE)])


def exported_shape(config: RunConfig) -> tuple[int, int, int]:
    """Return channels, height and width of the images of a run; errors as in `build_decoder`."""
    match config.data:
        case LatentsData(image_shape=(_, height, width)) as data:
            vae = _vae_of(data)
            return vae.channels, height * vae.reduction, width * vae.reduction
        case DigitsData():
            return 1, 8, 8
        case ImagesData(image_shape=(_, _, _) as shape) | ImageFilesData(image_shape=(_, _, _) as shape):
            return shape
        case data:
            raise InputError(f"data is {type(data).__name__}, of no known image shape: resolve the configuration first")


def _vae_of(data: LatentsData, device: str | None = None) -> VAE:
    """Return the auto-encoder of latents, or raise InputError."""
    vae = open_vae(data, device)
    if data.image_shape is not None and vae.latent_channels != data.image_shape[0]:
        channels = f"decodes latents of {vae.latent_channels} channels, but those of the run have {data.image_shape[0]}"
        raise InputError(f"vae is '{data.vae}', which {channels}: name the one that the latents were made with")
    return vae
