"""Time the search for the nearest training images of 10,000 images: by directions, and by the product of all pairs.

Command: DRIFTING_DATA=... python benchmarks/copies.py [--data cifar10] [--count 10000]

Both searches run in turn in one process and must return the same images. The times are CPU times, so other work on the machine
matters little.
"""

import argparse
import time

import torch

from drifting.data.images import load_images
from drifting.data.pixels import to_signed
from drifting.metrics import images
from drifting.metrics.distances import nearest_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="cifar10", help="name of a data set below $DRIFTING_DATA")
    parser.add_argument("--count", type=int, default=10_000, help="images of the test set to search for")
    options = parser.parse_args()
    train, test = (to_signed(load_images(None, name=options.data, split=split).images).flatten(1) for split in ("train", "test"))
    test = test[: options.count]
    # The search by directions is private, because the public search chooses between both.
    searches = {"all pairs": nearest_pairs, "directions": images._by_directions}
    found, seconds = {}, {}
    for name, search in searches.items():
        started = time.process_time()
        found[name] = search(test, train)
        seconds[name] = time.process_time() - started
    print(f"{len(test)} of {len(train)} images of {train.shape[1]} numbers, {torch.get_num_threads()} threads")
    print("| search | CPU seconds | times faster | left to all pairs |\n|---|---|---|---|")
    for name, taken in seconds.items():
        left = len(found[name][2]) if name == "directions" else len(test)
        print(f"| {name} | {taken:.1f} | {seconds['all pairs'] / taken:.1f} | {left} |")
    searched = torch.ones(len(test), dtype=torch.bool)
    searched[found["directions"][2]] = False
    same = [
        torch.equal(first[searched], second[searched])
        for first, second in zip(*(found[name][:2] for name in searches), strict=True)
    ]
    print(f"distances and images are the same: {all(same)}")


if __name__ == "__main__":
    main()
