"""Views of images for contrastive training: SimCLR's augmentations as batch operations. A strength of 0 disables an operation.

The order is crop, flip, then with some probability brightness, contrast, saturation and hue (in this fixed order; SimCLR draws the
order), grayscale, blur. Every image has its own draws and does not depend on the others; every operation is differentiable. The
operations take the draws as arguments, one value per image; `augment` makes the draws.

    brightness     v' = a v             with v = (x + 1) / 2, the image in [0, 1]
    contrast       x' = a x + (1 - a) mean of gray(x)
    saturation     x' = a x + (1 - a) gray(x)
    hue            the chroma (I, Q) of YIQ turned by an angle: linear, and gray and luma stay, unlike with the hue of HSV

Each of the four clamps its result to [-1, 1]. A trunk trained on views with changed colors is blind to color; disable this with
`jitter=0, gray=0`.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709, appendix.

Shapes: b images, c channels (color needs 3; gray images have 1, and no saturation or hue), h x w pixels in [-1, 1].
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from drifting._checks import check_counts
from drifting.errors import InputError

# Red, green and blue -> luma and the two axes of chroma (NTSC); rows of chroma sum to 0, so gray has none.
_LUMA = (0.299, 0.587, 0.114)
_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))

# Share of blurred images, as in SimCLR, and radius of the kernel in standard deviations.
_BLURRED = 0.5
_REACH = 3
Images = Float[Tensor, "b c h w"]
PerImage = Float[Tensor, " b"]


@dataclass(frozen=True, kw_only=True)
class Views:
    """The strengths of the augmentation; 0 disables an operation.

    The defaults are those of SimCLR for CIFAR-10, except that SimCLR crops down to 8 % of the area.

    Attributes:
        crop: largest share of the area of an image that a crop leaves out, below 1; the share is uniform. The crop is resized to
            the size of the image.
        stretch: largest relative change of the aspect ratio of a crop, log-uniform in [1 / (1 + stretch), 1 + stretch] if it fits.
        flip: probability of mirroring an image.
        jitter: probability of changing brightness, contrast, saturation and hue.
        brightness: largest relative change of the brightness; the factor is uniform in [1 - brightness, 1 + brightness], clipped at
            0.
        contrast: the same for the contrast.
        saturation: the same for the saturation.
        hue: largest rotation of the color circle, in turns, up to 0.5.
        gray: probability of removing the color of an image.
        blur: largest standard deviation of the Gaussian in pixels, uniform from 0; half of the images are blurred.
        size: side in pixels of the square views; None for the size of the images.
    """

    crop: float = 0.8
    stretch: float = 1 / 3
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray: float = 0.2
    blur: float = 0.0
    size: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError if a strength is out of its range."""
        highest = {"flip": 1.0, "jitter": 1.0, "gray": 1.0, "hue": 0.5}
        if self.size is not None:
            check_counts({"size": self.size})
        for name in (name for name in self.__dataclass_fields__ if name != "size"):
            value, most = getattr(self, name), highest.get(name, math.inf)
            if not (0 <= value <= most and math.isfinite(value)):
                bound = "or more" if most == math.inf else f"to {most}"
                raise InputError(f"{name} is {value}: pass a number from 0 {bound}, 0 to switch it off")
        if self.crop >= 1:
            raise InputError(f"crop is {self.crop}: pass a number from 0 to below 1, the share that may be left out")

    @property
    def colored(self) -> bool:
        """Whether colors change."""
        return bool(self.gray or (self.jitter and (self.brightness or self.contrast or self.saturation or self.hue)))


def augment(images: Images, settings: Views, rng: torch.Generator) -> Float[Tensor, "b c _ _"]:
    """Return a view of every image, of the same size or that of the settings.

    Args:
        images: images with 1 or 3 channels if colors change.
        settings: the strengths.
        rng: source of randomness; it should be on the device of the images.

    Raises:
        InputError: if colors should change in images with neither 1 nor 3 channels.
    """
    if settings.colored and images.shape[1] not in (1, 3):
        raise InputError(f"images have {images.shape[1]} channels: colors need 3, or 1 for gray; pass jitter=0 and gray=0")
    # Products in half precision would shift colors.
    with torch.autocast(images.device.type, enabled=False):
        if settings.crop or settings.size is not None:
            images = crop(images, draw_boxes(images, rng, left_out=settings.crop, stretch=settings.stretch), settings.size)
        if settings.flip:
            images = flip(images, _uniform(images, rng) < settings.flip)
        if settings.jitter:
            images = _jitter(images, settings, rng)
        if settings.gray:
            images = _choose(_uniform(images, rng) < settings.gray, grayscale(images), images)
        if settings.blur:
            blurred = blur(images, settings.blur * _uniform(images, rng), reach=settings.blur)
            images = _choose(_uniform(images, rng) < _BLURRED, blurred, images)
    return images


def draw_boxes(images: Images, rng: torch.Generator, *, left_out: float, stretch: float) -> Float[Tensor, "b 4"]:
    """Return a box for every image, see `crop`. Its area is drawn first, then an aspect ratio that fits, then its position.

    Args:
        images: the images; boxes have their number, dtype and device.
        rng: source of randomness.
        left_out: see `Views.crop`.
        stretch: see `Views.stretch`. Aspect ratios are relative to that of the image.
    """
    area = 1 - left_out * _uniform(images, rng)
    widest = (-area.log()).clamp(max=math.log1p(stretch))
    ratio = (widest * (2 * _uniform(images, rng) - 1)).exp()
    # Rounding could make a side longer than the image.
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    return torch.stack([(1 - height) * _uniform(images, rng), (1 - width) * _uniform(images, rng), height, width], 1)


def crop(images: Images, boxes: Float[Tensor, "b 4"], size: int | None = None) -> Float[Tensor, "b c _ _"]:
    """Return boxes (top, left, height, width, as shares of the image) resized bilinearly to the size of the images, or to a square.

    Outside the centers of the outermost pixels, the image continues with their values.
    """
    top, left, height, width = boxes.unbind(1)
    zero = torch.zeros_like(top)
    # Grid coordinates run over [-1, 1] along both axes.
    matrix = torch.stack([width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], 1)
    sides = images.shape[2:] if size is None else (size, size)
    grid = affine_grid(matrix.unflatten(1, (2, 3)), [*images.shape[:2], *sides], align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def flip(images: Images, chosen: Bool[Tensor, " b"]) -> Images:
    """Return the images with the chosen ones mirrored left to right."""
    return _choose(chosen, images.flip(3), images)


def brightness(images: Images, factor: PerImage) -> Images:
    """Return images with their values, measured from black, multiplied by a factor."""
    factor = _spread(factor)
    # In this form a factor of 1 is exact.
    return (images * factor + (factor - 1)).clamp(-1, 1)


def contrast(images: Images, factor: PerImage) -> Images:
    """Return images with their differences from their mean luma multiplied by a factor."""
    return _blend(images, _luma(images).mean((2, 3), keepdim=True), factor)


def saturation(images: Images, factor: PerImage) -> Images:
    """Return images with the difference of every pixel from its luma multiplied by a factor; gray images stay."""
    return _blend(images, _luma(images), factor)


def hue(images: Images, turns: PerImage) -> Images:
    """Return images with their colors rotated around gray at constant luma, red toward yellow; gray images stay."""
    if images.shape[1] == 1:
        return images
    angle = (2 * math.pi * turns)[:, None, None]
    gray, quarter = images.new_tensor([_LUMA] * 3), images.new_tensor(_quarter_turn())
    # Luma stays, and chroma c becomes c cos + (c rotated by a quarter turn) sin; an angle of 0 is exact.
    matrix = gray + angle.cos() * (torch.eye(3).to(gray) - gray) + angle.sin() * quarter
    return (matrix @ images.flatten(2)).unflatten(2, images.shape[2:]).clamp(-1, 1)


def grayscale(images: Images) -> Images:
    """Return images with their luma in every channel."""
    return _luma(images).expand_as(images)


def blur(images: Images, std: PerImage, *, reach: float) -> Images:
    """Return images blurred with a Gaussian with standard deviation `std` in pixels; 0 changes nothing.

    Args:
        images: the images; their edges are replicated.
        std: one value per image, 0 or more.
        reach: largest `std`; the kernels end at three times this many pixels.
    """
    radius = math.ceil(_REACH * reach)
    places = torch.arange(-radius, radius + 1, device=images.device)
    # With the smallest deviation only the middle of the kernel remains: its neighbors underflow to 0.
    weights = torch.exp(-0.5 * (places / std.clamp_min(1e-2)[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[:, None]
    # One group per map, each with the kernel of its image.
    maps = pad(images.flatten(0, 1)[None], (radius,) * 4, mode="replicate")
    for kernel in (weights[..., None], weights[:, :, None]):
        maps = conv2d(maps, kernel, groups=len(weights))
    return maps[0].unflatten(0, images.shape[:2])


def _jitter(images: Images, settings: Views, rng: torch.Generator) -> Images:
    """Return the images with changed colors; images that are not chosen stay exactly the same."""
    chosen = _uniform(images, rng) < settings.jitter
    for change, strength in [(brightness, settings.brightness), (contrast, settings.contrast), (saturation, settings.saturation)]:
        if strength:
            least = max(0.0, 1 - strength)
            factor = least + (1 + strength - least) * _uniform(images, rng)
            images = change(images, torch.where(chosen, factor, 1))
    if settings.hue:
        images = hue(images, torch.where(chosen, settings.hue * (2 * _uniform(images, rng) - 1), 0))
    return images


@functools.cache
def _quarter_turn() -> list[list[float]]:
    """Return the matrix that removes the luma of a color and rotates its chroma by a quarter turn, red toward yellow."""
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64)
    turn = to_yiq.new_tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return (torch.linalg.inv(to_yiq) @ turn @ to_yiq).tolist()


def _uniform(images: Images, rng: torch.Generator) -> PerImage:
    return torch.rand(len(images), generator=rng, device=rng.device).to(images)


def _spread(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _choose(chosen: Bool[Tensor, " b"], yes: Images, no: Images) -> Images:
    return torch.where(_spread(chosen), yes, no)


def _blend(images: Images, other: Tensor, factor: PerImage) -> Images:
    factor = _spread(factor)
    return (factor * images + (1 - factor) * other).clamp(-1, 1)


def _luma(images: Images) -> Float[Tensor, "b 1 h w"]:
    return images if images.shape[1] == 1 else (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
