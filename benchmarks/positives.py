"""Time a training step with features of positives computed or looked up, from the whole data set or from a memory bank.

Command: python benchmarks/positives.py [--data FOLDER] [--steps 30]

All four variants train the preset mnist-encoder, in turn, in one process. The encoder is untrained, which costs the same time.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from drifting.config import RunConfig
from drifting.data import BankConfig
from drifting.presets.points_and_digits import mnist_encoder
from drifting.runs.train import build_encoder, build_positives, resolve
from drifting.training.loop import Step, train
from drifting.training.state import TrainingState


def variant(config: RunConfig, folder: Path) -> tuple[Iterator[Step], float]:
    """Return the steps of a training and the seconds that its features took beforehand."""
    encoder = build_encoder(config, config.build_network())
    start = time.perf_counter()
    positives = build_positives(config, encoder, folder)
    prepared = time.perf_counter() - start
    state = TrainingState(config.build_generator(), config.schedule, config.seed)
    return train(state, positives, encoder, config.loss.build(), config.schedule), prepared


def main() -> None:
    """Print one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or Hub id of MNIST; $DRIFTING_DATA/mnist by default")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    base = resolve(mnist_encoder(options.data))
    cases = {"whole data set": None, "memory bank, 128 per class, 64 pushed per step": BankConfig()}
    table = Table(
        "positives from", "features", "preparation, s", "ms per step", "steps/s", title=f"mnist-encoder, {options.steps} steps each"
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            (name, cached): variant(dataclasses.replace(base, bank=bank, cache_features=cached), Path(folder))
            for name, bank in cases.items()
            for cached in (False, True)
        }
        times: dict[tuple[str, bool], list[float]] = {key: [] for key in runs}
        for _ in range(options.steps):
            for key, (steps, _) in runs.items():
                start = time.perf_counter()
                next(steps)
                times[key].append(time.perf_counter() - start)
        for key, taken in times.items():
            median = statistics.median(taken[3:])
            how = "looked up" if key[1] else "encoded anew"
            table.add_row(key[0], how, f"{runs[key][1]:.1f}", f"{1e3 * median:.0f}", f"{1 / median:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
