"""Train the small generators of a release and write them to share: python experiments/make_weights.py moons mnist."""

import argparse

from drifting.runs.weights import SMALL, make_weights

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(SMALL)}")
    parser.add_argument("--save-dir", default="weights", help="folder of the shared folders, and of the runs in runs/")
    arguments = parser.parse_args()
    print(*make_weights(arguments.save_dir, arguments.names or SMALL), sep="\n")
