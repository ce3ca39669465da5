"""The configuration of a run, of an encoder or of a classifier: frozen, complete, and saved as JSON in its folder and checkpoints.

A configuration says what there is, checks it and builds it. What it is made of stands beside its parts: in `data`, `encoders` and
`generators`.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from drifting._checks import check_counts, check_learning_rate, check_loss, check_noise_scale, check_row_scale, check_seed
from drifting._json import load_json, read_value
from drifting._torch import initial_weights
from drifting.data.augmentation import Views
from drifting.data.bank import BankConfig
from drifting.data.dataset import FOUND, Data
from drifting.data.images import ImagesData
from drifting.distributed import PARALLEL
from drifting.encoders.base import EncoderConfig, PixelsConfig
from drifting.errors import InputError
from drifting.evaluation.extractors import Classifier
from drifting.fields import DriftField
from drifting.generators.base import Generator, GeneratorConfig
from drifting.hub.artifact import ReleasedConfig, read_weights
from drifting.loss import FIELD_OF_THE_RELEASE, TEMPERATURES, DriftingLoss
from drifting.pretraining import Augmentation
from drifting.training.schedule import Schedule, check_schedule


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """A `loss.DriftingLoss` with its field.

    Attributes:
        temperatures: bandwidths of the drift field; the drifts of all of them are added.
        field: drift field, one of `drifting.fields`, with its own parameters.
        normalize_features: divide the features by their scale, so that temperatures suit any feature.
        normalize_drift: give the drift of every temperature a mean square of 1 before they are added.
        scale_per_row: give every generated sample a distance scale of its own, for small groups; see `fields.row_scale`.
        drift_clip: largest root mean square of the summed drift of a sample, where the normalized drift of one temperature has 1; a
            longer drift is shortened. None for no limit.
    """

    temperatures: tuple[float, ...] = TEMPERATURES
    field: DriftField = FIELD_OF_THE_RELEASE
    normalize_features: bool = True
    normalize_drift: bool = True
    scale_per_row: bool = False
    drift_clip: float | None = None

    def build(self) -> DriftingLoss:
        """Return the loss."""
        return DriftingLoss(**vars(self))


class TrainingConfig:
    """What the configurations of all trainings have in common.

    Attributes:
        noun: what is trained: a "generator", a "classifier" or an "encoder".
        finds_labels: whether labels are read even if the training does not use them.
        short: parts whose settings can be named without the part.
        changeable: parts with settings that may change when a training is resumed.
    """

    noun: ClassVar[str]
    finds_labels: ClassVar[bool] = False
    short: ClassVar[tuple[str, ...]] = ("", "encoder")
    changeable: ClassVar[tuple[str, ...]] = ()
    preset: str

    @property
    def trains_encoder(self) -> bool:
        """Whether an encoder is trained before a generator."""
        return False

    @property
    def title(self) -> str:
        """Name of the training in messages."""
        return self.preset

    @property
    def command(self) -> str:
        """Words of the command that starts the training: `drifting train-encoder`, or that of a preset."""
        return self.title if self.preset == "train-encoder" else f"train {self.preset}"

    @property
    def optimization(self) -> Any:
        """The part that holds the number of steps."""
        return self

    @property
    def plans_all_steps(self) -> bool:
        """Whether the learning rate depends on the total number of steps, which then cannot change when a training is resumed."""
        return getattr(self.optimization, "warmup_steps", None) is None


class EncodedConfig(TrainingConfig):
    """What the configurations of trainings with a feature encoder have in common."""

    data: Data
    encoder: EncoderConfig
    seed: int

    @property
    def learns_classes(self) -> bool:
        """Whether the training of the encoder needs labels."""
        return self.encoder.learns_classes

    def build_network(self) -> nn.Module | None:
        """Return the network of the encoder on the CPU, with its weights or initial ones; None if there is no network.

        Raises:
            InputError: if the data do not fit the encoder.
        """
        encoder, data = self.encoder, self.data
        if encoder.plain:
            return None
        if encoder.objective is not None and not encoder.alone and not data.loads_images:
            unfit = "is on disk" if data.on_disk else "has no images"
            raise InputError(f"encoder is {encoder.noun}, but the data set {unfit}: use the space of the samples")
        learns_classes = encoder.learns_classes
        num_classes = data.classes_to_learn() if learns_classes else None
        if learns_classes and (num_classes is None or num_classes < 2):
            found = f"data is '{getattr(data, 'path', None) or getattr(data, 'name', None)}', whose images are all of one class"
            raise InputError(f"{found}: add another, or learn without classes, by simclr")
        with initial_weights(self.seed, "encoder"):
            return encoder.build_network(data.sample_shape, num_classes=num_classes, read=read_weights)


@dataclass(frozen=True, kw_only=True)
class RunConfig(EncodedConfig):
    """Complete configuration of a generator's run.

    Attributes:
        preset: name of the preset.
        data, generator, encoder, loss, schedule: parts of the run.
        bank: memory bank of real samples; None to draw from the whole data set.
        cache_features: compute the features of images in memory once, before training, if there is an encoder network.
        seed: seed of the weights and of all draws of the training.
        device: device to train on: cpu, cuda, cuda:1 or mps.
        parallel: how several processes hold the weights: "ddp", each a copy, or "fsdp", each a share; see `distributed`.
        log_every: number of steps between lines of metrics.jsonl.
        checkpoint_every: number of steps between checkpoints.
        keep: how many checkpoints to keep.
        snapshots: number of snapshots of samples during training for the pictures, without that of the start.
        snapshot_samples: number of samples in a snapshot.
    """

    noun: ClassVar[str] = "generator"
    short: ClassVar[tuple[str, ...]] = ("", "schedule", "loss", "loss.field", "generator")
    changeable: ClassVar[tuple[str, ...]] = ("schedule", "generator")

    preset: str = field(metadata=FOUND)
    data: Data
    generator: GeneratorConfig
    encoder: EncoderConfig = field(default_factory=PixelsConfig)
    loss: LossConfig
    schedule: Schedule
    bank: BankConfig | None = None
    cache_features: bool = True
    seed: int = 0
    device: str = "cpu"
    parallel: str = "ddp"
    log_every: int = 25
    checkpoint_every: int = 500
    keep: int = 2
    snapshots: int = 24
    snapshot_samples: int = 2048

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        schedule = self.schedule
        names = ("steps", "generated", "positives", "labels_per_step", "statistics_every")
        own = ("log_every", "checkpoint_every", "keep", "snapshots", "snapshot_samples")
        check_counts({name: getattr(schedule, name) for name in names} | {name: getattr(self, name) for name in own})
        self.encoder.check("encoder.")
        if self.encoder.alone:
            raise InputError(f"encoder is {type(self.encoder).__name__}, which is trained on its own: pass MAEFeaturesConfig")
        if self.bank is None and self.data.on_disk:
            raise InputError("bank is None, but the data set is on disk, too slow to draw from at every step: pass a BankConfig")
        if self.bank is not None:
            if not self.data.supports_bank:
                raise InputError("bank is set, but the data set has no images: leave it out")
            check_counts({f"bank.{name}": value for name, value in vars(self.bank).items() if name != "on_cpu"})
        check_seed(self.seed)
        loss, has_independent = self.loss, schedule.independent_negatives
        check_loss(loss.temperatures, loss.drift_clip, loss.field, has_independent=has_independent)
        if loss.scale_per_row:
            check_row_scale(loss.field, normalize_features=loss.normalize_features)
        if self.generator.noise_scale != 1:
            check_noise_scale(self.generator.noise_scale, "generator.noise_scale")
        if self.parallel not in PARALLEL:
            raise InputError(f"parallel is '{self.parallel}': pass {' or '.join(PARALLEL)}")
        if self.parallel == "fsdp" and schedule.optimizer == "muon":
            raise InputError("parallel is 'fsdp', but muon needs whole matrices of weights: pass ddp, or optimizer adamw")
        check_schedule(schedule, labeled=self.data.conditional)

    @property
    def trains_encoder(self) -> bool:
        """Whether the run trains an encoder before its generator."""
        return self.encoder.objective is not None and self.encoder.weights_file is None

    def build_generator(self) -> Generator:
        """Return the generator on the CPU with its initial weights, which depend only on the seed."""
        data, guided = self.data, self.schedule.draws_guidance
        with initial_weights(self.seed, "generator"):
            generator = self.generator.build(sample_shape=data.sample_shape, num_classes=data.num_classes, guided=guided)
        generator.noise_scale = self.generator.noise_scale
        return generator

    @property
    def optimization(self) -> Any:
        """The schedule."""
        return self.schedule


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Configuration of the training of an `evaluation.Classifier`, which is used only for evaluation.

    It is trained on four training images in five; the others make the floors of evaluations.

    Attributes:
        preset: the name it was made from.
        data: labeled images.
        width: number of channels of the first maps.
        steps: number of optimizer steps.
        batch_size: number of images in a step.
        learning_rate: highest learning rate.
        shift: largest shift of an image in training, in whole pixels.
        rotation: largest rotation of an image in training, in degrees.
        scale: largest relative change of the size of an image in training, below 1.
        label_smoothing: probability that is spread evenly over all classes, from 0 to below 1.
        flip: probability of a mirrored image in training.
        seed: seed of the weights, of the order and of the augmentation.
        device: device to train on: cpu, cuda, cuda:1 or mps.
    """

    noun: ClassVar[str] = "classifier"
    learns_classes: ClassVar[bool] = True

    preset: str = field(metadata=FOUND)
    data: ImagesData
    width: int = 32
    steps: int = 1200
    batch_size: int = 256
    learning_rate: float = 3e-3
    shift: int = 2
    rotation: float = 10.0
    scale: float = 0.1
    flip: float = 0.0
    label_smoothing: float = 0.05
    seed: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        check_counts({name: getattr(self, name) for name in ("width", "steps", "batch_size")})
        if self.batch_size == 1:
            raise InputError("batch_size is 1, too few to normalize over: pass at least 2")
        check_seed(self.seed)
        check_learning_rate(self.learning_rate)
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """Return the augmentation of images and labels, or raise InputError for a value out of range."""
        varied = {name: getattr(self, name) for name in ("shift", "rotation", "scale", "label_smoothing")}
        return Augmentation(views=Views(crop=0, flip=self.flip, jitter=0, gray=0) if self.flip else None, **varied)

    def build_network(self) -> Classifier:
        """Return the classifier with its initial weights on the CPU."""
        # It must not have the initial weights of an encoder that it evaluates.
        with initial_weights(self.seed, "classifier"):
            return Classifier(self.data.sample_shape, self.data.num_classes or 0, self.width)


@dataclass(frozen=True, kw_only=True)
class EncoderRunConfig(EncodedConfig):
    """Configuration of the training of a feature encoder on its own. Later runs use it through the `weights` of their encoder.

    Attributes:
        preset: name of the preset.
        data: images or latents. Labels are learned, or only measure the features.
        encoder: network and its training: `ResNetConfig` with classes, `SimCLRConfig` or `MAEConfig`.
        seed: seed of the weights, of the order and of the augmentation.
        device: device to train on: cpu, cuda, cuda:1 or mps.
        checkpoint_every: number of steps between checkpoints.
        keep: how many checkpoints to keep.
    """

    noun: ClassVar[str] = "encoder"
    # Labels measure an encoder that learns without them.
    finds_labels: ClassVar[bool] = True
    changeable: ClassVar[tuple[str, ...]] = ("encoder",)

    preset: str = field(default="train-encoder", metadata=FOUND)
    data: Data
    encoder: EncoderConfig
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        """Raise InputError for a value that does not fit."""
        if self.encoder.kind is None:
            raise InputError(f"encoder is {type(self.encoder).__name__}, which is not trained on its own: pass ResNetConfig")
        self.encoder.check()
        check_counts({name: getattr(self, name) for name in ("checkpoint_every", "keep")})
        check_seed(self.seed)
        if self.encoder.weights_file is not None:
            raise InputError(f"weights is '{self.encoder.weights_file}', but the encoder is to be trained: leave it out")
        if not self.data.loads_images and not self.encoder.alone:
            raise InputError(f"encoder is {type(self.encoder).__name__}, which learns from images in memory: pass MAEConfig")

    @property
    def kind(self) -> str:
        """Kind of the encoder in `drifting train-encoder`."""
        return str(self.encoder.kind)

    @property
    def title(self) -> str:
        """The preset, and the kind of the encoder."""
        return f"{self.preset} {self.kind}"

    @property
    def optimization(self) -> Any:
        """The encoder."""
        return self.encoder


AnyConfig = RunConfig | ClassifierConfig | EncoderRunConfig


# 2: the drift field holds its own parameters; before, `affinity_floor` was the loss's.
VERSION = 2
# Settings that earlier versions saved under another name -> their name now.
RENAMED = {
    "micro_batch": "microbatch_size",
    "labels_per_pass": "labels_per_microbatch",
    "checkpointing": "gradient_checkpointing",
    "unguided_share": "unguided_prob",
    "colour": "color",
    "grey": "gray",
    "centre": "center",
    "normalise": "normalize",
    "normalised": "normalized",
    "frames": "snapshots",
    "frame_samples": "snapshot_samples",
}
SavedConfig = AnyConfig | ReleasedConfig


def to_json(config: SavedConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, with its version and, as "type", the class of every part."""
    return {"version": VERSION, **_with_types(config, asdict(config))}


def _with_types(part: Any, values: dict[str, Any]) -> dict[str, Any]:
    inside = {field.name: getattr(part, field.name) for field in fields(part)}
    parts = {name: _with_types(value, values[name]) for name, value in inside.items() if is_dataclass(value)}
    return {"type": type(part).__name__, **values, **parts}


def from_json(values: Any, origin: str) -> SavedConfig:
    """Return the configuration written by `to_json`, or raise InputError if it is damaged or of a newer version."""
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is not int:
        raise InputError(f"configuration '{origin}' has no version: name the folder of a run made by drifting")
    if version > VERSION:
        raise InputError(f"configuration '{origin}' has version {version}, newer than {VERSION}: update drifting to read it")
    try:
        return read_value(SavedConfig, _moved(_renamed({name: value for name, value in values.items() if name != "version"})), "")
    except InputError as error:
        raise InputError(f"configuration '{origin}' is damaged ({error}): restore it or train again") from None


def load_config(path: Path) -> SavedConfig:
    """Return the configuration in a file, or raise InputError if it is missing, damaged or of a newer version."""
    return from_json(load_json(path), str(path))


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration and its parts with the present names of the settings."""
    if values.get("type") == "ReleasedConfig":
        return values
    parts = {name: _renamed(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {new if (new := RENAMED.get(name, name)) not in parts else name: value for name, value in parts.items()}


def _moved(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an earlier version with each setting in its present part."""
    loss = values.get("loss")
    if isinstance(loss, dict) and "affinity_floor" in loss and "field" not in loss:
        floor, rest = loss["affinity_floor"], {name: value for name, value in loss.items() if name != "affinity_floor"}
        return {**values, "loss": {**rest, "field": {"type": "MeanShift", "affinity_floor": floor}}}
    return values
