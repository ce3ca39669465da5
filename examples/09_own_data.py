"""Your own data: a folder of images, one sub-folder for each class. Pass the path of yours; without one, a small folder is made.

The same on the command line: `drifting inspect FOLDER`, then `drifting train images --data FOLDER`.
"""

import sys
from pathlib import Path

from PIL import Image

import drifting
from drifting.data import load_digits
from drifting.data.pixels import to_bytes
from drifting.runs.inspect import inspect_images


def write_folder(folder, count=200):
    """Write digits as PNG files into folder/LABEL/."""
    digits = load_digits()
    for index, (image, label) in enumerate(zip(to_bytes(digits.train[:count]), digits.train_labels.tolist(), strict=False)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{index:04d}.png")


def main(data=None, save_dir="runs/own-data", steps=100, n=64):
    """Say what is in the folder, train a short run on it, and write samples of every class."""
    folder = Path(save_dir).with_name("digits-as-files") if data is None else Path(data)
    if data is None:
        write_folder(folder)
    found = inspect_images(str(folder), time_steps=False)
    print(*found.report(), sep="\n")
    size = getattr(found.config and found.config.data, "image_size", None)
    # Shorter than the preset, which takes some minutes.
    config = drifting.preset("images", data=str(folder), image_size=size, steps=steps, encoder_steps=steps, batch_size=n)
    run = drifting.train(config, save_dir, overwrite=True)
    images = run.sample(20, seed=0)
    print(f"step {steps}: {len(images)} samples of {run.class_names}, pictures in {save_dir}")
    return run


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
