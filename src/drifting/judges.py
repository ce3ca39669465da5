"""Classifiers that judge generators of images: how they are trained, and how they are found again.

A classifier's folder holds config.json, classifier.safetensors and metrics.json.
"""

import hashlib
from pathlib import Path
from typing import cast

import torch

from drifting import config as configuration
from drifting.checkpoint import load_json, load_tensors, load_weights, save_json, save_tensors
from drifting.config import ClassifierConfig, ImagesData, RunConfig
from drifting.data.pixels import to_signed
from drifting.encoders.classifier import Classifier
from drifting.errors import InputError
from drifting.evaluation.images import Judge, accuracy_of, in_batches
from drifting.metrics.inception import load_inception
from drifting.run_folder import CLASSIFIER_WEIGHTS, CONFIG, METRICS
from drifting.training.encoder import train_supervised
from drifting.training.progress import show_steps


def train_classifier(config: ClassifierConfig, folder: Path) -> float:
    """Train a judge into a folder and return its accuracy on the test set."""
    train = configuration.load_split(config.data, "train")
    network = cast(Classifier, configuration.build_network(config)).to(config.device)
    steps = train_supervised(
        network,
        train.images,
        cast(torch.Tensor, train.labels),
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        augmentation=config.augmentation(),
    )
    show_steps(steps, config.steps, config.batch_size, what="classifier")
    test = configuration.load_split(config.data, "test")
    accuracy = accuracy_of(network.eval(), test.images, cast(torch.Tensor, test.labels))
    save_json(folder / CONFIG, configuration.to_json(config))
    save_json(folder / METRICS, {"test_accuracy": accuracy, "num_test_images": len(test.images)})
    save_tensors(folder / CLASSIFIER_WEIGHTS, network.state_dict())
    return accuracy


def load_judge(judge: str | None, config: RunConfig) -> Judge:
    """Return who judges a run of images.

    Args:
        judge: the folder of a trained classifier, a TorchScript Inception file (.pt), or "pixels"; None for the classifier in
            runs/NAME-classifier, NAME being the data set's.
        config: of the run.

    Raises:
        InputError: if it is not there, or takes other images.
    """
    data = cast(ImagesData, config.data)
    if judge == "pixels":
        return Judge("pixels", lambda images: to_signed(images).flatten(1))
    if judge is not None and judge.endswith(".pt"):
        return Judge("inception", load_inception(Path(judge)))
    folder = Path("runs") / f"{data.name}-classifier" if judge is None else Path(judge)
    if not (folder / CLASSIFIER_WEIGHTS).exists():
        command = f"drifting train {data.name}-classifier --save-dir {folder}"
        # No preset trains on the user's own images as they are cropped and converted here.
        mend = f"run {command}" if data.path is None else "name the folder of a classifier of these images"
        raise InputError(f"judge is '{folder}', where there is no trained classifier: {mend}, or pass --judge pixels")
    saved = configuration.from_json(load_json(folder / CONFIG), str(folder / CONFIG))
    if not isinstance(saved, ClassifierConfig) or saved.data.image_shape != data.image_shape:
        shape = saved.data.image_shape if isinstance(saved, ClassifierConfig) else "no images"
        raise InputError(f"judge is '{folder}', which takes {shape}, but the run makes {data.image_shape}: name another judge")
    if data.num_classes not in (None, saved.data.num_classes):
        classes = saved.data.num_classes
        raise InputError(
            f"judge is '{folder}', which names {classes} classes, but the run has {data.num_classes}: name another judge"
        )
    network, weights = cast(Classifier, configuration.build_network(saved)), load_tensors(folder / CLASSIFIER_WEIGHTS)
    load_weights(network, weights, str(folder / CLASSIFIER_WEIGHTS))
    network.eval()
    return Judge(
        f"classifier-{_fingerprint(weights)}",
        lambda images: in_batches(network.embed, images),
        lambda images: in_batches(lambda part: network(part).argmax(1), images),
        cache=folder,
    )


def _fingerprint(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
