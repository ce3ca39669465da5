"""Train a 2D toy: python experiments/run_toy.py --dataset moons --save_dir ./toy_moons."""

import sys

from drifting.cli import main

if __name__ == "__main__":
    main(["train", "toy", *sys.argv[1:]])
