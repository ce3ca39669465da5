"""Train CIFAR-10 in the 512 features of SimCLR.

python experiments/train_cifar10_simclr.py --save_dir ./cifar10_simclr --drift_steps 1500
"""

import sys

from drifting.cli import main

if __name__ == "__main__":
    main(["train", "cifar10-simclr", *sys.argv[1:]])
