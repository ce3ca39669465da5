"""Train CIFAR-10 in the 512 features of a ResNet-18.

python experiments/train_cifar10_drifting.py --save_dir ./cifar10_resnet18 --drift_steps 1500
"""

import sys

from drifting.cli import main

if __name__ == "__main__":
    main(["train", "cifar10-resnet18", *sys.argv[1:]])
