"""Train MNIST in its 784 pixels: python experiments/run_mnist.py --save_dir ./mnist --steps 5000."""

import sys

from drifting.cli import main

if __name__ == "__main__":
    main(["train", "mnist-pixel", *sys.argv[1:]])
