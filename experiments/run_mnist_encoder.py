"""Train MNIST in a 64-D auto-encoder: python experiments/run_mnist_encoder.py --save_dir ./mnist_encoder --steps 5000."""

import sys

from drifting.cli import main

if __name__ == "__main__":
    main(["train", "mnist-encoder", *sys.argv[1:]])
