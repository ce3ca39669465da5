"""Compare how idle threads wait: training steps of one process with two threads, and of two such processes at once.

Command: python benchmarks/waiting.py [--only mnist] [--rounds 2]

torch computes on a CPU with the threads of libgomp. A thread that has done its part spins for a while before it sleeps, as
OMP_WAIT_POLICY and GOMP_SPINCOUNT say; libgomp ignores KMP_BLOCKTIME, which is a setting of another library. Settings take turns
in every round. The table has medians of the elapsed and of the processor time of a step, of all processes.
"""

import argparse
import statistics
import sys

from versions import Worker

PRESETS = ("toy", "mnist-pixel")
SETTINGS = {
    "default": {},
    "OMP_WAIT_POLICY=active": {"OMP_WAIT_POLICY": "active"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}


def measure(
    name: str, settings: dict[str, str], turns: int, count: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return the times of steps of one process, and of two at once."""
    workers, alone, both = [Worker(name, threads=2, settings=settings)], [], []
    workers[0].take(count)
    alone += [workers[0].take(count) for _ in range(turns)]
    workers.append(Worker(name, threads=2, settings=settings))
    workers[1].take(count)
    for _ in range(turns):
        for worker in workers:
            worker.ask(count)
        both += [worker.answer() for worker in workers]
    for worker in workers:
        worker.stop()
    return alone, both


def main() -> None:
    """Print one row per preset and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names of the presets to run")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="number of steps of a turn")
    options = parser.parse_args()
    columns = ("one process, ms", "its processor ms", "each of two, ms", "its processor ms")
    print("| preset | setting | " + " | ".join(columns) + " |", "|---" * 6 + "|", sep="\n")
    for name in [name for name in PRESETS if options.only in name]:
        found: dict[str, list[list[tuple[float, float]]]] = {label: [[], []] for label in options.settings}
        for _ in range(options.rounds):
            for label in options.settings:
                measured = measure(name, SETTINGS[label], options.turns, options.steps)
                for kind, more in enumerate(measured):
                    found[label][kind] += more
                print(f"{name}, {label}: {measured}", file=sys.stderr, flush=True)
        for label, kinds in found.items():
            values = [1e3 * statistics.median(times) for kind in kinds for times in zip(*kind, strict=True)]
            print(f"| {name} | {label} | " + " | ".join(f"{value:.0f}" for value in values) + " |", flush=True)


if __name__ == "__main__":
    main()
