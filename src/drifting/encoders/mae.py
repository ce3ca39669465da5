"""A masked auto-encoder on a residual network: it learns to fill in hidden patches, and its feature maps are the features.

    loss = mean over masked entries (reconstruction - image)^2        blended with a cross-entropy in `pretraining.objectives`

An image is first cut into patches, and the values of a patch become the channels of one place of a grid. Mask, reconstruction and
loss are defined on that grid. Four stages of residual blocks make the maps; the last three halve the side. A decoder goes back up
through the same maps.

Shapes: b images, c channels, h x w pixels, patches of p x p; y x x the grid, y = h/p; f = c p p channels of a patch; k classes.

Source: paper, appendix A.3 and A.5; the layers, their order and the 1e-6 are those of the authors' release.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from drifting._checks import PRECISIONS, check_choice, check_counts, check_optimizer, check_steps, full_precision
from drifting.encoders.base import Optimization
from drifting.encoders.pooling import subsampled
from drifting.errors import InputError

# Most groups of a group normalization; with at most this many channels, each is a group of its own.
MAX_GROUPS = 32
# Side of a hidden square, in places of the grid.
MASK_SIDE = 2
_EPSILON = 1e-6

Images = Float[Tensor, "b c h w"]
Mask = Bool[Tensor, "b 1 y x"]


class MaskedAutoencoder(nn.Module):
    """Images -> reconstructions and logits. Images are in [-1, 1], or latents with mean 0, because hidden places are set to 0.

    Args:
        image_shape: channels, height and width of one image, both sides divisible by `patch`; only (channels,) to accept any size.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        patch: side of the patches that an image is cut into; 1 to leave it whole.
        num_classes: number of labels, or None for a network without logits.
        depths: residual blocks of the four stages, each 1 or more.

    Attributes:
        grid: rows and columns of patches, (y, x); () for images of any size.
        map_shapes: name -> shape of one map; only its channels for images of any size. "layer2_blk1" is the first block of the
            second stage, "layer2" the whole stage.

    Raises:
        InputError: if patches do not divide the image, or there are not four stages with blocks.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        width: int = 256,
        patch: int = 1,
        num_classes: int | None = None,
        depths: Sequence[int] = (3, 4, 6, 3),
    ) -> None:
        super().__init__()
        channels, *sides = image_shape
        if patch < 1 or any(side < patch or side % patch for side in sides):
            shown = " x ".join(map(str, sides)) or "of any size"
            raise InputError(f"patch is {patch}: pass a divisor of both sides of the images, which are {shown}")
        if len(depths) != 4 or min(depths) < 1:
            raise InputError(f"depths is {tuple(depths)}: pass the number of blocks of four stages, each 1 or more")
        self.image_shape, self.patch, self.num_classes, self.depths = (channels, *sides), patch, num_classes, tuple(depths)
        self.grid = tuple(side // patch for side in sides)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = _ConvNorm(channels * patch**2, width)
        self.stages = nn.ModuleList(
            _Stage(before, after, depth, stride=2 if index else 1)
            for index, (before, after, depth) in enumerate(zip(widths[:-1], widths[1:], depths, strict=True))
        )
        self.bridge = _ConvNorm(widths[-1], widths[-1])
        self.climb = nn.ModuleList(_Up(widths[level], widths[level - 1], widths[level - 1]) for level in (4, 3, 2, 1))
        self.head = nn.Conv2d(width, channels * patch**2, 1)
        self.classify = nn.Linear(widths[-1], num_classes) if num_classes else None
        self.map_shapes = _map_shapes(width, self.grid, depths)

    def patches(self, images: Images) -> Float[Tensor, "b f y x"]:
        """Return images cut into patches; the channels of a place are (row, column, channel) of its patch, channel fastest.

        Raises:
            InputError: if the shape of the images is not that of the network.
        """
        shape, known = tuple(images.shape[1:]), self.image_shape
        if shape[: len(known)] != known or len(shape) != 3 or any(side < self.patch or side % self.patch for side in shape[1:]):
            takes = known if self.grid else f"{known[0]} channels and sides divisible by {self.patch}"
            raise InputError(f"images are {shape}: this encoder takes {takes}")
        split = images.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        return split.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)

    def maps(self, images: Images, mask: Mask | None = None) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return the maps in the order of `map_shapes`: "conv1" of the stem, then all blocks and the normalized output of each
            stage.

        Args:
            images: images of the shape of the network.
            mask: True where a place of the grid is hidden, that is, set to 0 in all channels; None hides nothing.
        """
        hidden = self.patches(images) if mask is None else self.patches(images).masked_fill(mask, 0)
        # Channels last is slower: group normalization loses more time than the convolutions gain.
        map = self.stem(hidden.contiguous())
        maps = {"conv1": map}
        for number, stage in enumerate(self.stages, 1):
            blocks, map = stage(map)
            maps |= {f"layer{number}_blk{block}": value for block, value in enumerate(blocks, 1)}
            maps[f"layer{number}"] = map
        return maps

    def embed(self, images: Images) -> Float[Tensor, "b d"]:
        """Return the spatial mean of the last map, 8 times `width` channels."""
        return self.maps(images)["layer4"].mean((2, 3))

    def forward(self, images: Images, mask: Mask | None = None) -> tuple[Float[Tensor, "b f y x"], Float[Tensor, "b k"] | None]:
        """Return the reconstruction, in patches, and the logits (None without classes) of images with hidden places."""
        maps = self.maps(images, mask)
        map = self.bridge(maps["layer4"])
        for up, skip in zip(self.climb, ("layer3", "layer2", "layer1", "conv1"), strict=True):
            map = up(map, maps[skip])
        return self.head(map), None if self.classify is None else self.classify(maps["layer4"].mean((2, 3)))


def random_mask(count: int, grid: Sequence[int], rng: torch.Generator, *, probability: float = 0.5, side: int = MASK_SIDE) -> Mask:
    """Draw which places to hide: every square of the grid is hidden with the same probability, independently of the others.

    Args:
        count: number of images.
        grid: rows and columns of patches, (y, x), such as `MaskedAutoencoder.grid`.
        rng: source of randomness; the mask is on its device.
        probability: probability that a square is hidden, from 0 to 1.
        side: side of a square in places, a divisor of both sides of the grid.

    Raises:
        InputError: if squares do not divide the grid, or the probability is not from 0 to 1.
    """
    if side < 1 or any(length % side for length in grid):
        raise InputError(f"side is {side}: pass a divisor of both sides of the grid, which is {grid[0]} x {grid[1]}")
    if not 0 <= probability <= 1:
        raise InputError(f"probability is {probability}: pass a number from 0 to 1")
    draws = torch.rand(count, 1, grid[0] // side, grid[1] // side, generator=rng, device=rng.device)
    return (draws < probability).repeat_interleave(side, 2).repeat_interleave(side, 3)


def mae_loss(reconstruction: Float[Tensor, "b f y x"], patches: Float[Tensor, "b f y x"], mask: Mask) -> Float[Tensor, ""]:
    """Return the mean squared error over all masked entries of the batch, in float32 or better.

    Args:
        reconstruction: output of the network for the masked images.
        patches: `MaskedAutoencoder.patches` of the whole images.
        mask: the mask that the network took; the error of a mask that hides nothing is 0.
    """
    hidden = mask.expand_as(patches)
    differences = (full_precision(reconstruction) - full_precision(patches)).masked_fill(~hidden, 0)
    return differences.square().sum() / hidden.sum().clamp_min(1)


class _ConvNorm(nn.Module):
    """A padded convolution without bias, then group normalization."""

    def __init__(self, before: int, after: int, kernel: int = 3, stride: int = 1, *, active: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm, self.active = _norm(after), active

    def forward(self, map: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ _ _"]:
        map = self.norm(self.conv(map))
        return relu(map) if self.active else map


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _ConvNorm(before, after, stride=stride)
        self.second = _ConvNorm(after, after, active=False)
        changes = stride > 1 or before != after
        self.shortcut = _ConvNorm(before, after, 1, active=False) if changes else nn.Identity()
        self.stride = stride

    def forward(self, map: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ _ _"]:
        return relu(self.second(self.first(map)) + self.shortcut(subsampled(map, self.stride)))


class _Stage(nn.Module):
    def __init__(self, before: int, after: int, depth: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(after if index else before, after, 1 if index else stride) for index in range(depth))
        self.norm = _norm(after)

    def forward(self, map: Float[Tensor, "b c h w"]) -> tuple[list[Tensor], Float[Tensor, "b _ _ _"]]:
        """Return the output of every block, and the normalized output of the last one."""
        outputs = []
        for block in self.blocks:
            map = block(map)
            outputs.append(map)
        return outputs, self.norm(map)


class _Up(nn.Module):
    def __init__(self, before: int, skip: int, after: int) -> None:
        super().__init__()
        self.norm = _norm(before + skip)
        self.first, self.second = _ConvNorm(before + skip, after), _ConvNorm(after, after)

    def forward(self, map: Float[Tensor, "b c h w"], skip: Float[Tensor, "b s y x"]) -> Float[Tensor, "b _ y x"]:
        larger = interpolate(map, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return self.second(self.first(self.norm(torch.cat([larger, skip], 1))))


def _norm(channels: int) -> nn.GroupNorm:
    groups = max(count for count in range(1, MAX_GROUPS + 1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=_EPSILON)


def _map_shapes(width: int, grid: tuple[int, ...], depths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    shapes, sides = {"conv1": (width, *grid)}, grid
    for index, depth in enumerate(depths):
        if index:
            sides = tuple((side + 1) // 2 for side in sides)
        names = [f"layer{index + 1}_blk{block}" for block in range(1, depth + 1)] + [f"layer{index + 1}"]
        shapes |= dict.fromkeys(names, (width * 2**index, *sides))
    return shapes


@dataclass(frozen=True, kw_only=True)
class MaskedTraining(Optimization):
    """How a masked auto-encoder is trained.

    Attributes:
        steps: number of optimizer steps.
        batch_size: number of images in a step.
        microbatch_size: number of images in one pass, which bounds memory and changes no result; None for all.
        learning_rate: highest learning rate of the optimizer.
        classification_weight: weight of the classification in the loss, from 0 to 1.
        classified_steps: number of steps at the end that also learn classes; None for all steps.
        classification_warmup: number of those steps over which the weight of the classification rises linearly from 0.
    """

    steps: int = 2000
    batch_size: int = 128
    microbatch_size: int | None = None
    learning_rate: float = 1e-3
    classification_weight: float = 0.0
    classified_steps: int | None = None
    classification_warmup: int = 0

    def weight_at(self, number: int) -> float:
        """Return the weight of the classification in the loss of a step, counted from 1."""
        since = number if self.classified_steps is None else number - (self.steps - self.classified_steps)
        return self.classification_weight * min(1.0, max(0, since) / max(1, self.classification_warmup))

    def check(self, prefix: str = "") -> None:
        """Raise InputError if training cannot work with a setting; the error names the setting after the prefix."""
        counted = {name: getattr(self, name) for name in ("steps", "batch_size", "microbatch_size", "classified_steps")}
        check_counts({f"{prefix}{name}": value for name, value in counted.items() if value is not None})
        check_optimizer(self, prefix)
        check_choice(f"{prefix}precision", self.precision, PRECISIONS)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"{prefix}ema_decay is {self.ema_decay}: pass a number from 0 to below 1")
        if not 0 <= self.classification_weight <= 1:
            raise InputError(f"{prefix}classification_weight is {self.classification_weight}: pass a number from 0 to 1")
        check_steps(f"{prefix}classification_warmup", self.classification_warmup)
