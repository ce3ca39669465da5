"""Time steps of Muon: torch's, which iterates five times in bfloat16, the same iteration in float32, and this library's four steps.

Command: python benchmarks/muon.py [--repeats 15]

The shapes are the largest ones in the generators of the presets cifar10-*. All variants run in turn in one process. Our steps
must be those of plain products, and differ from torch's by less than half of their length, because each only approximates U V^T.
This program needs torch 2.9 or newer, which has Muon; the library itself does not.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from drifting.training import state
from drifting.training.state import Muon, orthogonalized

SHAPES = {"a hidden layer": (512, 512), "the layer that spreads a code": (8192, 256), "a convolution": (128, 1152)}
RATE = 1e-2
# The steps of torch's iteration.
FIVE_EQUAL = [(3.4445, -4.7750, 2.0315)] * 5


def plain_iteration(matrix: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """Return the result of an iteration, computed by plain products of whole matrices in float32."""
    found = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    found = found / found.norm()
    for linear, cubic, quintic in coefficients:
        gram = found @ found.mT
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), found, beta=linear)
    return found if matrix.shape[0] <= matrix.shape[1] else found.mT


def stepping(optimizer: torch.optim.Optimizer, layer: nn.Linear, gradient: Tensor) -> Callable[[], Tensor]:
    """Return a function that takes one step and returns the weights."""

    def step() -> Tensor:
        layer.weight.grad = gradient
        optimizer.step()
        return layer.weight.detach()

    return step


def gradient_of(shape: tuple[int, int]) -> Tensor:
    """Return the gradient of all variants."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def variants(shape: tuple[int, int]) -> dict[str, Callable[[], Tensor]]:
    """Return the functions that are timed, by name."""
    gradient = gradient_of(shape)
    layers = [nn.Linear(shape[1], shape[0], bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    theirs = torch.optim.Muon(layers[0].parameters(), lr=RATE, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    ours = Muon(layers[1], lr=RATE, betas=(0.9, 0.95), weight_decay=0)
    return {
        "torch, bfloat16": stepping(theirs, layers[0], gradient),
        "ours": stepping(ours, layers[1], gradient),
        "iteration, float32": lambda: plain_iteration(gradient, FIVE_EQUAL),
        "our iteration": lambda: orthogonalized(gradient),
    }


def main() -> None:
    """Print one row per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    title = f"milliseconds, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table("weights", "shape", *variants((1, 1)), title=title)
    for name, shape in SHAPES.items():
        calls = variants(shape)
        theirs, ours, _, own = (call() for call in calls.values())
        plain = plain_iteration(gradient_of(shape), state._COEFFICIENTS)
        length = 0.2 * RATE * theirs.numel() ** 0.5
        # Both approximate U V^T, whose singular values are 1, by some between 0.7 and 1.2.
        assert (theirs - ours).norm() < 0.5 * length, f"{name}: steps differ by {float((theirs - ours).norm() / length):.2f}"
        assert (plain - own).norm() < 1e-3 * plain.norm(), f"{name}: iterations differ"
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(options.repeats):
            for call, taken in zip(calls.values(), times, strict=True):
                start = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - start))
        table.add_row(name, " x ".join(map(str, shape)), *(f"{statistics.median(taken):.1f}" for taken in times))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
