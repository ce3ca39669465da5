"""Count fresh processes whose first drift field is wrong: python benchmarks/first_calls.py [--processes 1000] [--bare]

Each process imports the package and computes one field in float32; its error is the relative length of the difference from float64.
With `--bare` it computes the square roots of 5500 numbers without the package instead: the smallest program that shows the race in
oneMKL which `drifting._torch` avoids. The race was seen on Intel processors with AMX, with two threads.
"""

import argparse
import subprocess
import sys
from collections import Counter

FIELD = """
import torch
from drifting.fields import mean_shift
torch.manual_seed(5)
samples = [torch.randn(count, 2) for count in (50, 70, 40)]
single = mean_shift(*samples, temperature=0.05)
double = mean_shift(*(part.double() for part in samples), temperature=0.05)
print(float((single - double).norm() / double.norm()))
"""
ROOT = """
import torch
numbers = torch.linspace(0.01, 3, 5500)
single, double = numbers.sqrt(), numbers.double().sqrt()
print(float((single - double).norm() / double.norm()))
"""
LIMIT = 1e-5


def main() -> None:
    """Start the processes one after the other and print how many were wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--bare", action="store_true")
    settings = parser.parse_args()
    program = [sys.executable, "-c", ROOT if settings.bare else FIELD]
    errors = [float(subprocess.run(program, capture_output=True, check=True).stdout) for _ in range(settings.processes)]
    print(f"{sum(error > LIMIT for error in errors)} of {len(errors)} processes were off by more than {LIMIT}")
    print("most frequent errors:", Counter(f"{error:.3e}" for error in errors).most_common(5))


if __name__ == "__main__":
    main()
