"""Feature extractors that evaluate generators of images, where they come from, and the accuracy of networks and of features.

A `Classifier` is a small convolutional network, whose features evaluate generators; no generator is trained in them. It has three
convolutions, each of which halves the image, and one hidden layer: about 16 MFLOP for an image of 28 x 28 pixels.

A classifier's folder holds config.json, classifier.safetensors, metrics.json and trained_on.safetensors: digests of the images that
it was trained on. One training image in five is held out, of every class alike: floors are made of those, since a classifier sees
images that it was trained on in another way than new ones.

Shapes: s and t images, c channels, h x w pixels, d features, k classes.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from drifting.checkpoint import load_network, load_tensors
from drifting.data.pixels import to_signed
from drifting.errors import InputError
from drifting.metrics.inception import URL, load_inception

Bytes = UInt8[Tensor, "s c h w"]

# Files in the folder of a classifier, and the name of the digests in the second.
CLASSIFIER_WEIGHTS, TRAINED_ON, DIGESTS = "classifier.safetensors", "trained_on.safetensors", "digests"
# Sides of a large image for the extractor "pixels": a covariance of all its pixels would fill any memory.
_PIXELS = 32
# Length of the features of a classifier.
EMBEDDING = 128


class Classifier(nn.Module):
    """Images in [-1, 1] -> logits.

    Args:
        image_shape: channels, height and width of one image, each side at least 8.
        num_classes: number of labels.
        width: channels of the first convolution; the others have twice and four times as many.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        channels, *sides = image_shape
        if min(sides) < 8:
            raise InputError(f"image_shape is {tuple(image_shape)}: pass images of at least 8 x 8 pixels")
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        self.stages = nn.Sequential(_halving(channels, width, 5), _halving(width, 2 * width, 3), _halving(2 * width, 4 * width, 3))
        places = (sides[0] // 8) * (sides[1] // 8)
        self.hidden = nn.Linear(4 * width * places, EMBEDDING, bias=False)
        self.norm = nn.BatchNorm1d(EMBEDDING)
        self.output = nn.Linear(EMBEDDING, num_classes)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - a quarter faster on a CPU

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 128"]:
        """Return the features before the last layer."""
        maps = self.stages(images.contiguous(memory_format=torch.channels_last))
        return nn.functional.relu(self.norm(self.hidden(maps.flatten(1))))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits of every class."""
        return self.output(self.embed(images))


def _halving(before: int, after: int, kernel: int) -> nn.Sequential:
    """Return convolution, 2 x 2 max pooling, batch normalization, ReLU: normalizing after pooling is cheaper."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.ReLU()
    )


@dataclass(frozen=True)
class Extractor:
    """A feature space for comparisons, and a classifier of images.

    Attributes:
        name: name beside the figures and in the file names of cached statistics.
        embed: images -> features.
        classify: images -> labels; None for an extractor without classes.
        cache: folder for statistics of real data; None to compute them anew.
        probabilities: images -> class probabilities of the Inception Score; None for any other extractor.
        trained_on: digests of its training images, see `statistics.digests`, which no floor contains; None if there are none.
    """

    name: str
    embed: Callable[[Bytes], Float[Tensor, "s d"]]
    classify: Callable[[Bytes], Int[Tensor, " s"]] | None = None
    cache: Path | None = None
    probabilities: Callable[[Bytes], Float[Tensor, "s k"]] | None = None
    trained_on: Int[Tensor, " t"] | None = None


def accuracy_of(network: nn.Module, images: Bytes, labels: Int[Tensor, " s"]) -> float:
    """Return the accuracy of a classifier in evaluation mode, which maps images in [-1, 1] to logits."""
    device = next(network.parameters()).device
    named = in_batches(lambda part: network(part.to(device)).argmax(1), images)
    return float((named == labels).double().mean())


def linear_probe(
    train: Float[Tensor, "s d"],
    train_labels: Int[Tensor, " s"],
    test: Float[Tensor, "t d"],
    test_labels: Int[Tensor, " t"],
    *,
    iterations: int = 200,
) -> float:
    """Return the test accuracy of a logistic regression on standardized features.

    Args:
        train: features for training.
        train_labels: classes of the training features, at least two.
        test: features for testing.
        test_labels: classes of the test features.
        iterations: largest number of iterations of the fit.

    Raises:
        InputError: if features are not finite, or the training labels are all the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not bool(torch.stack([train.isfinite().all(), test.isfinite().all()]).all()):
        raise InputError("features hold NaN or infinite values: train the encoder with a lower learning rate")
    if len(train_labels.unique()) < 2:
        raise InputError("labels are all the same: a probe needs at least two classes")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=iterations))
    with warnings.catch_warnings():
        # A fit that stops early still is a valid probe.
        warnings.simplefilter("ignore")
        probe.fit(train.double().cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test.double().cpu().numpy(), test_labels.cpu().numpy()))


def in_batches(function: Callable[[Tensor], Tensor], images: Bytes, size: int = 500) -> Tensor:
    """Return the results, on the CPU, of a function of images in [-1, 1] for images as bytes."""
    with torch.no_grad():
        return torch.cat([function(to_signed(part)).cpu() for part in images.split(size)])


def _trained_on(folder: Path) -> Int[Tensor, " t"] | None:
    """Return the digests of the training images of a classifier; None, with a warning, if there is no file of them."""
    if not (folder / TRAINED_ON).exists():
        older = f"extractor is '{folder}', which does not tell the images that it was trained on"
        warnings.warn(f"{older}: floors may be of those, so train it again with this version", stacklevel=3)
        return None
    known = load_tensors(folder / TRAINED_ON).get(DIGESTS)
    if known is None or known.dtype != torch.long or known.ndim != 1:
        raise InputError(f"extractor is '{folder}', whose {TRAINED_ON} holds no digests of images: train it again")
    return known


def find_extractor(extractor: str | None, data: Any, read: Callable[[Path], Any], *, device: str = "cpu") -> Extractor:
    """Return the feature extractor that evaluates a generator of images.

    Args:
        extractor: the folder of a trained classifier, a TorchScript Inception file (.pt), or "pixels"; None for the classifier in
            runs/NAME-classifier, NAME being the data set's, where it has a name.
        data: `data.ImageData` that the generator was trained on.
        read: folder -> the configuration of the classifier in it; None if it holds something else.
        device: device of the extractor.

    Raises:
        InputError: if it is not there, or takes other images.
    """
    folder = extractor_path(extractor, data)
    if folder is None:
        return _pixels(in_memory=data.loads_images)
    if folder.suffix == ".pt":
        inception = load_inception(folder, device=device)
        cache = folder.parent if os.access(folder.parent, os.W_OK | os.X_OK) else None
        return Extractor("inception", inception, cache=cache, probabilities=inception.probabilities)
    saved, made = read(folder), data.exported_shape()
    if saved is None or saved.data.image_shape != made:
        shape = "no images" if saved is None else saved.data.image_shape
        raise InputError(f"extractor is '{folder}', which takes {shape}, but the run makes {made}: name another extractor")
    if data.num_classes not in (None, saved.data.num_classes):
        classes = saved.data.num_classes
        raise InputError(
            f"extractor is '{folder}', which names {classes} classes, but the run has {data.num_classes}: name another extractor"
        )
    if data.class_names is not None and saved.data.class_names not in (None, data.class_names):
        others = f"which names other classes ({', '.join(saved.data.class_names[:3])}) than the run has"
        raise InputError(f"extractor is '{folder}', {others}: name another extractor")
    network = load_network(saved.build_network, folder / CLASSIFIER_WEIGHTS)
    name = f"classifier-{_fingerprint(network.state_dict())}"
    network.to(device).eval()
    return Extractor(
        name,
        lambda images: in_batches(lambda part: network.embed(part.to(device)), images),
        lambda images: in_batches(lambda part: network(part.to(device)).argmax(1), images),
        cache=folder,
        trained_on=_trained_on(folder),
    )


def extractor_path(extractor: str | None, data: Any) -> Path | None:
    """Return where an extractor is, without reading it or the images: a file, a folder, or None for "pixels".

    Arguments as in `find_extractor`; raises InputError if it is not there.
    """
    if extractor == "pixels":
        return None
    if extractor is not None and extractor.endswith(".pt"):
        if not Path(extractor).is_file():
            raise InputError(f"extractor is '{extractor}', which is not a file: download {URL} there, or pass --extractor pixels")
        return Path(extractor)
    name = getattr(data, "name", None)
    if extractor is None and name is None:
        raise InputError(
            "extractor is not given, and there is none of its own for these images: pass the Inception file, --extractor FILE.pt"
        )
    folder = Path("runs") / f"{name}-classifier" if extractor is None else Path(extractor)
    if not (folder / CLASSIFIER_WEIGHTS).exists():
        command = f"drifting train {name}-classifier --save-dir {folder}"
        # No preset crops and converts the user's own images in the same way.
        fix = f"run {command}" if name and data.path is None else "name the folder of a classifier of these images"
        raise InputError(f"extractor is '{folder}', where there is no trained classifier: {fix}, or pass --extractor pixels")
    return folder


def _pixels(*, in_memory: bool) -> Extractor:
    """Return an extractor whose features are the pixels, or means over squares of pixels of images that may be large."""
    if in_memory:
        return Extractor("pixels", lambda images: to_signed(images).flatten(1))

    def embed(images: Tensor) -> Tensor:
        height, width = (min(side, _PIXELS) for side in images.shape[2:])
        return torch.nn.functional.adaptive_avg_pool2d(to_signed(images), (height, width)).flatten(1)

    return Extractor(f"pixels-{_PIXELS}", embed)


def _fingerprint(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
