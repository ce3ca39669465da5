"""Compare whole training steps of this version with those of an earlier one, in pairs.

Command: git worktree add ../before 1900b68; python benchmarks/versions.py --before ../before/src [--only mnist] [--turns 6]

Each version trains in a process of its own with one thread. The two take turns of a few steps, so that the ratio holds where the
speed of the machine drifts; the time is that of the processor. Data, features and weights are as in `steps.py`. The table has the
median of all turns, and the median and the range of the ratio of two turns that follow each other.
"""

import argparse
import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

PRESETS = {"toy": (20, (2,)), "mnist-pixel": (12, (1, 28, 28)), "cifar10-multiscale": (3, (3, 32, 32))}
CACHED = 2000
NOW = Path(__file__).parents[1] / "src"


def found(name: str, *modules: str) -> Any:
    """Return an object from the first of some modules that has it: versions keep it in different ones."""
    there = [importlib.import_module(f"drifting.{each}") for each in modules if importlib.util.find_spec(f"drifting.{each}")]
    return next(getattr(module, name) for module in there if hasattr(module, name))


def steps_of(name: str) -> Any:
    """Return the iterator of the steps of a preset with random images and an encoder with its initial weights."""
    config = found("preset", "presets")(name)
    # The work is that of the earliest versions: without a lookahead, and MNIST trained by AdamW and without tiles.
    field = getattr(config.loss.field, "field", config.loss.field)
    optimizer = "adamw" if name == "mnist-pixel" else config.schedule.optimizer
    schedule = replace(config.schedule, steps=10**6, optimizer=optimizer)
    encoder = found("PixelsConfig", "encoders")() if name == "mnist-pixel" else config.encoder
    config = replace(config, schedule=schedule, loss=replace(config.loss, field=field), encoder=encoder)
    shape, cache, network = PRESETS[name][1], None, None
    if name != "toy":
        facts = {"image_shape": shape, "num_classes": 10, "class_names": tuple("0123456789")}
        config = replace(config, data=replace(config.data, **facts))
        network = None if config.encoder.objective is None else config.encoder.build_network(shape, num_classes=10, read=None)
    encoder = found("build_encoder", "runs.train", "runs.assemble")(config, network)
    images = torch.rand(CACHED, *shape) * 2 - 1
    if network is not None:
        cache = found("FeatureCache", "training.positives", "data.features")(encoder, images)

    class Source:
        num_classes, sample_shape = 10, shape

        def draw(self, labels: Any, count: int, rng: Any, own: slice = slice(None)) -> Any:
            indices = torch.randint(CACHED, (len(labels), count), generator=rng)[own]
            return images[indices] if cache is None else indices

        def draw_unconditional(self, sets: int, count: int, rng: Any, own: slice = slice(None)) -> Any:
            return self.draw(range(sets), count, rng, own)

    source = config.data.source(config.seed) if name == "toy" else Source()
    state = found("TrainingState", "training.state")(config.build_generator(), config.schedule, config.seed)
    positives = found("Positives", "training.positives")(source, encoder, cache)
    return found("train", "training.loop")(state, positives, encoder, config.loss.build(), config.schedule)


def work(name: str, threads: int) -> None:
    """Take the asked number of steps for each line of the standard input; answer with the elapsed and the processor time of one."""
    torch.set_num_threads(threads)
    steps = steps_of(name)
    next(steps)
    for line in sys.stdin:
        started, used = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            next(steps)
        print((time.perf_counter() - started) / int(line), (time.process_time() - used) / int(line), flush=True)


class Worker:
    """A process that trains a preset when it is asked to.

    Args:
        name: name of the preset.
        source: folder src of the version.
        threads: number of its threads.
        settings: environment variables.
    """

    def __init__(self, name: str, source: Path = NOW, *, threads: int = 1, settings: Mapping[str, str] = {}) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads), **settings}
        command = [sys.executable, __file__, "--work", name, "--threads", str(threads)]
        self._process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, count: int) -> None:
        """Ask for steps."""
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)

    def answer(self) -> tuple[float, float]:
        """Return the elapsed and the processor seconds of a step once they are done."""
        assert self._process.stdout is not None
        elapsed, used = self._process.stdout.readline().split()
        return float(elapsed), float(used)

    def take(self, count: int) -> tuple[float, float]:
        """Ask for steps and wait for their times."""
        self.ask(count)
        return self.answer()

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()


def main() -> None:
    """Print one row per preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="folder src of the earlier version")
    parser.add_argument("--only", default="", help="a part of the names of the presets to run")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--work", choices=PRESETS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.threads)
    print("| preset | before, ms | now, ms | steps/s before | now | before / now | range |", "|---" * 7 + "|", sep="\n")
    for name, (count, _) in PRESETS.items():
        if options.only not in name:
            continue
        workers = [Worker(name, source) for source in (options.before, NOW)]
        pairs = [[worker.take(count)[1] for worker in workers] for _ in range(1 + options.turns)][1:]
        for worker in workers:
            worker.stop()
        before, after = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        ratios = [one / other for one, other in pairs]
        figures = f"{1e3 * before:.0f} | {1e3 * after:.0f} | {1 / before:.2f} | {1 / after:.2f}"
        print(f"| {name} | {figures} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)


if __name__ == "__main__":
    main()
