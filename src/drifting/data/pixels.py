"""Pixels: image files are decoded to bytes, bytes become floats in [-1, 1] for networks, and a VAE makes latents of them, and back.

Decoded images are upright. Transparent ones are drawn on white, because the colors under transparent pixels are arbitrary.

The VAE is a published variational auto-encoder between images and latents, from the library diffusers:

    latent = (mean + exp(log_variance / 2) * noise - shift) * scale,    image = decode(latent / scale + shift)

Shapes: s samples, b images, c channels of an image, h x w pixels, k channels of a latent, m = 2 k of its moments, y x x its places.

Source: the latents of the paper are those of Stable Diffusion's auto-encoder, 4 x 32 x 32 for 256 x 256 pixels.
"""

import functools
import hashlib
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from drifting._checks import check_memory, full_precision
from drifting._extras import load_published
from drifting.checkpoint import check_finite
from drifting.data.readers import EncodedImage, damaged
from drifting.errors import InputError

if TYPE_CHECKING:
    from PIL import Image, ImageFile

T = TypeVar("T")

_CHUNK = 256
_MODES = {1: "L", 3: "RGB"}
_GRAY = {"1", "L", "LA", "La"}
# Beginnings of the modes of more than 8 bits per value; the way in which a file stores two bytes per value; and a tag of TIFF.
_DEEP, _TWO_BYTES, _BITS_PER_SAMPLE = ("I", "F"), re.compile(";16[BLN]"), 258
# Formats that run other programs (Ghostscript, system libraries), or that PIL lists but cannot decode.
_NOT_DECODED = {"EPS", "WMF", "EMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"}
# Images with more pixels are decoded one at a time, because every thread holds one in memory.
_LARGE = 2**25


def to_signed(images: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return bytes as images in [-1, 1]; floats are returned unchanged."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def to_bytes(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Return images in [-1, 1] as bytes, rounded and clamped."""
    return ((images + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def decode(
    images: Sequence[EncodedImage] | UInt8[Tensor, "s c h w"], *, image_size: int | None = None, channels: int | None = None
) -> UInt8[Tensor, "s c h w"]:
    """Return images as one tensor of bytes, with 1 channel if all are gray and 3 if any has color.

    Args:
        images: at least one image.
        image_size: side in pixels after a center crop to a square and bicubic resizing; None to keep squares of one size.
        channels: 1 or 3 to convert the images; None to keep their channels.

    Raises:
        InputError: if an image is damaged or of an unsupported kind, if `image_size` is None and the images are not squares of one
            size, or if the images do not fit into memory.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}: pass 1 or more")
    if channels not in (None, 1, 3):
        raise InputError(f"channels is {channels}: pass 1 or 3")
    if image_size is not None:
        need, what = decoded_bytes(len(images), image_size, channels or 1), f"image_size is {image_size}, at which {_some(images)}"
        check_memory(need, what, "pass a smaller --image-size")
    if not isinstance(images, Tensor):
        return _together(_decode_all(images, image_size, channels))
    _, stored, height, width = images.shape
    if height == width == (image_size or width) and stored == (channels or stored):
        return images
    arrays = list(images.movedim(1, -1).squeeze(-1).numpy())
    return _together(_decode_all(arrays, image_size, channels))


def decoded_bytes(count: int, side: int, channels: int) -> int:
    """Return the bytes needed to decode squares: every image is held twice, alone and in the stacked tensor."""
    return 2 * count * side**2 * channels


def _some(images: Sequence[EncodedImage] | Tensor | Sequence[np.ndarray]) -> str:
    return f"{len(images)} image{'s' * (len(images) > 1)}"


def _decode_all(
    items: Sequence[EncodedImage] | Sequence[np.ndarray], image_size: int | None, channels: int | None
) -> list[np.ndarray]:
    """Return every item as [h w] or [h w 3], all squares of one size. PIL releases Python's lock, so threads help."""
    threads = min(16, os.cpu_count() or 1)
    chunk = min(_CHUNK, -(-len(items) // threads))
    with _quiet_pillow():
        first = _pixels(items[0], image_size, channels)
        height, width = first.shape[:2]
        fix = "pass --image-size to crop and resize all images"
        if height != width:
            raise InputError(f"data holds '{_origin(items[0])}' of {width} x {height} pixels, which is not a square: {fix}")
        need = decoded_bytes(len(items), width, channels or first[0, 0].size)
        check_memory(need, f"data holds '{_origin(items[0])}' of {width} x {width} pixels, of which {_some(items)}", fix)

        def decode_some(start: int) -> list[np.ndarray]:
            arrays = []
            for item in items[start : start + chunk]:
                arrays.append(_pixels(item, image_size, channels))
                found = arrays[-1].shape[:2]
                if found != (height, width):
                    sizes = f"{found[1]} x {found[0]} pixels among images of {width} x {height}"
                    raise InputError(f"data holds '{_origin(item)}' of {sizes}: {fix}")
            return arrays

        with ThreadPoolExecutor(threads) as pool:
            return [array for part in pool.map(decode_some, range(0, len(items), chunk)) for array in part]


class ImageFacts(NamedTuple):
    """What an image file holds: width and height in pixels once it is upright, PIL's mode, and whether it is transparent."""

    width: int
    height: int
    mode: str
    transparent: bool

    @property
    def gray(self) -> bool:
        """Whether the image has no color."""
        return self.mode in _GRAY


def examine(images: Sequence[EncodedImage]) -> list[ImageFacts | InputError]:
    """Decode every image, and return what it holds, or the error because of which a training would stop."""

    def facts(item: EncodedImage) -> ImageFacts | InputError:
        try:
            return _opened(item, lambda image: _facts(image, item.origin))
        except InputError as error:
            return error

    with _quiet_pillow(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(facts, images))


def _facts(image: "Image.Image", origin: str) -> ImageFacts:
    _opaque(image, origin)
    return ImageFacts(image.width, image.height, image.mode, image.has_transparency_data)


def _pixels(item: EncodedImage | np.ndarray, image_size: int | None, channels: int | None) -> np.ndarray:
    """Return one image as [h w] or [h w 3]."""
    from PIL import Image

    if isinstance(item, np.ndarray):
        return np.asarray(_fitted(Image.fromarray(item), image_size, channels))
    return _opened(item, lambda image: np.asarray(_fitted(_opaque(image, item.origin), image_size, channels)))


def _opened(item: EncodedImage, use: "Callable[[Image.Image], T]") -> T:
    """Return what a function makes of a decoded, upright image; raises InputError if it cannot be decoded."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        content = io.BytesIO(item.content) if isinstance(item.content, bytes) else item.content
        with Image.open(content, formats=_formats()) as image, _alone if image.width * image.height > _LARGE else nullcontext():
            if _drops_bits(image):
                raise _too_deep(image.mode, item.origin)
            image.load()
            with suppress(Exception):  # damaged EXIF data do not damage the image
                ImageOps.exif_transpose(image, in_place=True)
            return use(image)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise damaged(item.origin, "it is not an image of a format that can be decoded") from None
    except Image.DecompressionBombError:
        limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,}"
        raise InputError(f"data holds '{item.origin}', an image of more than {limit} pixels: shrink it, or remove it") from None
    except Exception as error:  # every format raises its own types for damaged bytes
        raise damaged(item.origin, error) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the supported formats, common ones first."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


def _drops_bits(image: "ImageFile.ImageFile") -> bool:
    """Return whether a file that is not loaded yet has more than 8 bits per value and PIL keeps 8, as it does in color."""
    if image.mode.startswith(_DEEP):
        return False
    if max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) > 8:
        return True
    for codec, _, _, args in image.tile[:1]:
        raw_mode, *others = args if isinstance(args, tuple) else (args,)
        # A pixmap has its largest value in place of its bits.
        if _TWO_BYTES.search(str(raw_mode)) or (codec in ("ppm", "ppm_plain") and others and others[0] > 255):
            return True
    return False


def _too_deep(mode: str, origin: str) -> InputError:
    return InputError(f"data holds '{origin}' of more than 8 bits to a value (mode {mode}): convert it to 8 bits")


def _opaque(image: "Image.Image", origin: str) -> "Image.Image":
    """Return an image without transparency, or raise InputError if it has more than 8 bits per value."""
    from PIL import Image

    if image.mode.startswith(_DEEP):
        raise _too_deep(image.mode, origin)
    if image.mode == "LAB":
        raise InputError(f"data holds '{origin}' in the color space LAB: convert it to RGB")
    if not image.has_transparency_data:
        return image
    gray = image.mode in _GRAY
    colored = image.convert("RGBA")
    laid = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colored)
    return laid.convert("L" if gray else "RGB")


def _fitted(image: "Image.Image", image_size: int | None, channels: int | None) -> "Image.Image":
    from PIL import Image

    mode = _MODES[channels or (1 if image.mode in _GRAY else 3)]
    image = image if image.mode == mode else image.convert(mode)
    if image_size is None or image.size == (image_size, image_size):
        return image
    # Cropped first, because resizing a box of the image would mix in the pixels around it.
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((image_size, image_size), Image.Resampling.BICUBIC)


def _origin(item: EncodedImage | np.ndarray) -> str:
    return item.origin if isinstance(item, EncodedImage) else "an array"


def _together(arrays: list[np.ndarray]) -> UInt8[Tensor, "s c h w"]:
    """Stack [h w] and [h w 3] images; gray images among color images get three equal channels."""
    channels = 3 if any(array.ndim == 3 for array in arrays) else 1
    stacked = torch.empty((len(arrays), channels, *arrays[0].shape[:2]), dtype=torch.uint8)
    for target, array in zip(stacked.numpy(), arrays, strict=True):
        target[:] = array if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return stacked


# Held by a large image, so that only one of them is in memory at a time.
_alone = threading.Lock()


class _Silence:
    """The number of threads that decode now, and the settings to restore after the last one."""

    lock, count, warned = threading.Lock(), 0, warnings.catch_warnings()
    handler = logging.NullHandler()


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings and log. They are settings of the process, so the last of several threads restores them."""
    with _Silence.lock:
        _Silence.count += 1
        if _Silence.count == 1:
            _Silence.warned = warnings.catch_warnings()
            _Silence.warned.__enter__()
            warnings.simplefilter("ignore")
            logging.getLogger("PIL").addHandler(_Silence.handler)
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.count -= 1
            if _Silence.count == 0:
                logging.getLogger("PIL").removeHandler(_Silence.handler)
                _Silence.warned.__exit__(None, None, None)


DEFAULT_VAE = "stabilityai/sd-vae-ft-mse"
# The library clamps log-variances to this range.
_LOG_VARIANCES = (-30.0, 20.0)

Images = Float[Tensor, "b c h w"]
Latents = Float[Tensor, "b k y x"]
Moments = Float[Tensor, "b m y x"]


class VAE(nn.Module):
    """A frozen auto-encoder between images in [-1, 1] and latents with a standard deviation of about 1.

    Args:
        network: an AutoencoderKL of diffusers, or a module with the same interface.
        origin: name or folder that it was loaded from.

    Attributes:
        origin: the same, with the full path of a folder.
        channels: channels of an image.
        latent_channels: channels of a latent.
        reduction: side of an image divided by the side of its latent.
    """

    def __init__(self, network: nn.Module, origin: str | Path = "") -> None:
        super().__init__()
        self.origin = full_name(origin)
        self.network = network.requires_grad_(False).eval()
        facts: Any = network.config
        self.scale, self.shift = float(facts.scaling_factor), float(getattr(facts, "shift_factor", None) or 0.0)
        self.channels, self.latent_channels = int(facts.in_channels), int(facts.latent_channels)
        self.reduction = 2 ** (len(facts.block_out_channels) - 1)

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return the shape of the latent of a square image, or raise InputError if the image has no latent."""
        if image_size < 1 or image_size % self.reduction:
            raise InputError(f"image_size is {image_size}: pass a multiple of {self.reduction}, the pixels per place of a latent")
        side = image_size // self.reduction
        return self.latent_channels, side, side

    @torch.no_grad()
    def moments(self, images: Images) -> Moments:
        """Return the mean, then the log-variance, of the latents of images, neither shifted nor scaled."""
        return full_precision(self._network.encode(images).latent_dist.parameters)

    def draw(self, moments: Moments, noise: Latents) -> Latents:
        """Return latents drawn from the distribution with these moments, from standard normal noise."""
        return draw_latents(moments, noise, scale=self.scale, shift=self.shift)

    @torch.no_grad()
    def decode(self, latents: Latents, batch_size: int = 16) -> Images:
        """Return images, `batch_size` at a time, on the device of the latents."""
        device = next(self.network.parameters()).device
        parts = (part.to(device) / self.scale + self.shift for part in latents.split(batch_size))
        return torch.cat([full_precision(self._network.decode(part).sample).to(latents.device) for part in parts])

    @property
    def _network(self) -> Any:
        return self.network

    def fingerprint(self) -> str:
        """Return a fingerprint of the weights and of the scale of the latents, 16 hexadecimal digits."""
        digest = hashlib.sha256(f"{self.scale} {self.shift}".encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def draw_latents(moments: Moments, noise: Latents, *, scale: float, shift: float) -> Latents:
    """Return shifted and scaled latents drawn from the distribution with these moments, from standard normal noise."""
    mean, log_variance = full_precision(moments).chunk(2, 1)
    return (mean + (log_variance.clamp(*_LOG_VARIANCES) / 2).exp() * noise - shift) * scale


def full_name(name_or_folder: str | Path) -> str:
    """Return the name of a published auto-encoder, or the whole path of a folder."""
    return str(Path(name_or_folder).resolve()) if name_or_folder and Path(name_or_folder).exists() else str(name_or_folder)


def load_vae(name_or_folder: str | Path = DEFAULT_VAE) -> VAE:
    """Return a published auto-encoder. Only safetensors are read; code that comes with them never runs.

    Args:
        name_or_folder: id on the Hugging Face Hub, or a folder made by `save_pretrained`.

    Raises:
        InputError: if the library or the weights are missing.
    """
    network = load_published("vae", str(name_or_folder), "diffusers", "AutoencoderKL", low_cpu_mem_usage=False)
    check_finite(network.state_dict().items(), str(name_or_folder))
    return VAE(network.float(), name_or_folder)
