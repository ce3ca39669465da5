"""Features of a trained masked auto-encoder, and the two configurations of one: to train it, and to drift in its features.

The feature space of the paper is that of a trained masked auto-encoder, the sample itself and, for images, a ConvNeXt-V2.

Shapes: b images, c channels, h x w pixels.

Source: paper, appendix A.3 and A.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import check_counts
from drifting._torch import shapes_only
from drifting.checkpoint import load_weights
from drifting.encoders.base import (
    EncoderConfig,
    FeatureEncoder,
    Features,
    Frozen,
    Weights,
    checked_names,
    compose,
    floats_for,
    identity,
)
from drifting.encoders.mae import MASK_SIDE, MAX_GROUPS, MaskedAutoencoder, MaskedTraining
from drifting.encoders.pooling import KINDS, feature_name, fits, multi_scale, norm_x
from drifting.encoders.pretrained import CONVNEXT_FEATURES, load_pretrained
from drifting.errors import InputError

Images = Float[Tensor, "b c h w"]

# Parts of the network that features do not need; they hold a fifth of the weights.
_DECODER = ("bridge", "climb", "head")


class MAEFeatures(Frozen):
    """Feature encoder: chosen features of a trained masked auto-encoder, which is frozen in place.

    Args:
        autoencoder: the trained network.
        names: names of the features: "norm_x" (root mean square of each channel of the patches), and the maps in the kinds of
            `pooling.multi_scale`, such as "conv1", "layer1_mean" or "layer2_blk2_std_4"; None for all that the release uses. For
            images of any size, a call leaves out the features whose windows do not divide a map.
        every: interval of the blocks inside a stage that are features if `names` is None; 2 for every second block, as in the
            release.

    Raises:
        InputError: if a name is unknown or repeated, if its windows do not divide the map, if there is no name, or if `every` is
            below 1.
    """

    def __init__(self, autoencoder: MaskedAutoencoder, names: Sequence[str] | None = None, *, every: int = 2) -> None:
        super().__init__(autoencoder)
        known = available_features(autoencoder)
        names = available_features(autoencoder, every) if names is None else names
        self.names = checked_names(names, known)
        self._kinds = {map: [kind for kind in KINDS if feature_name(map, kind) in names] for map in autoencoder.map_shapes}

    @property
    def autoencoder(self) -> MaskedAutoencoder:
        """The network."""
        return cast(MaskedAutoencoder, self.module)

    def forward(self, samples: Images) -> Features:
        """Return the chosen features in the order of `names`, computed in the precision of the network."""
        samples = floats_for(self.autoencoder, samples)
        features = {"norm_x": norm_x(self.autoencoder.patches(samples))}
        for name, map in self.autoencoder.maps(samples).items():
            features.update(multi_scale(name, map, self._kinds[name]))
        return {name: features[name] for name in self.names if name in features}


def available_features(autoencoder: MaskedAutoencoder, every: int = 1) -> tuple[str, ...]:
    """Return the names of all features, with only each `every`-th block inside a stage, counted from 1."""
    if every < 1:
        raise InputError(f"every is {every}: pass 1 for all blocks, 2 for every second one")
    names = ["norm_x"]
    for name, shape in autoencoder.map_shapes.items():
        _, _, block = name.partition("_blk")
        if not block or int(block) % every == 0:
            names += [feature_name(name, kind) for kind in KINDS if fits(kind, *shape[1:])]
    return tuple(names)


@dataclass(frozen=True, kw_only=True)
class MAEFeaturesConfig(EncoderConfig):
    """Drift in the features of a trained masked auto-encoder and in the sample itself, as in the paper.

    Attributes:
        weights: file of its weights, such as encoder.safetensors of a `MAEConfig` run; None if it is not known yet.
        width: number of channels of the first stage.
        patch: side in pixels of its patches.
        depths: number of blocks of each stage.
        features: names of the features that samples drift in, see `MAEFeatures`; None for all that the release uses.
        every: interval of the blocks inside a stage that are features if none are named; 2 for every second block.
        convnext: Hub id or folder of a ConvNeXt-V2 whose features are added, for images in [-1, 1]; None for none.
        resize: side in pixels of the square that images are resized to for the ConvNeXt-V2; None to keep their size.
    """

    weights: str | None = None
    width: int = 256
    patch: int = 1
    depths: tuple[int, ...] = (3, 4, 6, 3)
    features: tuple[str, ...] | None = None
    every: int = 2
    convnext: str | None = None
    resize: int | None = 224

    @property
    def published(self) -> str:
        """Name of the authors' network of this size, such as latent-256."""
        return f"{'latent' if self.patch == 1 else 'pixel'}-{self.width}"

    def build_network(
        self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]
    ) -> MaskedAutoencoder:
        """Return the trained network without decoder and logits, which features do not need."""
        if len(image_shape) != 3 or self.weights is None:
            missing = "its weights are not named" if len(image_shape) == 3 else "the data are not images of a known shape"
            raise InputError(f"encoder is a masked auto-encoder, but {missing}: pass both")
        # On meta, because drawing the initial values of the largest networks takes longer than reading the weights.
        with shapes_only():
            network = MaskedAutoencoder(image_shape, width=self.width, patch=self.patch, depths=self.depths)
        for part in _DECODER:
            delattr(network, part)
        needed = {name: value for name, value in read(self.weights).items() if not name.startswith((*_DECODER, "classify"))}
        load_weights(network.to_empty(device="cpu"), needed, self.weights)
        return network

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> FeatureEncoder:
        """Return the features of the network, the sample itself as "global" and, if configured, those of a ConvNeXt-V2."""
        autoencoder = cast(MaskedAutoencoder, network)
        own = MAEFeatures(autoencoder, self.features, every=self.every)
        parts: dict[str, FeatureEncoder] = {"": lambda samples: {**own(samples), "global": identity(samples)["sample"]}}
        if self.convnext is not None:
            shape = autoencoder.image_shape
            convnext = load_pretrained(self.convnext, CONVNEXT_FEATURES, image_shape=shape, resize=self.resize)
            parts["convnext"] = convnext.to(device)
        return compose(parts)


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MaskedTraining, EncoderConfig):
    """A `MaskedAutoencoder` and its training, which is a run of its own: it learns to fill in hidden patches.

    Attributes:
        width: number of channels of the first stage.
        patch: side in pixels of the patches.
        depths: number of blocks of each stage.
    """

    objective: ClassVar[str | None] = "masked"
    kind: ClassVar[str | None] = "mae"
    alone: ClassVar[bool] = True
    # What the release calls networks of this kind.
    released_as: ClassVar[str] = "mae"

    width: int = 64
    patch: int = 2
    depths: tuple[int, ...] = (2, 2, 2, 2)

    @property
    def learns_classes(self) -> bool:
        """Whether the training needs labels."""
        return self.classification_weight > 0

    def build_network(
        self, image_shape: tuple[int, ...], *, num_classes: int | None, read: Callable[[str], Weights]
    ) -> MaskedAutoencoder:
        """Return the network, or raise InputError if its grid cannot be masked or its last maps would be constant."""
        network = MaskedAutoencoder(image_shape, width=self.width, patch=self.patch, depths=self.depths, num_classes=num_classes)
        if any(side % MASK_SIDE for side in network.grid):
            cut = f"cuts images into {network.grid[0]} x {network.grid[1]} patches, of which squares of {MASK_SIDE} are hidden"
            raise InputError(f"patch is {self.patch}, which {cut}: pass one that leaves an even number")
        # A channel that is normalized by itself loses its mean, so at a single place, or in features that are means, it is 0.
        blank = [shape[0] for name, shape in network.map_shapes.items() if name == "layer4" or shape[1:] == (1, 1)]
        if min(blank) <= MAX_GROUPS:
            least = -(-(MAX_GROUPS + 1) * self.width // min(blank))
            raise InputError(f"width is {self.width}, whose last maps are blank once normalized: pass at least {least}")
        return network

    def build_features(self, network: nn.Module | None, device: str = "cpu") -> FeatureEncoder:
        """Raise InputError: runs use the trained network through `MAEFeaturesConfig`."""
        raise InputError("encoder is MAEConfig, which is trained on its own: pass MAEFeaturesConfig")

    def check(self, prefix: str = "") -> None:
        """Raise InputError if training cannot work with a setting; see `EncoderConfig.check`."""
        check_counts({f"{prefix}width": self.width})
        super().check(prefix)

    def as_trained(self, weights: str, before: EncoderConfig) -> EncoderConfig:
        """Return the encoder over the trained network, with the features of `before` if that is a masked auto-encoder too."""
        own = before if isinstance(before, MAEFeaturesConfig) else MAEFeaturesConfig()
        return replace(own, weights=weights, width=self.width, patch=self.patch, depths=self.depths)
