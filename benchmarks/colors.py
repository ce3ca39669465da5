"""Measure how parts of the CIFAR-10 presets affect colors and textures: short trainings with parts left out.

Command: python benchmarks/colors.py --extractor runs/cifar10-classifier --save-dir runs/colors [--encoder-weights simclr=FILE ...]

Every preset is trained in four variants with one encoder: complete, without the filter of its generator, without the chroma of
tiles, and with only the means of its stages as features. Finished runs are kept. At the end the program prints the table and the
picture of `drifting compare`, and for every feature of an encoder the mean distance between images and the share of this distance
by which an image moves when its colors change. A feature that hardly moves cannot teach colors. The distances also show which
features would dominate the others if they were not divided by their own scales.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from drifting import runs
from drifting.config import RunConfig
from drifting.data import ImagesData
from drifting.data.augmentation import Views, augment
from drifting.data.pixels import to_signed
from drifting.encoders import ResNetConfig
from drifting.fields.pairwise import pairwise_distances
from drifting.generators import DecoderMLPConfig
from drifting.presets import adjust, preset
from drifting.presets.cifar10 import SYSTEMS
from drifting.runs.compare import write_comparison
from drifting.runs.folder import ENCODER_WEIGHTS
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.train import build_encoder, resolve

_IMAGES = 1000
_OTHER_COLORS = Views(crop=0.0, flip=0.0, jitter=1.0, gray=0.0)


def means_alone(config: RunConfig) -> RunConfig:
    """Return the same run with only the means of its stages as features, without texture and colors."""
    assert isinstance(config.encoder, ResNetConfig)
    all_stages = "stage3_mean" in config.encoder.features
    names = tuple(f"stage{stage}_mean" for stage in ((1, 2, 3, 4) if all_stages else (4,)))
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, features=names))


def unfiltered(config: RunConfig) -> RunConfig:
    """Return the same run without the filter of its generator."""
    assert isinstance(config.generator, DecoderMLPConfig)
    return dataclasses.replace(config, generator=dataclasses.replace(config.generator, smoothing=False))


def without_chroma(config: RunConfig) -> RunConfig:
    """Return the same run without the feature that sees red next to green within a tile."""
    assert isinstance(config.encoder, ResNetConfig)
    names = tuple(name for name in config.encoder.features if not name.startswith("chroma"))
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, features=names))


VARIANTS = {
    "means-alone": means_alone,
    "unfiltered": unfiltered,
    "without-chroma": without_chroma,
    "whole": lambda config: config,
}


def prepared(config: RunConfig, folder: Path) -> RunConfig:
    """Return the same run with weights of its encoder; train the encoder into a folder if the run has none."""
    assert isinstance(config.encoder, ResNetConfig)
    if config.encoder.weights is None:
        folder.mkdir(parents=True, exist_ok=True)
        prepare_encoder(config, folder, config.build_network())
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights=str(folder / ENCODER_WEIGHTS)))
    return config


def sensitivity(config: RunConfig) -> dict[str, tuple[float, float]]:
    """Return for every feature the mean distance between images, and how far other colors move an image, as a share of it."""
    network = config.build_network()
    encoder = build_encoder(config, network.eval() if network else None)
    assert isinstance(config.data, ImagesData)
    images = to_signed(config.data.load("test").images[:_IMAGES])
    with torch.no_grad():
        real, changed = encoder(images), encoder(augment(images, _OTHER_COLORS, torch.Generator().manual_seed(0)))
    result = {}
    for name, features in real.items():
        groups = features.transpose(0, 1)
        apart = pairwise_distances(groups, groups).sum() / (len(groups) * len(images) * (len(images) - 1))
        result[name] = (float(apart), float((features - changed[name]).norm(dim=2).mean() / apart))
    return result


def main() -> None:
    """Train and evaluate the missing variants, then compare all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractor", required=True, help="folder of the trained cifar10-classifier")
    parser.add_argument("--save-dir", type=Path, required=True)
    parser.add_argument("--data", help="folder or Hub id of CIFAR-10; $DRIFTING_DATA/cifar10 by default")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--encoder-weights", nargs="*", default=[], metavar="SYSTEM=FILE", help="trained encoders")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--num-samples", type=int, default=4000)
    options = parser.parse_args()
    weights, folders, lines = dict(pair.split("=", 1) for pair in options.encoder_weights), [], []
    for system in options.systems:
        base = preset(f"cifar10-{system}", data=options.data, encoder_weights=weights.get(system))
        assert isinstance(base, RunConfig)
        base = prepared(resolve(adjust(base, steps=options.steps)), options.save_dir / f"{system}-encoder")
        for name, changed in VARIANTS.items():
            folder = options.save_dir / f"{system}-{name}"
            if not (folder / "metrics.json").exists():
                run = runs.train(changed(base), folder, overwrite=folder.exists())
                run.evaluate(extractor=options.extractor, count=options.num_samples)
            folders.append(folder)
        for feature, (apart, share) in sensitivity(base).items():
            lines.append(f"| {system} | {feature} | {apart:.3g} | {share:.2f} |")
    compared, files = write_comparison(folders, options.save_dir, overwrite=True)
    head = ["| encoder | feature | mean distance | moved by other colors |", "|---" * 4 + "|"]
    print(compared.markdown(), *head, *lines, *files, sep="\n")


if __name__ == "__main__":
    main()
