"""Count the faults that `drifting doctor` finds in short runs, those it misses, and its false alarms.

Command: python benchmarks/doctor.py [--list set|held] [--only NAME]

Every run is a preset in short form. Healthy ones must have no finding; each of the others has one fault, whose finding must be
among those of the finished run. The thresholds of `drifting.diagnosis` were set with the runs in SET; those in HELD were
run after that.
"""

import argparse
import dataclasses
import importlib
import io
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from drifting import presets, runs
from drifting.config import RunConfig
from drifting.encoders import PixelsConfig
from drifting.encoders.base import FeatureEncoder
from drifting.runs.doctor import examine

# Steps between two lines of the log with all figures, and settings that make every run short.
_SHORT = {"statistics_every": 25, "log_every": 25, "snapshots": 3, "keep": 1}


class Case(NamedTuple):
    """One run.

    Attributes:
        name: what is trained, and the fault.
        fault: name of the finding; "" for a healthy run.
        make: the configuration, given a folder for its images.
        encoder: encoder in place of the configured one; None for that.
    """

    name: str
    fault: str
    make: Callable[[Path], RunConfig]
    encoder: FeatureEncoder | None = None


def toy(dataset: str, **changes: Any) -> Callable[[Path], RunConfig]:
    """Return a toy of 512 samples and 400 steps; the learning rate falls in the last half."""
    usual = {**_SHORT, "steps": 400, "decay_after": 200, "generated": 512, "positives": 512, "ema_decay": 0.99}
    return lambda _: presets.adjust(presets.preset("toy", dataset=dataset), **{**usual, **changes})


def digits(**changes: Any) -> Callable[[Path], RunConfig]:
    """Return digits with 32 samples of each class and 250 steps, by the mean shift, for which the rules were set."""
    usual = {**_SHORT, "steps": 250, "warmup_steps": 20, "generated": 32, "positives": 32, "generator.width": 256}
    usual |= {"field": "mean-shift", "ema_decay": 0.99}
    return lambda _: presets.adjust(presets.preset("digits"), **{**usual, **changes})


def images(channels: int = 1, joint: bool = False, **changes: Any) -> Callable[[Path], RunConfig]:
    """Return 300 images of 8 x 8 pixels in three classes, which drift as pixels, for 200 steps."""

    def make(folder: Path) -> RunConfig:
        write_bars(folder, channels=channels)
        config = presets.preset("images", data=str(folder), unconditional=joint)
        config = dataclasses.replace(config, encoder=PixelsConfig(), cache_features=False)
        small = {"generator.decoder_width": 16, "generator.width": 128, "generator.code_dim": 32, "snapshot_samples": 150}
        usual = {**_SHORT, "steps": 200, "warmup_steps": 20, "decay_after": 100, "generated": 32, "positives": 32}
        return presets.adjust(config, **{**usual, **small, "unconditional": 0, **changes})

    return make


def write_bars(folder: Path, *, channels: int) -> None:
    """Write bright bars of three classes, at random places of random brightness, as PNG files."""
    rng = torch.Generator().manual_seed(0)
    for label in range(3):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for index in range(100):
            pixels = torch.randint(60, (8, 8, channels), generator=rng)
            place, light = torch.randint(6, (2,), generator=rng).tolist()
            block = pixels[:, place : place + 2] if label == 0 else pixels[place : place + 2]
            block[..., label % channels :] += 100 + 15 * light
            if label == 2:
                pixels[:4] = pixels[:4].flip(0)
            Image.fromarray(pixels.to(torch.uint8).squeeze(-1).numpy()).save(folder / str(label) / f"{index}.png")


def _sorted(samples: Tensor) -> dict[str, Tensor]:
    """Return the pixels of every channel in order of their values, which a shuffle does not change."""
    return {"sorted": samples.flatten(2).sort(2).values.flatten(1)[:, None]}


def _means(samples: Tensor) -> dict[str, Tensor]:
    """Return mean and deviation of every channel."""
    flat = samples.flatten(2)
    return {"mean": flat.mean(2)[:, None], "std": flat.std(2)[:, None]}


def _gray(samples: Tensor) -> dict[str, Tensor]:
    """Return the mean of the channels."""
    return {"gray": samples.mean(1).flatten(1)[:, None]}


def _brightest(samples: Tensor) -> dict[str, Tensor]:
    """Return the brightest channel of every pixel."""
    return {"brightest": samples.amax(1).flatten(1)[:, None]}


def _edges(samples: Tensor) -> dict[str, Tensor]:
    """Return differences of neighbors in the mean of the channels."""
    gray = samples.mean(1)
    return {"edges": torch.cat([gray.diff(dim=1).flatten(1), gray.diff(dim=2).flatten(1)], 1)[:, None]}


SMALL, LARGE = "temperatures too small", "temperatures too large"
RATE, FLOOR, FEW, BLIND = "learning rate too high", "affinity floor too high", "too few positives", "encoder is blind"

SET = (
    Case("moons", "", toy("moons")),
    Case("checker", "", toy("checker")),
    Case("spirals", "", toy("spirals")),
    Case("eight_gaussians", "", toy("eight_gaussians")),
    Case("digits", "", digits()),
    Case("digits, muon", "", digits(optimizer="muon", learning_rate=3e-3)),
    Case("bars", "", images()),
    Case("moons, temperatures 1e-6", SMALL, toy("moons", temperatures=(1e-6,))),
    Case("digits, temperatures 1e-6", SMALL, digits(temperatures=(1e-6,))),
    Case("bars, temperatures 0.002", SMALL, images(temperatures=(0.002,))),
    Case("moons, temperatures 1e4", LARGE, toy("moons", temperatures=(1e4,))),
    Case("digits, temperatures 20", LARGE, digits(temperatures=(20.0,))),
    Case("moons, learning rate 0.3", RATE, toy("moons", learning_rate=0.3)),
    Case("digits, learning rate 0.5", RATE, digits(learning_rate=0.5)),
    Case("bars, learning rate 1", RATE, images(learning_rate=1.0)),
    Case("digits, affinity floor", FLOOR, digits(**{"loss.field.affinity_floor": 1e-6})),
    Case("moons, batch 8", FEW, toy("moons", generated=8, positives=8)),
    Case("digits, 8 positives", FEW, digits(positives=8)),
    Case("color bars, sorted pixels", BLIND, images(channels=3), _sorted),
    Case("color bars, gray", BLIND, images(channels=3), _gray),
    Case("swiss_roll", "", toy("swiss_roll")),
    Case("circles", "", toy("circles")),
    Case("pinwheel", "", toy("pinwheel")),
    Case("moons, seed 5", "", toy("moons", seed=5)),
    Case("digits, seed 3", "", digits(seed=3)),
    Case("digits, guidance 1.3", "", digits(guidance_scale=1.3, unconditional=32)),
    Case("color bars, joint", "", images(channels=3, joint=True)),
    Case("circles, temperatures 1e-6", SMALL, toy("circles", temperatures=(1e-6,))),
    Case("digits, temperatures 0.001", SMALL, digits(temperatures=(0.001,))),
    Case("bars, temperatures 1e-6", SMALL, images(temperatures=(1e-6,))),
    Case("bars, temperatures 1e4", LARGE, images(temperatures=(1e4,))),
    Case("pinwheel, temperatures 50", LARGE, toy("pinwheel", temperatures=(50.0,))),
    Case("swiss_roll, learning rate 0.3", RATE, toy("swiss_roll", learning_rate=0.3)),
    Case("digits, learning rate 0.2", RATE, digits(learning_rate=0.2)),
    Case("color bars, learning rate 0.5", RATE, images(channels=3, learning_rate=0.5)),
    Case("bars, affinity floor", FLOOR, images(1, False, **{"loss.field.affinity_floor": 1e-6})),
    Case("digits, batch 8 a class", FEW, digits(generated=8, positives=8)),
    Case("bars, 6 positives", FEW, images(positives=6)),
    Case("color bars, means", BLIND, images(channels=3), _means),
    Case("color bars, edges of gray", BLIND, images(channels=3), _edges),
)

HELD = (
    Case("eight_gaussians, seed 2", "", toy("eight_gaussians", seed=2)),
    Case("checker, seed 3", "", toy("checker", seed=3)),
    Case("spirals, 256 samples", "", toy("spirals", generated=256, positives=256)),
    Case("digits, learning rate 0.002", "", digits(learning_rate=2e-3, seed=7)),
    Case("digits, independent negatives", "", digits(independent_negatives=True)),
    Case("bars, guidance 1.2", "", images(guidance_scale=1.2, unconditional=32)),
    Case("color bars", "", images(channels=3, seed=4)),
    Case("spirals, temperatures 1e-5", SMALL, toy("spirals", temperatures=(1e-5,))),
    Case("digits, temperatures 0.0005", SMALL, digits(temperatures=(5e-4,))),
    Case("color bars, temperatures 0.001", SMALL, images(channels=3, temperatures=(0.001,))),
    Case("moons, temperatures 200", LARGE, toy("moons", temperatures=(200.0,))),
    Case("digits, temperatures 100", LARGE, digits(temperatures=(100.0,))),
    Case("color bars, temperatures 30", LARGE, images(channels=3, temperatures=(30.0,))),
    Case("checker, learning rate 0.5", RATE, toy("checker", learning_rate=0.5)),
    Case("digits, learning rate 0.3", RATE, digits(learning_rate=0.3)),
    Case("bars, learning rate 0.3", RATE, images(learning_rate=0.3)),
    Case("pinwheel, learning rate 0.2", RATE, toy("pinwheel", learning_rate=0.2)),
    Case("color bars, affinity floor 1e-5", FLOOR, images(3, False, **{"loss.field.affinity_floor": 1e-5})),
    Case("checker, batch 6", FEW, toy("checker", generated=6, positives=6)),
    Case("digits, 10 positives", FEW, digits(positives=10)),
    Case("bars, sorted pixels", BLIND, images(), _sorted),
    Case("color bars, brightest channel", BLIND, images(channels=3), _brightest),
)


def train(case: Case, folder: Path) -> None:
    """Train a case into a folder, without pictures."""
    config = case.make(folder / "data")
    with ExitStack() as patches:
        patches.enter_context(mock.patch("drifting.runs.pictures.draw_pictures", return_value=[]))
        if case.encoder is not None:
            training = importlib.import_module("drifting.runs.train")
            patches.enter_context(mock.patch.object(training, "build_encoder", return_value=case.encoder))
        runs.train(config, folder / "run")


class Outcome(NamedTuple):
    """What was found in one run.

    Attributes:
        case: the run.
        faults: names of the faults that were found.
        seconds: processor time of the training.
    """

    case: Case
    faults: list[str]
    seconds: float

    @property
    def verdict(self) -> str:
        """Whether the fault was detected or missed, or whether a fault was found that is none."""
        if self.case.fault in self.faults:
            return "detected" if len(self.faults) == 1 else "detected, with others"
        if self.faults:
            return "other fault" if self.case.fault else "false alarm"
        return "missed" if self.case.fault else "healthy"


def outcome(case: Case) -> Outcome:
    """Train a case in a temporary folder and examine it."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        with redirect_stdout(io.StringIO()):
            train(case, Path(folder))
        seconds = time.process_time() - started
        return Outcome(case, [finding.name for finding in examine(Path(folder) / "run").faults], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", choices=("set", "held"), help="one list of runs; both by default")
    parser.add_argument("--only", default="", help="part of the names of the runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lists = {"set": SET, "held": HELD}
    table = Table("run", "list", "fault", "found", "", "s")
    outcomes: dict[str, list[Outcome]] = {name: [] for name in lists if arguments.list in (None, name)}
    for name, found in outcomes.items():
        for case in (each for each in lists[name] if arguments.only in each.name):
            found.append(outcome(case))
            *_, last = found
            table.add_row(case.name, name, case.fault or "-", ", ".join(last.faults) or "-", last.verdict, f"{last.seconds:.1f}")
            print(f"{case.name}: {last.verdict}", flush=True)
    Console(width=160).print(table)
    for name, found in outcomes.items():
        sick = [each for each in found if each.case.fault]
        detected = sum(each.verdict.startswith("detected") for each in sick)
        alarms = sum(each.verdict == "false alarm" for each in found)
        print(f"{name}: {detected} of {len(sick)} faults detected, {alarms} false alarms in {len(found) - len(sick)} healthy runs")


if __name__ == "__main__":
    main()
