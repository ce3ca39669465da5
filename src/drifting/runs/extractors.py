"""Feature extractors that evaluate generators of images, and how they are found.

A classifier's folder holds config.json, classifier.safetensors, metrics.json and trained_on.safetensors: digests of the images that
it was trained on. One training image in five is held out, of every class alike: floors are made of those, since a classifier sees
images that it was trained on in another way than new ones.
"""

import hashlib
import os
import warnings
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from drifting import config as configuration
from drifting.checkpoint import load_json, load_network, load_tensors
from drifting.config import ClassifierConfig, RunConfig
from drifting.data import ImagesData, StreamedData
from drifting.data.pixels import to_signed
from drifting.errors import InputError
from drifting.evaluation.images import Extractor, in_batches
from drifting.metrics.inception import URL, load_inception
from drifting.runs.folder import CLASSIFIER_WEIGHTS, CONFIG, DIGESTS, TRAINED_ON

# Sides of a large image for the extractor "pixels": a covariance of all its pixels would fill any memory.
_PIXELS = 32


def _trained_on(folder: Path) -> Int[Tensor, " t"] | None:
    """Return the digests of the images that a classifier was trained on; None, with a warning, for one that does not tell."""
    if not (folder / TRAINED_ON).exists():
        older = f"extractor is '{folder}', which does not tell the images that it was trained on"
        warnings.warn(f"{older}: floors may be of those, so train it again with this version", stacklevel=3)
        return None
    known = load_tensors(folder / TRAINED_ON).get(DIGESTS)
    if known is None or known.dtype != torch.long or known.ndim != 1:
        raise InputError(f"extractor is '{folder}', whose {TRAINED_ON} holds no digests of images: train it again")
    return known


def load_extractor(extractor: str | None, config: RunConfig, device: str = "cpu") -> Extractor:
    """Return the feature extractor that evaluates a run of images.

    Args:
        extractor: the folder of a trained classifier, a TorchScript Inception file (.pt), or "pixels"; None for the classifier in
            runs/NAME-classifier, NAME being the data set's, where it has a name.
        config: of the run.
        device: where the extractor looks at them.

    Raises:
        InputError: if it is not there, or takes other images.
    """
    data = cast(ImagesData | StreamedData, config.data)
    if extractor == "pixels":
        return _pixels(data)
    if extractor is not None and extractor.endswith(".pt"):
        if not Path(extractor).is_file():
            raise InputError(f"extractor is '{extractor}', which is no file: download {URL} there, or pass --extractor pixels")
        inception = load_inception(Path(extractor), device=device)
        return Extractor("inception", inception, cache=_if_writable(Path(extractor).parent), probabilities=inception.probabilities)
    folder = _classifier_folder(extractor, data)
    saved = configuration.from_json(load_json(folder / CONFIG), str(folder / CONFIG))
    made = config.data.exported_shape()
    if not isinstance(saved, ClassifierConfig) or saved.data.image_shape != made:
        shape = saved.data.image_shape if isinstance(saved, ClassifierConfig) else "no images"
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


def _classifier_folder(extractor: str | None, data: ImagesData | StreamedData) -> Path:
    """Return where a trained classifier lies, or raise InputError."""
    name = getattr(data, "name", None)
    if extractor is None and name is None:
        raise InputError(
            "extractor is not given, and there is none of its own for these images: pass the Inception file, --extractor FILE.pt"
        )
    folder = Path("runs") / f"{name}-classifier" if extractor is None else Path(extractor)
    if not (folder / CLASSIFIER_WEIGHTS).exists():
        command = f"drifting train {name}-classifier --save-dir {folder}"
        # No preset trains on the user's own images as they are cropped and converted here.
        fix = f"run {command}" if name and data.path is None else "name the folder of a classifier of these images"
        raise InputError(f"extractor is '{folder}', where there is no trained classifier: {fix}, or pass --extractor pixels")
    return folder


def _pixels(data: ImagesData | StreamedData) -> Extractor:
    """Return an extractor whose features are the pixels: of large images, which are streamed, means over squares of them."""
    if data.kind == "images":
        return Extractor("pixels", lambda images: to_signed(images).flatten(1))

    def embed(images: Tensor) -> Tensor:
        height, width = (min(side, _PIXELS) for side in images.shape[2:])
        return torch.nn.functional.adaptive_avg_pool2d(to_signed(images), (height, width)).flatten(1)

    return Extractor(f"pixels-{_PIXELS}", embed)


def _if_writable(folder: Path) -> Path | None:
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _fingerprint(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
