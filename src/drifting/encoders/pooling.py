"""What encoders do before and after their network: images are standardized, and maps become multi-scale features.

The features of a map are all its locations, and means and standard deviations of windows and of the whole map:

    mean = (1/m) sum_i x_i,    std = sqrt( (1/m) sum_i (x_i - mean)^2 + 1e-6 )        per channel, over the m places of a window

Optionally, a linear projection of the channels comes first. Standardized images are resized as published networks expect them.

Shapes: b samples, c channels, d channels after a projection, k locations, h x w places, m of a window; locations are row-major.

Source: paper, appendix A.5. The windows do not overlap and the constant is 1e-6 in the authors' release.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

from drifting._checks import full_precision, nearest_name
from drifting.encoders.base import Features
from drifting.errors import InputError

# Kind -> side of the window, 0 for the whole map.
_WINDOWS = {"mean": 0, "std": 0, "mean_2": 2, "std_2": 2, "mean_4": 4, "std_4": 4, "mean_8": 8, "std_8": 8}
KINDS = ("all", "mean", "std", "mean_2", "std_2", "mean_4", "std_4")
# Windows of 8 are only for images, which are larger than the maps of a network.
IMAGE_KINDS = (*KINDS, "mean_8", "std_8")
_SMALLEST_VARIANCE = 1e-6
# Names of the maps that are the images themselves. Only color images have the second.
_IMAGE, _CHROMA = "image", "chroma"
_COLORS = 3
# Side of the tiles, and distance between the starts of two neighbors, in pixels.
_TILE, _TILE_STRIDE = 8, 4
# Mean and standard deviation of ImageNet's channels, for images in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Statistics = tuple[Sequence[float], Sequence[float]]


class Standardize(nn.Module):
    """Images in [-1, 1] -> input of a network: resized, then (x - mean) / std with x in [0, 1]. It has no weights.

    Args:
        image_shape: channels, height and width of the images.
        statistics: mean and standard deviation of every channel, for images in [0, 1].
        resize: side of the square that images are resized to, bilinearly without antialiasing; None to keep their size.
    """

    def __init__(self, image_shape: Sequence[int], statistics: Statistics, resize: int | None = None) -> None:
        super().__init__()
        channels, *sides = image_shape
        if {len(values) for values in statistics} != {channels} or min(statistics[1]) <= 0:
            raise InputError(f"statistics is {statistics}: pass means and standard deviations above 0 for {channels} channels")
        self.image_shape, self.resize = tuple(image_shape), resize
        self.sides = (resize, resize) if resize else tuple(sides)
        # Not persistent: the state dict has only the keys of the published weights.
        self.register_buffer("mean", torch.tensor(statistics[0])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(statistics[1])[:, None, None], persistent=False)

    def check(self, images: Tensor) -> None:
        """Raise InputError unless images have the expected channels, height and width."""
        if tuple(images.shape[1:]) != self.image_shape:
            taken = f"the encoder takes {self.image_shape}: convert them, or name an encoder for such images"
            raise InputError(f"images have the shape {tuple(images.shape[1:])}, but {taken}")

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        """Return the standardized images, with channels last in memory, the fastest layout for convolutions.

        In training mode they may be views, which are square and no larger than the images.
        """
        side = images.shape[-1]
        is_view = images.shape[1:] == (self.image_shape[0], side, side) and side <= min(self.image_shape[1:])
        if not (self.training and is_view):
            self.check(images)
        if self.resize:
            images = interpolate(images, self.sides, mode="bilinear", align_corners=False)
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        return ((images + 1) / 2 - mean).div(std).contiguous(memory_format=torch.channels_last)


def feature_name(name: str, kind: str) -> str:
    """Return the name of one kind of features of a map: NAME for "all", else NAME_KIND."""
    return name if kind == "all" else f"{name}_{kind}"


def fits(kind: str, *sides: int) -> bool:
    """Return whether the windows of a kind divide a map of these sides; without sides, return True."""
    window = _WINDOWS.get(kind, 0)
    return window == 0 or all(side % window == 0 for side in sides)


def multi_scale(
    name: str, map: Float[Tensor, "b c h w"], kinds: Sequence[str] = KINDS, projection: Float[Tensor, "d c"] | None = None
) -> Features:
    """Return the features of a map in float32: NAME, NAME_mean, NAME_std, NAME_mean_2, NAME_std_2, NAME_mean_4, NAME_std_4.

    Args:
        name: name of the map.
        map: the feature map.
        kinds: kinds to return, of `IMAGE_KINDS`; kinds whose windows do not divide the map are left out.
        projection: matrix that projects the channels of every place; None for no projection.

    Raises:
        InputError: if a kind is unknown.
    """
    map = full_precision(map)
    height, width = map.shape[2:]
    features: Features = {}
    for kind in kinds:
        if kind not in IMAGE_KINDS:
            known = ", ".join(IMAGE_KINDS)
            raise InputError(f"kinds has '{kind}': did you mean '{nearest_name(kind, IMAGE_KINDS)}'? There are {known}")
        if not fits(kind, height, width):
            continue
        if kind == "all":
            features[name] = projected(map.flatten(2).transpose(1, 2), projection)
            continue
        side = _WINDOWS[kind]
        places = _windows(map, side or height, side or width)
        mean = places.mean(2)
        # The mean is subtracted before squaring: a difference of two large means would lose the digits of a small variance.
        found = projected(mean, projection) if kind.startswith("mean") else _spread(places - mean[:, :, None], projection)
        features[feature_name(name, kind)] = found
    return features


def pooled_names(map_shapes: Mapping[str, Sequence[int]], kinds: Sequence[str] = KINDS) -> tuple[str, ...]:
    """Return the names of all features of maps whose windows fit, given channels, height and width of each map."""
    return tuple(feature_name(name, kind) for name, shape in map_shapes.items() for kind in kinds if fits(kind, *shape[1:]))


def image_names(image_shape: Sequence[int]) -> tuple[str, ...]:
    """Return the names of all features that `image_features` offers for images of this shape."""
    maps = [_IMAGE] + [_CHROMA] * (image_shape[0] == _COLORS)
    # Unpooled maps are left out: every pixel would be a drifting problem of its own. "pixels" is the whole image.
    names = [name for name in pooled_names(dict.fromkeys(maps, image_shape), IMAGE_KINDS) if name not in maps]
    tiled = ("tiles",) if tiles_cover(image_shape, _TILE, _TILE_STRIDE) else ()
    return (*names, "pixels", *tiled, "norm_x")


def image_features(images: Float[Tensor, "b c h w"], names: Sequence[str]) -> Features:
    """Return features of the images themselves, which are sensitive to color; other names are ignored.

    "pixels" is the flattened image, "tiles" are tiles of 8 x 8 pixels that start 4 pixels apart, if they cover the image, and
    "norm_x" is the root mean square of each channel. "image" comes in the pooled kinds, such as "image_mean" and "image_std_4". So
    does "chroma" of color images: its deviations detect specks of color, which the deviations of the channels do not.
    """
    features: Features = {}
    if "pixels" in names:
        features["pixels"] = images.flatten(1)[:, None]
    if "tiles" in names:
        features["tiles"] = tiles(images, _TILE, _TILE_STRIDE)
    if "norm_x" in names:
        features["norm_x"] = norm_x(images)
    for name, map in ((_IMAGE, lambda: images), (_CHROMA, lambda: chroma(images))):
        if kinds := [kind for kind in IMAGE_KINDS if feature_name(name, kind) in names]:
            features.update(multi_scale(name, map(), kinds))
    return features


def tiles_cover(image_shape: Sequence[int], side: int, stride: int) -> bool:
    """Return whether square tiles whose starts are `stride` pixels apart cover images exactly."""
    return all(0 < stride <= side <= length and (length - side) % stride == 0 for length in image_shape[1:])


def tiles(images: Float[Tensor, "b c h w"], side: int, stride: int) -> Float[Tensor, "b k _"]:
    """Return the square tiles of images whose starts are `stride` pixels apart, row-major, each as one place with channels last."""
    windows = images.unfold(2, side, stride).unfold(3, side, stride)
    return windows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def norm_x(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 c"]:
    """Return the root mean square of every channel over all places, sqrt(mean x^2 + 1e-6), as one location."""
    return _root_mean_square(full_precision(x).flatten(2).transpose(1, 2)[:, None])


def chroma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Return red minus green, and both minus blue: two orthonormal axes orthogonal to gray."""
    red, green, blue = full_precision(images).unbind(1)
    return torch.stack([(red - green) / 2**0.5, (red + green - 2 * blue) / 6**0.5], 1)


def _root_mean_square(places: Float[Tensor, "b k m c"]) -> Float[Tensor, "b k c"]:
    # The constant keeps the gradient of the root finite where all places are equal.
    return torch.sqrt(places.square().mean(2) + _SMALLEST_VARIANCE)


def projected(places: Float[Tensor, "*b c"], projection: Float[Tensor, "d c"] | None) -> Float[Tensor, "*b d"]:
    """Return places, channels last, after a linear projection, or unchanged for None."""
    return places if projection is None else linear(places, projection)


def _spread(centered: Float[Tensor, "b k m c"], projection: Float[Tensor, "d c"] | None) -> Float[Tensor, "b k d"]:
    """Return the standard deviation of every channel after the projection, for places with mean 0.

    With more places than channels, the covariance C is smaller than the places; the variances are then the diagonal of P C P^T.
    """
    count, channels = centered.shape[2:]
    if projection is None or count <= channels:
        return _root_mean_square(projected(centered, projection))
    covariance = centered.transpose(2, 3) @ centered / count
    variance = ((projection @ covariance) * projection).sum(3)
    return torch.sqrt(variance.clamp(min=0) + _SMALLEST_VARIANCE)


def _windows(map: Float[Tensor, "b c h w"], height: int, width: int) -> Float[Tensor, "b k m c"]:
    """Return the places of each window; windows and places are row-major."""
    split = map.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return split.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def subsampled(map: Float[Tensor, "b c h w"], stride: int) -> Float[Tensor, "b c _ _"]:
    """Return the places of a map that a 1 x 1 convolution of this stride reads, so that it can run at stride 1 with the same
    result.

    With channels last, fewer than eight channels and no AVX-512, oneDNN writes the weight gradient of such a convolution at stride
    2 beyond its buffer, which gives wrong gradients and sometimes a crash.
    """
    return map[:, :, ::stride, ::stride]
