"""The command line: drifting {train, sample, evaluate, presets}. It parses, calls and prints; the work is done elsewhere."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional, arg

from drifting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may differ from the preset."""

    steps: Annotated[int | None, arg(aliases=["--drift-steps"])] = None
    """Optimiser steps."""
    batch_size: int | None = None
    """Generated samples of a step, over all its labels; real ones follow in proportion."""
    learning_rate: float | None = None
    """Of AdamW."""
    temperatures: tuple[float, ...] | None = None
    """Bandwidths of the drift field."""
    seed: int | None = None
    """Of weights, noise and data."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps."""
    keep: int | None = None
    """How many checkpoints to keep."""


_AS_PRESET = Settings()


def train(
    preset: Positional[str],
    /,
    *,
    dataset: str | None = None,
    data: str | None = None,
    settings: OmitArgPrefixes[Settings] = _AS_PRESET,
    save_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a preset into a run folder, with its pictures.

    Args:
        preset: toy or digits; see `drifting presets`.
        dataset: which toy: moons, swiss_roll, checker, circles, spirals, eight_gaussians, pinwheel.
        data: your own points for the preset toy: a .npy file of shape [n, 2].
        settings: what may differ from the preset.
        save_dir: the run folder; runs/PRESET or runs/DATASET by default.
        resume: go on with the run in the folder.
        overwrite: delete the run in the folder first.
    """
    from drifting import presets, runs

    choices = {name: value for name, value in {"dataset": dataset, "data": data}.items() if value is not None}
    folder = save_dir or Path("runs") / (dataset or (Path(data).stem if data else preset))
    config = runs.saved_config(folder) if resume else presets.preset(preset, **choices)
    if resume:
        presets.check_choices(config, preset, **choices)
    run = runs.train(presets.adjust(config, **vars(settings)), folder, resume=resume, overwrite=overwrite)
    for picture in run.pictures:
        print(picture)


def sample(
    run: Positional[Path],
    /,
    *,
    num_samples: int = 64,
    seed: int = 0,
    labels: tuple[int, ...] | None = None,
    out: Path = Path("samples.png"),
    overwrite: bool = False,
) -> None:
    """Make samples with a trained run, one forward pass each.

    Args:
        run: the run folder.
        num_samples: how many.
        seed: which ones; sample i of a seed is always the same.
        labels: classes to cycle through; all of them by default.
        out: a picture (.png), or the numbers (.npy): float32 points in their own coordinates, or uint8 images [n, h, w, c].
        overwrite: replace the file if it is there.
    """
    from drifting import runs

    runs.write_samples(runs.load(run), out, num_samples, seed=seed, labels=labels, overwrite=overwrite)
    print(out)


def evaluate(run: Positional[Path], /) -> None:
    """Measure a trained run against real data; the figures also go to metrics.json in its folder.

    Args:
        run: the run folder.
    """
    from drifting import runs

    table = Table("metric", "value", title=str(run))
    for name, value in runs.load(run).evaluate().items():
        table.add_row(name, " ".join(f"{part:.4g}" for part in value) if isinstance(value, list) else f"{value:.5g}")
    Console().print(table)


def presets() -> None:
    """List what can be trained."""
    from drifting.presets import PRESETS

    table = Table("name", "what", "data", "minutes on 2 CPU cores", "expected")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.what, preset.data, preset.minutes, preset.expected)
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 2 on bad input, 1 if training diverged, 130 if it was stopped."""
    app = tyro.extras.SubcommandApp()
    for command in (train, sample, evaluate, presets):
        app.command(command)
    try:
        app.cli(prog="drifting", args=arguments)
    except InputError as error:
        _leave(error, 2)
    except Exception as error:
        from drifting.runs import Interrupted
        from drifting.training.loop import DivergenceError

        if not isinstance(error, Interrupted | DivergenceError):
            raise
        _leave(error, 130 if isinstance(error, Interrupted) else 1)


def _leave(reason: Any, status: int) -> None:
    print(f"drifting: {reason}", file=sys.stderr)
    sys.exit(status)
