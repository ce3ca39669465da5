"""ResNet-10, ResNet-18 and ResNet-50 with torchvision's weight names, for ImageNet and for small images, and their features.

ResNet-10 has one block in every stage. Stage n is torchvision's `layern`; its map is the output of the last block, after the ReLU.
As in torchvision, the stride of a bottleneck is in its 3 x 3 convolution. With `feature_dims`, linear projections give the features
of a narrow trunk a chosen length.

Shapes: b images, c channels, h x w pixels or places, d features, k classes.

Source: He et al., "Deep Residual Learning", arXiv:1512.03385; features: paper, appendix A.5.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

from drifting._checks import OPTIMIZERS, PRECISIONS, check_choice, check_counts, check_learning_rate
from drifting.checkpoint import load_weights
from drifting.data.augmentation import Views
from drifting.encoders.base import EncoderConfig, Features, Frozen, Weights, checked_names
from drifting.encoders.pooling import (
    IMAGENET,
    KINDS,
    Standardize,
    Statistics,
    feature_name,
    image_features,
    image_names,
    multi_scale,
    pooled_names,
    projected,
    subsampled,
)
from drifting.errors import InputError

# Blocks of each stage, and output channels of a block divided by its width; more than 1 for a bottleneck.
_ARCHS = {"resnet10": ((1, 1, 1, 1), 1), "resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}
STAGES = ("stage1", "stage2", "stage3", "stage4")

Images = Float[Tensor, "b c h w"]
Map = Float[Tensor, "b _ _ _"]


class _Block(nn.Module):
    """A residual block: two 3 x 3 convolutions or, if channels expand, a bottleneck of 1 x 1, 3 x 3 and 1 x 1 convolutions."""

    def __init__(self, before: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _layer(before, width, 3, stride) if expansion == 1 else _layer(before, width, 1)
        self.conv2, self.bn2 = _layer(width, width, 3, 1 if expansion == 1 else stride)
        if expansion > 1:
            self.conv3, self.bn3 = _layer(width, expansion * width, 1)
        same = stride == 1 and before == expansion * width
        self.downsample = None if same else nn.Sequential(*_layer(before, expansion * width, 1))
        self.bottleneck, self.stride = expansion > 1, stride

    def forward(self, map: Map) -> Map:
        inner = normalized(map, self.conv1, self.bn1).relu_()
        inner = normalized(inner, self.conv2, self.bn2)
        if self.bottleneck:
            inner = normalized(inner.relu_(), self.conv3, self.bn3)
        if self.downsample is not None:
            map = subsampled(map, self.stride)
            map = normalized(map, cast(nn.Conv2d, self.downsample[0]), cast(nn.BatchNorm2d, self.downsample[1]))
        return inner.add_(map).relu_()


class ResNet(nn.Module):
    """Images in [-1, 1] -> logits, with named intermediate maps.

    The projection of the last stage comes before the classifier, so every loss trains it. The projections of earlier stages are not
    trained: they keep their semi-orthogonal initial values, which preserve all distances if they add channels.

    Args:
        arch: "resnet10", "resnet18" or "resnet50".
        image_shape: channels, height and width of the images.
        num_classes: number of labels, or None for a network without logits.
        small_stem: start with a 3 x 3 convolution instead of a 7 x 7 convolution of stride 2 and max pooling of stride 2.
        width: channels of the stem and of the convolutions of the first stage; 64 is the standard.
        feature_dims: lengths to which the features of the last stages are projected: one length for the last stage only, four for
            all; None for no projection.
        resize: side of the square that images are resized to first; None to keep their size.
        statistics: mean and standard deviation of every channel, for images in [0, 1]; those of ImageNet by default.

    Attributes:
        map_shapes: name of a map -> its channels, height and width.

    Raises:
        InputError: if an argument is out of its range.
    """

    def __init__(
        self,
        arch: str,
        image_shape: Sequence[int],
        *,
        num_classes: int | None,
        small_stem: bool,
        width: int = 64,
        feature_dims: Sequence[int] | None = None,
        resize: int | None = None,
        statistics: Statistics = IMAGENET,
    ) -> None:
        super().__init__()
        dims = tuple(feature_dims or ())
        _check(arch, dims, width=width, num_classes=num_classes, feature_dims=min(dims, default=None), resize=resize)
        depths, expansion = _ARCHS[arch]
        self.standardize = Standardize(image_shape, statistics, resize)
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        self.conv1, self.bn1 = _layer(self.image_shape[0], width, 3) if small_stem else _layer(self.image_shape[0], width, 7, 2)
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        self.map_shapes: dict[str, tuple[int, int, int]] = {}
        before, sides = width, [side if small_stem else -(-side // 4) for side in self.standardize.sides]
        for index, (stage, depth) in enumerate(zip(STAGES, depths, strict=True)):
            inside, stride = width * 2**index, min(2, index + 1)
            blocks = [_Block(before if n == 0 else expansion * inside, inside, 1 if n else stride, expansion) for n in range(depth)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
            # With its padding, every layer of stride 2 halves a side, rounded up.
            before, sides = expansion * inside, [-(-side // stride) for side in sides]
            names = (*(f"{stage}_block{number}" for number in range(1, depth)), stage)
            self.map_shapes |= dict.fromkeys(names, (before, sides[0], sides[1]))
        projected = {s: (self.map_shapes[s][0], d) for s, d in zip(STAGES[len(STAGES) - len(dims) :], dims, strict=True)}
        self.projections = nn.ModuleDict({stage: nn.Linear(*sizes, bias=False) for stage, sizes in projected.items()})
        self.feature_dim = dims[-1] if dims else before
        self.fc = nn.Linear(self.feature_dim, num_classes) if num_classes else nn.Identity()
        self._initialize()
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - faster on a CPU

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # Bottlenecks start as identities, which makes fifty layers learn faster at first.
            if isinstance(module, _Block) and module.bottleneck:
                nn.init.zeros_(module.bn3.weight)
        for stage, projection in self.projections.items():
            nn.init.orthogonal_(cast(nn.Linear, projection).weight)
            projection.requires_grad_(stage == STAGES[-1])

    def maps(self, images: Images, names: Sequence[str] = STAGES) -> dict[str, Map]:
        """Return the maps with these names; layers after the last one are not run.

        Args:
            images: images of `image_shape` in [-1, 1].
            names: "stage1" to "stage4", or names such as "stage2_block1" for the output of a block before the last of its stage.

        Raises:
            InputError: if a name is unknown, there is no name, or the images have another shape.
        """
        checked_names(names, tuple(self.map_shapes))
        map = self.maxpool(normalized(self.standardize(images), self.conv1, self.bn1).relu_())
        found: dict[str, Tensor] = {}
        blocks = (block for index in range(len(STAGES)) for block in getattr(self, f"layer{index + 1}"))
        for name, block in zip(self.map_shapes, blocks, strict=True):
            map = block(map)
            if name in names:
                found[name] = map
            if len(found) == len(names):
                break
        return {name: found[name] for name in names}

    def projection(self, stage: str) -> Float[Tensor, "d c"] | None:
        """Return the matrix that projects the features of a stage to its length in `feature_dims`, or None."""
        return cast(nn.Linear, self.projections[stage]).weight if stage in self.projections else None

    def embed(self, images: Images) -> Float[Tensor, "b d"]:
        """Return the projected mean over places of the last stage, which is the input of the classifier."""
        last = STAGES[-1]
        return projected(self.maps(images, (last,))[last].mean((2, 3)), self.projection(last))

    def forward(self, images: Images) -> Float[Tensor, "b k"]:
        """Return the logits of every class, or the result of `embed` if the network has no logits."""
        return self.fc(self.embed(images))


class ResNetFeatures(Frozen):
    """Feature encoder: chosen features of a trained ResNet, which is frozen in place.

    Args:
        network: the trained network.
        names: names of the features: the maps of the network in the kinds of `pooling.multi_scale`, such as "stage2" or
            "stage2_std", and the features of the images themselves, see `pooling.image_features`. "stage4_mean" is the vector of
            `ResNet.embed`.

    Raises:
        InputError: if a name is unknown or repeated, if its windows do not divide the map, or if there is no name.
    """

    def __init__(self, network: ResNet, names: Sequence[str] = ("stage4_mean",)) -> None:
        super().__init__(network)
        self.names = checked_names(names, available_features(network))
        kinds = {map: [kind for kind in KINDS if feature_name(map, kind) in names] for map in network.map_shapes}
        self._kinds = {map: chosen for map, chosen in kinds.items() if chosen}

    @property
    def network(self) -> ResNet:
        """The network."""
        return cast(ResNet, self.module)

    def forward(self, samples: Images) -> Features:
        """Return the chosen features in the order of `names`; features of maps are float32."""
        self.network.standardize.check(samples)
        maps = self.network.maps(samples, tuple(self._kinds)) if self._kinds else {}
        features = image_features(samples, self.names)
        with torch.autocast(samples.device.type, enabled=False):
            for name, map in maps.items():
                features.update(multi_scale(name, map, self._kinds[name], self.network.projection(name)))
        return {name: features[name] for name in self.names}


def available_features(network: ResNet) -> tuple[str, ...]:
    """Return the names of all features that a ResNet offers."""
    return (*pooled_names(network.map_shapes), *image_names(network.image_shape))


def adapt_weights(network: ResNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights in the form that `checkpoint.load_weights` expects for this network.

    A classifier `fc` for another number of classes is dropped, because features do not need it; the logits are then untrained.
    Old weights without the batch counts of the normalization layers get those of the network.
    """
    own = network.state_dict()
    adapted = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")} | dict(weights)
    expected, published = own.get("fc.weight"), weights.get("fc.weight")
    if expected is None or (
        published is not None and published.shape[1:] == expected.shape[1:] and len(published) != len(expected)
    ):
        adapted = {name: value for name, value in adapted.items() if not name.startswith("fc.")}
        adapted |= {name: value for name, value in own.items() if name.startswith("fc.")}
    return adapted


def normalized(map: Map, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Map:
    """Return the convolution of a map, followed by batch normalization.

    In evaluation mode the normalization is folded into the convolution, which saves a pass over the map and a copy of it for the
    backward pass.
    """
    if norm.training:
        return norm(convolution(map))
    scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
    shift = norm.bias - cast(Tensor, norm.running_mean) * scale
    return conv2d(map, convolution.weight * scale[:, None, None, None], shift, convolution.stride, convolution.padding)


def _layer(before: int, after: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(after)


def stage_depths(arch: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage, or raise InputError for an unknown name."""
    if arch not in _ARCHS:
        raise InputError(f"arch is '{arch}': pass {' or '.join(_ARCHS)}")
    return _ARCHS[arch][0]


def _check(arch: str, dims: Sequence[int], **sizes: int | None) -> None:
    stage_depths(arch)
    if len(dims) > len(STAGES):
        raise InputError(f"feature_dims is {dims}: pass a length for each of at most {len(STAGES)} stages")
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: pass at least 1")


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(EncoderConfig):
    """Drift in the features of a `ResNet` that the run trains first, to classify its own images.

    Attributes:
        arch: resnet10, resnet18 or resnet50.
        width: number of channels of the first stage.
        small_stem: start with a stem for small images instead of the ImageNet stem, which reduces the side to a quarter.
        feature_dims: lengths to which the features of the last stages are projected; None for no projection.
        resize: side in pixels of the square that images are resized to; None to keep their size.
        features: names of the features that samples drift in, see `ResNetFeatures`.
        weights: file of weights with torchvision's names; None to train the network.
        steps: number of optimizer steps of its training.
        batch_size: number of images in a step of its training.
        learning_rate: highest learning rate of its training.
        optimizer: train it with "adamw" or with "muon", see `training.state`.
        precision: compute precision of its training: float32 or bfloat16; weights and loss stay float32.
        crop: largest share of the area of an image that a crop leaves out in training, from 0 to below 1.
        flip: probability of mirroring an image in training.
        label_smoothing: probability spread evenly over all classes in training, from 0 to below 1.
        cut_mix: probability that the images of a step, and their labels, are mixed in training, from 0 to 1; see
            `pretraining.objectives.cut_mix`. It helps if the network would learn its images by heart.
    """

    objective: ClassVar[str | None] = "classes"
    kind: ClassVar[str | None] = "supervised"
    noun: ClassVar[str] = "a ResNet"
    any_size: ClassVar[bool] = True

    arch: str = "resnet18"
    width: int = 64
    small_stem: bool = True
    feature_dims: tuple[int, ...] | None = None
    resize: int | None = None
    features: tuple[str, ...] = ("stage4_mean",)
    weights: str | None = None
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    optimizer: str = "adamw"
    precision: str = "float32"
    crop: float = 0.4
    flip: float = 0.5
    label_smoothing: float = 0.0
    cut_mix: float = 0.0

    @property
    def views(self) -> Views:
        """The augmentation of its training images."""
        return Views(crop=self.crop, flip=self.flip, jitter=0.0, gray=0.0)

    @property
    def learns_classes(self) -> bool:
        """Whether the training needs labels. A network with published weights has no logits."""
        return self.weights is None

    def build_network(self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]) -> ResNet:
        """Return the network; see `EncoderConfig.build_network`."""
        halves = (0.5,) * image_shape[0]
        network = ResNet(
            self.arch,
            image_shape,
            num_classes=num_classes,
            width=self.width,
            small_stem=self.small_stem,
            feature_dims=self.feature_dims,
            resize=self.resize,
            statistics=IMAGENET if image_shape[0] == 3 else (halves, halves),
        )
        checked_names(self.features, available_features(network))
        if self.weights is not None:
            load_weights(network, adapt_weights(network, read(self.weights)), self.weights)
        return network

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> ResNetFeatures:
        """Return the features over a trained network."""
        return ResNetFeatures(cast(ResNet, network), self.features)

    def check(self, prefix: str = "") -> None:
        """Raise InputError if training cannot work with a setting; see `EncoderConfig.check`."""
        check_counts({f"{prefix}{name}": getattr(self, name) for name in ("width", "steps", "batch_size")})
        check_learning_rate(self.learning_rate, f"{prefix}learning_rate")
        check_choice(f"{prefix}optimizer", self.optimizer, OPTIMIZERS)
        check_choice(f"{prefix}precision", self.precision, PRECISIONS)
        if self.batch_size == 1:
            raise InputError(f"{prefix}batch_size is 1, too few to normalize over: pass at least 2")
        for name, limit in (("label_smoothing", "below 1"), ("cut_mix", "1")):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (limit != "1" and value == 1):
                raise InputError(f"{prefix}{name} is {value}: pass a number from 0 to {limit}")
        try:
            _ = stage_depths(self.arch), self.views
        except InputError as error:
            raise InputError(f"{prefix}{error}") from None
