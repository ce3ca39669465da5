"""Train CIFAR-10 in the 2048 features of a ResNet-50.

python experiments/train_cifar10_resnet50_v2.py --save_dir ./cifar10_resnet50 --drift_steps 1500
"""

import sys

from drifting.cli import main

if __name__ == "__main__":
    main(["train", "cifar10-resnet50", *sys.argv[1:]])
