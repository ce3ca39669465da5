"""Train CIFAR-10 in the features of four stages of a ResNet-18.

python experiments/train_cifar10_multiscale.py --save_dir ./cifar10_multiscale --drift_steps 1500
"""

import sys

from drifting.cli import main

if __name__ == "__main__":
    main(["train", "cifar10-multiscale", *sys.argv[1:]])
