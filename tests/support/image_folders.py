"""Tiny image data that the tests make themselves: bars whose place is their class, as bytes or as folders of files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from drifting.data.images import ImageSet


def bars(labels: Tensor, *, size: int = 8, channels: int = 1, seed: int = 0) -> Tensor:
    """Return noisy uint8 images [n, c, h, w], each with a bright column at the place of its label."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(60, (len(labels), channels, size, size), generator=rng)
    rows = torch.arange(len(labels))
    images[rows, :, :, 2 * labels + 1] += 150
    images[rows, -1, 2 * labels] += 40
    return images.to(torch.uint8)


def bar_set(count: int, *, classes: int = 3, seed: int = 0, channels: int = 1) -> ImageSet:
    """Return as many bars, classes in turn."""
    labels = torch.arange(count) % classes
    return ImageSet(bars(labels, channels=channels, seed=seed), labels, None)


def write_images(folder: Path, counts: Mapping[str, int], *, size: int = 8, channels: int = 1, seed: int = 0) -> Path:
    """Write class name -> so many bars as PNG files in sub-folders; "." stands for the folder itself."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        images = bars(torch.full((count,), label), size=size, channels=channels, seed=100 * seed + label)
        for index, image in enumerate(images.movedim(1, -1).squeeze(-1).numpy()):
            Image.fromarray(image).save(folder / name / f"{index:03d}.png")
    return folder
