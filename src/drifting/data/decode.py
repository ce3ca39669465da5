"""From encoded images to one uint8 tensor: decoded once, squared and resized if asked.

Shapes: s samples, c channels, h height, w width.
"""

import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from drifting.data.readers.base import EncodedImage, damaged
from drifting.errors import InputError

_CHUNK = 256
_MODES = {1: "L", 3: "RGB"}
# What the readers of PIL raise where they meet bytes that are none of their format.
_DAMAGED = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error, Image.DecompressionBombError)
_GREY = {"1", "L", "LA", "La"}


def decode(
    images: Sequence[EncodedImage] | UInt8[Tensor, "s c h w"], *, image_size: int | None = None, channels: int | None = None
) -> UInt8[Tensor, "s c h w"]:
    """Return images as one tensor: 1 channel where all are grey, 3 where any is coloured; transparency is dropped.

    Args:
        images: at least one image.
        image_size: pixels to a side, after a centre crop to a square and by bicubic resizing; None to keep squares of one size.
        channels: 1 or 3 to convert; None to keep what is there.

    Raises:
        InputError: if an image is damaged, or if sizes differ or are no squares and `image_size` is None.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}: pass 1 or more")
    if channels not in (None, 1, 3):
        raise InputError(f"channels is {channels}: pass 1 or 3")
    if not isinstance(images, Tensor):
        return _together(_decode_all(images, image_size, channels))
    _, stored, height, width = images.shape
    if height == width == (image_size or width) and stored == (channels or stored):
        return images
    arrays = list(images.movedim(1, -1).squeeze(-1).numpy())
    return _together(_decode_all(arrays, image_size, channels))


def _decode_all(items: Sequence[EncodedImage | np.ndarray], image_size: int | None, channels: int | None) -> list[np.ndarray]:
    """Return [h w] or [h w 3] of every item, all squares of one size. PIL works outside Python's lock, so threads help."""
    height, width = _pixels(items[0], image_size, channels).shape[:2]
    mend = "pass --image-size to crop and resize all images"
    if height != width:
        raise InputError(f"data holds '{_origin(items[0])}' of {width} x {height} pixels, which is no square: {mend}")

    threads = min(16, os.cpu_count() or 1)
    chunk = min(_CHUNK, -(-len(items) // threads))

    def decode_some(start: int) -> list[np.ndarray]:
        arrays = []
        for item in items[start : start + chunk]:
            arrays.append(_pixels(item, image_size, channels))
            found = arrays[-1].shape[:2]
            if found != (height, width):
                sizes = f"{found[1]} x {found[0]} pixels among images of {width} x {height}"
                raise InputError(f"data holds '{_origin(item)}' of {sizes}: {mend}")
        return arrays

    with ThreadPoolExecutor(threads) as pool:
        return [array for part in pool.map(decode_some, range(0, len(items), chunk)) for array in part]


def _pixels(item: EncodedImage | np.ndarray, image_size: int | None, channels: int | None) -> np.ndarray:
    """Return one image as [h w] or [h w 3]."""
    if isinstance(item, np.ndarray):
        return np.asarray(_fitted(Image.fromarray(item), image_size, channels))
    try:
        with Image.open(io.BytesIO(item.content) if isinstance(item.content, bytes) else item.content) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"data holds '{item.origin}' of more than 8 bits to a value: convert it to 8 bits")
            if image.format != "PNG":
                ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_fitted(image, image_size, channels))
    except InputError:
        raise
    except _DAMAGED as error:
        raise damaged(item.origin, error) from None


def _fitted(image: Image.Image, image_size: int | None, channels: int | None) -> Image.Image:
    mode = _MODES[channels or (1 if image.mode in _GREY else 3)]
    image = image if image.mode == mode else image.convert(mode)
    if image_size is None or image.size == (image_size, image_size):
        return image
    # Cropped first: resizing a box of the image would let the pixels around it in.
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((image_size, image_size), Image.Resampling.BICUBIC)


def _origin(item: EncodedImage | np.ndarray) -> str:
    return item.origin if isinstance(item, EncodedImage) else "an array"


def _together(arrays: list[np.ndarray]) -> UInt8[Tensor, "s c h w"]:
    """Stack [h w] and [h w 3]; grey images among coloured ones get three equal channels."""
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.broadcast_to(array[..., None], (*array.shape, 3)) for array in arrays]
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked[:, None] if stacked.ndim == 3 else stacked.movedim(-1, 1).contiguous()
