"""Measure sampling and starting: images per second, latency, start-up, and the largest memory of a training.

Command: python benchmarks/sampling.py --save-dir runs/sampling [--parts speed start memory]

"Speed" has one evaluation of the generator of each preset, with its initial weights, next to 50 of the same network trained by flow
matching (`flow_matching.py`). "Start" has the commands of a user, from the start of Python to its end. "Memory" is the largest
resident set of 20 steps of a training, with its first and last picture, where an encoder takes 5 steps before.

Times are those of the processor, on one thread, which a busy machine disturbs least.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flow_matching import Flow

from drifting import presets
from drifting.generators.base import Generator
from drifting.sampling import sample

SHAPES = {"mnist-pixel": (1, 28, 28), "cifar10-multiscale": (3, 32, 32)}
BATCH, EVALUATIONS = 256, 50


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median processor time of a call, after one that is not counted."""
    times = []
    for _ in range(1 + repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def speed(name: str, repeats: int) -> list[str]:
    """Return images per second and the milliseconds of one image, of a drifting generator and of a flow."""
    config: Any = presets.preset(name)
    facts = {"image_shape": SHAPES[name], "num_classes": 10, "class_names": tuple("0123456789")}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **facts))
    flow = Flow(config.generator, SHAPES[name], 10)
    flow.evaluations = EVALUATIONS
    networks: list[Generator] = [config.build_generator(), flow]
    many, one = ([seconds(lambda g=g, n=n: sample(g, n, batch_size=n), repeats) for g in networks] for n in (BATCH, 1))
    rates = [f"{BATCH / taken:,.0f}" for taken in many]
    delays = [f"{1e3 * taken:.1f}" for taken in one]
    return [name, *rates, f"{many[1] / many[0]:.0f}", *delays, f"{one[1] / one[0]:.0f}"]


def run(*command: str) -> tuple[float, int]:
    """Run a command in a fresh process and return its processor seconds and its largest resident set in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss


def train(name: str, folder: Path) -> int:
    """Train 20 steps of a preset and return the largest resident set."""
    more = ["--encoder-steps", "5"] if name.startswith("cifar10") else []
    command = [sys.executable, "-m", "drifting", "train", name, "--steps", "20", *more, "--save-dir", str(folder), "--overwrite"]
    return run(*command)[1]


def starts(folder: Path, repeats: int) -> list[tuple[str, float]]:
    """Return commands and their processor seconds."""
    if not (folder / "generator.safetensors").exists():
        train("mnist-pixel", folder)
    python, out = sys.executable, str(folder / "sample.png")
    sample = (python, "-m", "drifting", "sample", str(folder), "--num-samples", "1", "--out", out, "--overwrite")
    commands = {
        "import torch": (python, "-c", "import torch"),
        "import drifting": (python, "-c", "import drifting"),
        "import drifting, with the loss": (python, "-c", "import drifting; drifting.drifting_loss"),
        "drifting --help": (python, "-m", "drifting", "--help"),
        "drifting sample RUN --num-samples 1": sample,
    }
    return [(label, statistics.median(run(*command)[0] for _ in range(repeats))) for label, command in commands.items()]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save-dir", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=["speed", "start", "memory"], default=["speed", "start", "memory"])
    parser.add_argument("--only", default="", help="a part of the names of the presets to run")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in SHAPES if options.only in name]
    if "speed" in options.parts:
        print("| preset | images/s | flow, 50 | ratio | one image, ms | flow, 50 | ratio |", "|---" * 7 + "|", sep="\n")
        for name in names:
            print(f"| {' | '.join(speed(name, options.repeats))} |", flush=True)
    if "start" in options.parts:
        print("| command | processor s |", "|---|---|", sep="\n")
        for label, taken in starts(options.save_dir / "mnist-pixel", options.repeats):
            print(f"| `{label}` | {taken:.2f} |", flush=True)
    if "memory" in options.parts:
        print("| training | largest resident set, GB |", "|---|---|", sep="\n")
        for name in names:
            print(f"| {name} | {train(name, options.save_dir / name) / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
