"""Presets for the user's own images: a generator in the features of an encoder that is trained on them, and a classifier.

Few images, or images without classes, get an auto-encoder; many images with classes get a ResNet-10 that learns the classes. Sizes
are chosen by the images: how many there are, of how many classes, and how large. docs/results.md has what they reach.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from drifting._torch import shapes_only
from drifting.config import ClassifierConfig, LossConfig, RunConfig
from drifting.data import ImagesData
from drifting.encoders import AutoencoderConfig, ResNetConfig, resnet
from drifting.encoders.autoencoder import Autoencoder, available_features
from drifting.encoders.resnet import ResNet
from drifting.errors import InputError
from drifting.generators import DecoderMLPConfig
from drifting.presets.cifar10 import ALL_DIMS, FOUR
from drifting.presets.fields import PAPER
from drifting.presets.variants import joint
from drifting.training.schedule import Schedule

# Texture, and means and deviations of the colors of tiles. Features of tiles are left out if the tiles do not divide the image.
FEATURES = (
    *("code", "stage1_mean", "stage1_std", "stage2_mean", "stage2_std", "stage2_mean_4", "stage2_std_4"),
    *("image_mean_4", "image_std_4", "chroma_std_4"),
)
# Locations of the middle stages show whether edges are sharp. Chroma has features of its own, because it is small beside the luma
# in the means of tiles: without them, generated images are too gray. The others suit any ResNet.
RESNET_FEATURES = (
    *(*FOUR, "stage2_mean_4", "stage2_std_4", "stage3_std_4"),
    *("chroma_mean_4", "chroma_mean", "chroma_std", "image_std"),
)
# Images from this side on are large: a ResNet sees them at half the side, tiles have 8 pixels in place of 4, and the decoder begins
# at an eighth of the side.
_LARGE = 64
# Larger images have no features of tiles: there are so many tiles that they would take most of the time.
_LARGEST_TILED = 64
# Generated samples of a step over all labels, and the smallest number of each label.
_GENERATED, _FEWEST = 128, 16
# A step has at most this many classes, so that each has many samples. Data of more than _MANY_CLASSES have as many as fit.
_FEW_CLASSES, _MANY_CLASSES = 4, 50
# From this number of images on, training takes longer.
_MANY_IMAGES = 2000


@dataclass(frozen=True)
class DataSize:
    """How many images there are, of how many classes, and how large: the settings are chosen by it.

    Attributes:
        images: number of training images.
        classes: number of classes; 1 without labels.
        image_shape: channels, height and width.
    """

    images: int
    classes: int
    image_shape: tuple[int, int, int]


# Used when the images cannot be read yet, as in a quick try.
_USUAL_SIZE = DataSize(1000, 10, (1, 28, 28))


def images(
    data: str, unconditional: bool = False, image_size: int | None = None, channels: int | None = None, name: str = "images"
) -> RunConfig:
    """Train on the user's own images, with one population for each class, or for all together.

    Args:
        data: folder or Hub id. It is read to choose the sizes of networks and batches.
        unconditional: one joint population, as for images without labels.
        image_size: side in pixels; images are cropped and resized.
        channels: 1 or 3 to convert the images.
        name: name of the images.

    Command: drifting train images --data FOLDER --image-size 32. Hardware: one CPU core. Time: 7 minutes for 300 images of 32
    pixels. Expected: Frechet distance in a classifier's features 1.2 times that of real images. Measured: docs/results.md,
    2026-11-29; 5,000 images of 64 pixels take 11 minutes on two cores and end at 4.0 times the distance of real images.
    """
    source = ImagesData(name=name, path=data, image_size=image_size, channels=channels, conditional=not unconditional)
    return images_of_size(source, _size_of(source))


def images_of_size(source: ImagesData, size: DataSize) -> RunConfig:
    """Return the preset `images` for images of which only the size is known; they are not read."""
    config = RunConfig(
        preset="images",
        data=source,
        generator=_generator(size),
        encoder=_encoder(size),
        loss=LossConfig(field=PAPER),
        schedule=_schedule(size),
        log_every=25,
        snapshots=12,
        snapshot_samples=max(1000, size.classes),
    )
    return config if source.conditional else joint(config)


def images_classifier(
    data: str, image_size: int | None = None, channels: int | None = None, name: str = "images"
) -> ClassifierConfig:
    """Train a classifier of the user's own images, which `drifting evaluate` compares with generated ones in its features.

    Args:
        data: folder or Hub id, with classes.
        image_size: side in pixels, as for the generator; images are cropped and resized.
        channels: 1 or 3, as for the generator, to convert the images.
        name: name of the images.

    Command: drifting train images-classifier --data FOLDER --image-size 32. Measured: docs/results.md, 2026-11-28.
    """
    source = ImagesData(name=name, path=data, image_size=image_size, channels=channels)
    size = _size_of(source)
    small = size.images < _MANY_IMAGES
    return ClassifierConfig(
        preset="images-classifier",
        data=source,
        width=24,
        steps=300 if small else 500,
        batch_size=min(64 if small else 128, max(2, size.images)),
        shift=max(1, size.image_shape[2] // 10),
        rotation=0.0,
        scale=0.0,
        flip=0.5,
    )


def _size_of(source: ImagesData) -> DataSize:
    """Return the size of the data; the usual one if they cannot be read, because the run itself explains why."""
    try:
        known = source.find()
        train = known.load("train")
    except InputError:
        return _USUAL_SIZE
    return DataSize(len(train.images), train.num_classes or 1, train.image_shape)


def _generator(size: DataSize) -> DecoderMLPConfig:
    """Return a decoder; for large images, its maps have half as many channels."""
    sizes = {"noise_dim": 32, "code_dim": 256, "decoder_blocks": 1, "smoothing": True}
    side = size.image_shape[2]
    if side < _LARGE:
        return DecoderMLPConfig(decoder_width=64, **sizes)
    return DecoderMLPConfig(decoder_width=32, doublings=3 if side % 8 == 0 else 2, **sizes)


def _encoder(size: DataSize) -> AutoencoderConfig | ResNetConfig:
    """Return a ResNet for many images with classes, else an auto-encoder that is trained on every image about a hundred times."""
    batch_size = max(1, min(128, size.images))
    if size.classes > 1 and size.images >= _MANY_IMAGES and size.image_shape[2] <= _LARGEST_TILED:
        resize = size.image_shape[2] // 2 if size.image_shape[2] >= _LARGE else None
        sizes = {"arch": "resnet10", "width": 16, "feature_dims": ALL_DIMS, "resize": resize}
        # Without CutMix the network would know so few images by heart, and generated ones would vary too little.
        network = ResNetConfig(**sizes, steps=1000, batch_size=batch_size, label_smoothing=0.05, cut_mix=1.0)
        return dataclasses.replace(network, features=resnet_features_of(size.image_shape, resize))
    steps = min(1000, max(400, 20 * size.images // batch_size))
    return AutoencoderConfig(code_dim=64, width=32, features=features_of(size.image_shape), steps=steps, batch_size=batch_size)


def features_of(image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names in `FEATURES` that an auto-encoder of images of this shape has and that are fast enough."""
    with shapes_only():
        try:
            known = available_features(Autoencoder(image_shape, code_dim=1, width=1))
        except InputError:  # which the run itself tells
            return FEATURES
    tiled = image_shape[2] <= _LARGEST_TILED
    names = FEATURES if tiled else [name for name in FEATURES if not name.startswith(("image", "chroma"))]
    chosen = [name for name in _in_tiles(names, image_shape) if name in known]
    return (*chosen, *(() if tiled else ("image_mean", "image_std")))


def resnet_features_of(image_shape: tuple[int, int, int], resize: int | None) -> tuple[str, ...]:
    """Return the names in `RESNET_FEATURES` that a ResNet of images of this shape has."""
    halves = (0.5,) * image_shape[0]
    with shapes_only():
        sizes = {"num_classes": None, "small_stem": True, "width": 1, "resize": resize, "statistics": (halves, halves)}
        known = resnet.available_features(ResNet("resnet10", image_shape, **sizes))
    return tuple(name for name in _in_tiles(RESNET_FEATURES, image_shape) if name in known)


def _in_tiles(names: Sequence[str], image_shape: tuple[int, int, int]) -> list[str]:
    """Return names of features; for large images, tiles have 8 pixels instead of 4."""
    if image_shape[2] < _LARGE:
        return list(names)
    return [name.replace("_4", "_8") if name.startswith(("image", "chroma")) else name for name in names]


def _schedule(size: DataSize) -> Schedule:
    labels = min(size.classes, _FEW_CLASSES) if size.classes <= _MANY_CLASSES else _GENERATED // _FEWEST
    # Large images take much longer, and fewer of them suffice.
    total = _GENERATED if size.image_shape[2] <= _LARGEST_TILED else _GENERATED // 2
    generated = max(_FEWEST, total // labels)
    many = size.images >= _MANY_IMAGES
    return Schedule(
        steps=750 if many else 500,
        labels_per_step=labels,
        generated=generated,
        positives=_positives(generated, size.images // size.classes),
        unconditional=64,
        optimizer="muon",
        learning_rate=5e-3 if many else 3e-3,
        warmup_steps=50,
        decay_after=300,
        cooldown=0.6 if many else 0.0,
        ema_decay=0.99,
        statistics_every=100,
    )


def _positives(generated: int, members: int) -> int:
    """Return the number of real samples per label: twice the generated ones, or a multiple of the images of a class."""
    if members >= 2 * generated:
        return 2 * generated
    members = max(1, members)
    return members * max(1, round(generated / members))
