"""What a configuration holds, and the values with which nothing could work."""

from dataclasses import dataclass

from drifting.data.points import Frame
from drifting.errors import InputError
from drifting.generators.dit import DiTSize
from drifting.generators.unet import UNetSize
from drifting.inputs import check_counts, check_learning_rate, check_temperatures
from drifting.loss import TEMPERATURES
from drifting.training.encoder import Augmentation
from drifting.training.schedule import Schedule, check_schedule


@dataclass(frozen=True, kw_only=True)
class ToyData:
    """A distribution in the plane, see `data.toys`."""

    dataset: str


@dataclass(frozen=True, kw_only=True)
class PointsData:
    """A user's own points. `centre` and `scale` are found when the file is first read and kept with the run."""

    path: str
    centre: tuple[float, float] | None = None
    scale: float | None = None

    @property
    def frame(self) -> Frame:
        """Where the points lie; only of a resolved configuration."""
        if self.centre is None or self.scale is None:
            raise InputError(f"data is '{self.path}', whose centre and scale are not known yet: resolve the configuration first")
        return Frame(self.centre, self.scale)


@dataclass(frozen=True, kw_only=True)
class DigitsData:
    """Handwritten digits of 8 x 8 pixels, embedded in scikit-learn."""


@dataclass(frozen=True, kw_only=True)
class ImagesData:
    """Images of a folder or of the Hub, see `data.images.load_images`.

    Attributes:
        name: what they are called, and where they are looked for if there is no `path`.
        path: folder or Hub id; None to look for `name`.
        image_size: pixels to a side after cropping and resizing; None to keep them.
        channels: 1 or 3 to convert; None to keep them.
        conditional: one population for each class, or one for all.
        image_shape: channels, height and width; found when the images are first read and kept with the run.
        num_classes: found likewise; None where there are no labels or they are not used.
    """

    name: str
    path: str | None = None
    image_size: int | None = None
    channels: int | None = None
    conditional: bool = True
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A `generators.mlp.MLP`."""

    noise_dim: int = 32
    width: int = 256
    depth: int = 3
    gain: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DecoderMLPConfig:
    """A `generators.decoder_mlp.DecoderMLP`."""

    noise_dim: int = 8
    width: int = 512
    depth: int = 3
    code_dim: int = 128
    decoder_width: int = 32
    gain: float = 2.0


@dataclass(frozen=True, kw_only=True)
class UNetConfig(UNetSize):
    """A `generators.unet.UNet` of this size, which ends in tanh."""

    output_std: float = 0.75
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class DiTConfig(DiTSize):
    """A `generators.dit.DiT` of this size; with an `output_std` of 0 it starts as the release's does."""

    bounded: bool = True
    output_std: float = 0.75
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """Drifting in the space of the samples themselves: `encoders.identity`."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Drifting in the features of an `encoders.autoencoder.Autoencoder` that the run trains first on its own images.

    Attributes:
        code_dim, width: of the network.
        features: which of its features, see `AutoencoderFeatures`.
        steps, batch_size, learning_rate, noise: of its training, see `training.encoder.train_autoencoder`.
    """

    code_dim: int = 64
    width: int = 32
    features: tuple[str, ...] = ("code",)
    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Drifting in the features of an `encoders.resnet.ResNet`, which learns the classes of the run's own images first.

    Attributes:
        arch, width, small_stem, feature_dims: of the network.
        features: which of its features, see `ResNetFeatures`.
        weights: file of published weights in torchvision's names; None to train it.
        steps, batch_size, learning_rate: of its training.
        crop, flip: how its images are varied, see `encoders.augmentation.Views`.
    """

    arch: str = "resnet18"
    width: int = 64
    small_stem: bool = True
    feature_dims: tuple[int, ...] | None = None
    features: tuple[str, ...] = ("stage4_mean",)
    weights: str | None = None
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    crop: float = 0.4
    flip: float = 0.5


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(ResNetConfig):
    """The same, trained by SimCLR, without labels.

    Attributes:
        crop, flip, jitter, grey: how views differ, see `encoders.augmentation.Views`. A network whose views differ in colour learns
            not to see it.
        temperature: of its loss.
    """

    crop: float = 0.8
    jitter: float = 0.8
    grey: float = 0.2
    temperature: float = 0.5


Encoder = PixelsConfig | AutoencoderConfig | ResNetConfig | SimCLRConfig
# Encoders that the run trains, on a data set whose features are worth keeping.
TrainedEncoder = AutoencoderConfig | ResNetConfig


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """A `data.bank.MemoryBank` that positives are drawn from, in place of the whole data set."""

    capacity_per_class: int = 128
    unconditional_capacity: int = 1000
    push_per_step: int = 64


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """A `loss.DriftingLoss` with the paper's field."""

    temperatures: tuple[float, ...] = TEMPERATURES
    affinity_floor: float = 1e-6
    normalize_features: bool = True
    normalize_drift: bool = True


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, completely.

    Attributes:
        preset: the name it was made from.
        data, generator, encoder, loss, schedule: its parts.
        bank: the memory bank of real samples; None to draw from the whole data set.
        cache_features: compute the features of a finite data set once, before training, where an encoder is worth it.
        seed: of the weights and of the training stream.
        device: where it trains: cpu, cuda, cuda:1, mps.
        log_every: steps between lines of metrics.jsonl.
        checkpoint_every: steps between checkpoints.
        keep: how many checkpoints to keep.
        frames: how many times samples are set aside for the pictures of the training, the start not counted.
        frame_samples: how many samples each time.
    """

    preset: str
    data: ToyData | PointsData | DigitsData | ImagesData
    generator: MLPConfig | DecoderMLPConfig | UNetConfig | DiTConfig
    encoder: Encoder = PixelsConfig()
    loss: LossConfig
    schedule: Schedule
    bank: BankConfig | None = None
    cache_features: bool = True
    seed: int = 0
    device: str = "cpu"
    log_every: int = 25
    checkpoint_every: int = 500
    keep: int = 2
    frames: int = 24
    frame_samples: int = 2048

    def __post_init__(self) -> None:
        """Raise InputError for a value with which training could not work."""
        schedule = self.schedule
        names = ("steps", "generated", "positives", "labels_per_step", "statistics_every")
        own = ("log_every", "checkpoint_every", "keep", "frames", "frame_samples")
        check_counts({name: getattr(schedule, name) for name in names} | {name: getattr(self, name) for name in own})
        if isinstance(self.encoder, TrainedEncoder):
            counted = ("code_dim", "width", "steps", "batch_size")
            check_counts({f"encoder.{name}": value for name, value in vars(self.encoder).items() if name in counted})
            check_learning_rate(self.encoder.learning_rate, "encoder.learning_rate")
        if self.bank is not None:
            if not isinstance(self.data, ImagesData):
                raise InputError("bank is set, but the data are no images: leave it out")
            check_counts({f"bank.{name}": value for name, value in vars(self.bank).items()})
        check_seed(self.seed)
        check_temperatures(self.loss.temperatures)
        labelled = isinstance(self.data, DigitsData) or (isinstance(self.data, ImagesData) and self.data.conditional)
        check_schedule(schedule, labelled=labelled)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The training of an `encoders.classifier.Classifier`: a judge, for evaluation only.

    Attributes:
        preset: the name it was made from.
        data: labelled images.
        width: of the network.
        steps, batch_size, learning_rate: of the training.
        shift, rotation, scale, label_smoothing: see `training.encoder.Augmentation`.
        seed: of the weights, the order and the augmentation.
        device: where it trains.
    """

    preset: str
    data: ImagesData
    width: int = 32
    steps: int = 1200
    batch_size: int = 256
    learning_rate: float = 3e-3
    shift: int = 2
    rotation: float = 10.0
    scale: float = 0.1
    label_smoothing: float = 0.05
    seed: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise InputError for a value with which training could not work."""
        check_counts({name: getattr(self, name) for name in ("width", "steps", "batch_size")})
        if self.batch_size == 1:
            raise InputError("batch_size is 1, too few to normalise over: pass at least 2")
        check_seed(self.seed)
        check_learning_rate(self.learning_rate)
        Augmentation(shift=self.shift, rotation=self.rotation, scale=self.scale, label_smoothing=self.label_smoothing)


def check_seed(seed: int) -> None:
    """Raise InputError unless the seed fits every random stream."""
    if not 0 <= seed < 2**31:
        raise InputError(f"seed is {seed}: pass a whole number from 0 to {2**31 - 1}")
