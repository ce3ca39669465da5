"""The encoder in whose features a run drifts."""

from dataclasses import dataclass

from drifting.data.augmentation import Views
from drifting.pretraining.objectives import MaskedTraining


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """Drifting in the space of the samples themselves: `encoders.base.identity`."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Drifting in the features of an `encoders.autoencoder.Autoencoder` that the run trains first on its own images.

    Attributes:
        code_dim, width: of the network.
        features: which of its features, see `AutoencoderFeatures`.
        weights: file of a trained one's weights; None to train it.
        steps, batch_size, learning_rate, noise: of its training, see `pretraining.objectives.train_autoencoder`.
    """

    code_dim: int = 64
    width: int = 32
    features: tuple[str, ...] = ("code",)
    weights: str | None = None
    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Drifting in the features of an `encoders.resnet.ResNet`, which learns the classes of the run's own images first.

    Attributes:
        arch, width, small_stem, feature_dims, resize: of the network.
        features: which of its features, see `ResNetFeatures`.
        weights: file of published weights in torchvision's names; None to train it.
        steps, batch_size, learning_rate: of its training.
        crop, flip: how its images are varied, see `data.augmentation.Views`.
    """

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
    crop: float = 0.4
    flip: float = 0.5

    @property
    def views(self) -> Views:
        """How its images are varied."""
        return Views(crop=self.crop, flip=self.flip, jitter=0.0, grey=0.0)


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(ResNetConfig):
    """The same, trained by SimCLR, without labels.

    Attributes:
        crop, flip, jitter, grey: how views differ, see `data.augmentation.Views`. A network whose views differ in colour learns
            not to see it.
        temperature: of its loss.
    """

    crop: float = 0.8
    jitter: float = 0.8
    grey: float = 0.2
    temperature: float = 0.5

    @property
    def views(self) -> Views:
        """How views of an image differ."""
        return Views(crop=self.crop, flip=self.flip, jitter=self.jitter, grey=self.grey)


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MaskedTraining):
    """An `encoders.mae.MaskedAutoencoder`, which learns to fill in hidden patches, and its training. It is trained on its own.

    Attributes:
        width, patch, depths: of the network.
    """

    width: int = 64
    patch: int = 2
    depths: tuple[int, ...] = (2, 2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class MAEFeaturesConfig:
    """Drifting in the features of a masked auto-encoder that was trained before, and in the sample itself: the paper's space.

    Attributes:
        weights: file of its weights, such as the encoder.safetensors of a `MAEConfig`; None where it is not known yet.
        width, patch, depths: of the network.
        features: which of its features, see `MAEFeatures`; None for all that the release uses.
        every: without names, which blocks inside a stage are features.
        convnext: Hub id or folder of a ConvNeXt-V2 whose features stand beside them, for images in [-1, 1]; None for none.
        resize: side of the square that it sees images at; None to leave them as they are.
    """

    weights: str | None = None
    width: int = 256
    patch: int = 1
    depths: tuple[int, ...] = (3, 4, 6, 3)
    features: tuple[str, ...] | None = None
    every: int = 2
    convnext: str | None = None
    resize: int | None = 224


Encoder = PixelsConfig | AutoencoderConfig | ResNetConfig | SimCLRConfig | MAEFeaturesConfig
# Encoders that the run trains, on a data set whose features are worth keeping.
TrainedEncoder = AutoencoderConfig | ResNetConfig
# Encoders that are trained on their own.
LoneEncoder = ResNetConfig | SimCLRConfig | MAEConfig
