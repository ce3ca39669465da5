"""The command line: drifting {train, train-encoder, sample, convert, evaluate, compare, presets}. It parses, calls, prints."""

import os
import sys
import traceback
import warnings
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tyro.conf import OmitArgPrefixes, Positional

from drifting.cli.options import AS_KIND, AS_PRESET, DEFAULT, Choices, EncoderSettings, Settings
from drifting.errors import InputError

if TYPE_CHECKING:
    from drifting.distributed import Processes

# Commands whose work several processes can share.
_SHARED = ("train", "sample")


def train(
    preset: Positional[str],
    /,
    *,
    choices: OmitArgPrefixes[Choices] = DEFAULT,
    settings: OmitArgPrefixes[Settings] = AS_PRESET,
    save_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a preset into a run folder, with its pictures. `torchrun -m drifting train ...` trains it on several devices.

    Args:
        preset: see `drifting presets`.
        choices: what to train on.
        settings: what may differ from the preset.
        save_dir: the run folder; runs/PRESET or runs/DATASET by default.
        resume: go on with the run in the folder.
        overwrite: delete the run in the folder first.
    """
    from drifting import presets, runs
    from drifting.run_folder import saved_config

    given = choices.given()
    own = Path(choices.data).resolve().stem if choices.data and preset in ("toy", "images") else preset
    folder = save_dir or Path("runs") / (choices.dataset or own)
    config = saved_config(folder) if resume else presets.preset(preset, **given)
    if resume:
        presets.check_choices(config, preset, **given)
    trained = runs.start(presets.adjust(config, **vars(settings)), folder, resume=resume, overwrite=overwrite)
    print(*trained.summary(), sep="\n")


def train_encoder(
    kind: Positional[str],
    /,
    *,
    name: str | None = None,
    data: str | None = None,
    settings: OmitArgPrefixes[EncoderSettings] = AS_KIND,
    save_dir: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train a feature encoder on its own and tell how much of the classes a linear classifier finds in its features.

    Args:
        kind: supervised, simclr or mae.
        name: which data set, of those that are found by name: cifar10 by default.
        data: your own images: a folder or a Hub id.
        settings: what may differ from the defaults of the kind.
        save_dir: the folder of the encoder; runs/NAME-KIND by default.
        overwrite: delete what is in the folder first.
    """
    from drifting import runs
    from drifting.presets.encoders import encoder

    given = {setting: value for setting, value in vars(settings).items() if value is not None}
    config = encoder(kind, name=name, data=data, **given)
    trained = runs.train_encoder(config, save_dir or Path("runs") / f"{config.data.name}-{kind}", overwrite=overwrite)
    print(*trained.summary(), sep="\n")


def sample(
    run: Positional[str],
    /,
    *,
    num_samples: int = 64,
    seed: int = 0,
    labels: tuple[int, ...] | None = None,
    guidance_scale: float | None = None,
    vae: str | None = None,
    out: Path = Path("samples.png"),
    overwrite: bool = False,
) -> None:
    """Make samples with a trained run, one forward pass each.

    Args:
        run: the run folder, one of the authors' artifacts, converted or not, or hub:NAME for one that they published.
        num_samples: how many.
        seed: which ones; sample i of a seed is always the same.
        labels: classes to cycle through; all of them by default.
        guidance_scale: how strongly a class is set apart from the others, from 1, which is not at all; that of the run by default.
        vae: Hub id or folder of the auto-encoder that decodes latents of an artifact; that of the paper by default.
        out: a picture (.png), or the numbers (.npy): float32 points in their own coordinates, or uint8 images [n, h, w, c].
        overwrite: replace the file if it is there.
    """
    from drifting import released

    options = {"seed": seed, "labels": labels, "guidance_scale": guidance_scale, "overwrite": overwrite}
    released.write_samples(run, out, num_samples, vae=vae, **options)
    print(out)


def convert(source: Positional[str], /, *, out: Path, overwrite: bool = False) -> None:
    """Turn an artifact of the authors' release into a folder of ours, or a folder of ours into an artifact; every bit is kept.

    Args:
        source: the folder of an artifact, of an earlier conversion or of a training; or hub:NAME for what the authors published.
        out: the folder to write.
        overwrite: replace an earlier conversion in it.
    """
    from drifting import released

    print(*released.convert(source, out, overwrite=overwrite), sep="\n")


def evaluate(
    run: Positional[Path],
    /,
    *,
    judge: str | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    guidance_scale: float | None = None,
) -> None:
    """Measure a trained run against real data; the figures also go to metrics.json in its folder.

    Args:
        run: the run folder.
        judge: in whose features images are compared: the folder of a trained classifier (runs/NAME-classifier by default), a
            TorchScript Inception file (.pt), or pixels.
        num_samples: images to compare.
        seed: which images.
        guidance_scale: of the samples, as in `drifting sample`.
    """
    from drifting import runs
    from drifting.evaluation import as_text

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", UserWarning)
        metrics = runs.load(run).evaluate(judge=judge, count=num_samples, seed=seed, guidance_scale=guidance_scale)
    table = Table("metric", "value", "real against real", title=str(run))
    for name, value in metrics.items():
        if not name.endswith("_floor"):
            floor = metrics.get(f"{name}_floor")
            table.add_row(name, as_text(value), "" if floor is None else as_text(floor))
    Console().print(table)
    for doubt in doubts:
        print(f"drifting: {doubt.message}", file=sys.stderr)


def compare(runs: Positional[tuple[Path, ...]], /, *, out: Path = Path("runs/comparison"), overwrite: bool = False) -> None:
    """Set trained runs of images side by side: their figures in comparison.md, samples of the same seed in compare.png.

    Args:
        runs: the run folders.
        out: the folder for the two files.
        overwrite: replace them if they are there.
    """
    from drifting.comparison import write_comparison

    compared, files = write_comparison(runs, out, overwrite=overwrite)
    # Turned, for a terminal is seldom as wide as all figures of a run.
    (corner, *figures), *columns = zip(compared.columns, *compared.rows, strict=True)
    table = Table(Column(corner, no_wrap=True), *map(escape, figures), title=escape(str(out)))
    for column in columns:
        table.add_row(*map(escape, column))
    Console().print(table)
    print(*files, sep="\n")
    for doubt in compared.doubts:
        print(f"drifting: {doubt}", file=sys.stderr)


def presets() -> None:
    """List what can be trained."""
    from drifting.presets import PRESETS

    table = Table(Column("name", no_wrap=True), "what", "data", "minutes on 2 CPU cores", "expected")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.what, preset.data, preset.minutes, preset.expected)
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 2 on bad input, 130 if it was stopped, 1 if training diverged or ran out of memory.

    Started by torchrun it does its share of the work; the first process alone prints, and a process that is lost ends all with 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    app = tyro.extras.SubcommandApp()
    for command in (train, train_encoder, sample, convert, evaluate, compare, presets):
        app.command(command)
    processes = None
    try:
        processes = _join()
        if processes is not None and arguments and arguments[0] not in _SHARED:
            size = processes.size
            raise InputError(f"world size is {size}, but '{arguments[0]}' is done by one process: start it without torchrun")
        with nullcontext() if processes is None or processes.leads else redirect_stdout(open(os.devnull, "w")):
            app.cli(prog="drifting", args=arguments)
        if processes is not None:
            processes.wait()
    except (Exception, KeyboardInterrupt) as error:
        _end(error, processes)
    if processes is not None:
        _part(0)


def _end(error: BaseException, processes: "Processes | None") -> None:
    """Say what went wrong, once for all processes, and leave with the status of it; raise an error that is not foreseen."""
    reason, status = _told(error)
    if reason is None and processes is None:
        raise error
    if reason is None:
        traceback.print_exception(error)
    elif processes is None or processes.is_first_to_say(reason):
        print(f"drifting: {reason}", file=sys.stderr)
    if processes is not None:
        _part(status)
    sys.exit(status)


def _part(status: int) -> None:
    """Leave at once: the engine's own threads may still wait for another process, or for one that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join() -> "Processes | None":
    """Return the processes that share the command, None for one alone, which need not wait for torch."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from drifting.distributed import join

    return join()


def _told(error: BaseException) -> tuple[str | None, int]:
    """Return what to say of an error and the status to leave with, or None for one that is not foreseen."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "Stopped; nothing of this step is kept. Start the same command again.", 130
    from drifting.distributed import LostProcessError, is_loss
    from drifting.runs import Interrupted
    from drifting.training.state import DivergenceError

    if _out_of_memory(error):
        mend = "pass a smaller --batch-size or, for a generator, --micro-batch, also with --resume from the last checkpoint"
        return f"out of memory ({str(error).partition(chr(10))[0]}): {mend}", 1
    if isinstance(error, Interrupted):
        return str(error), 130
    if isinstance(error, DivergenceError | LostProcessError):
        return str(error), 1
    return ("a process was lost: start the same command again", 1) if is_loss(error) else (None, 1)


def _out_of_memory(error: BaseException) -> bool:
    import torch

    # On a CPU torch has no class of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
