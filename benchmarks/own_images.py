"""Write a small folder of images, as users have them, from a large data set, to measure `drifting train images`.

Command: python benchmarks/own_images.py OUT --data cifar10 --train 300 --test 300 --classes 3 --size 32

OUT holds train/CLASS and test/CLASS with equally many PNG files per class, resized to --size.
"""

import argparse
from pathlib import Path

from PIL import Image

from drifting.data.images import ImageSet, load_images


def write_split(images: ImageSet, folder: Path, *, count: int, classes: int, size: int) -> None:
    """Write the first `count` images of the first classes as PNG files into one sub-folder per class."""
    assert images.labels is not None
    for label in range(classes):
        name = images.class_names[label] if images.class_names else str(label)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in (images.labels == label).nonzero()[: count // classes, 0].tolist():
            pixels = images.images[index].movedim(0, -1).numpy()
            Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(folder / name / f"{index:05d}.png")


def main() -> None:
    """Read the command line and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="cifar10", help="a name, a folder or a Hub id of color images")
    parser.add_argument("--train", type=int, default=300, help="training images in all")
    parser.add_argument("--test", type=int, default=300, help="test images in all")
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--size", type=int, default=32, help="pixels to a side")
    options = parser.parse_args()
    for split, count in (("train", options.train), ("test", options.test)):
        images = load_images(None, name=options.data, split=split)
        write_split(images, options.out / split, count=count, classes=options.classes, size=options.size)
        print(f"{options.out / split}: {count} images of {options.classes} classes, {options.size} x {options.size} pixels")


if __name__ == "__main__":
    main()
