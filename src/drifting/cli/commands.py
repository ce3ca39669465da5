"""The commands: each calls the library and prints. Those that train are in `training`; the others parse by their signatures."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import Positional, arg

from drifting.cli.training import latents, train, train_encoder, wrapped


def sample(
    run: Positional[str],
    /,
    *,
    num_samples: int = 64,
    seed: int = 0,
    labels: tuple[str, ...] | None = None,
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
        labels: classes to cycle through, by name or number, as training tells them first; all of them by default. Where classes are
            called by whole numbers, such as folders 1, 2 and 3, a number is a name.
        guidance_scale: how strongly a class is set apart from the others, from 1, which is not at all; that of the run by default.
        vae: Hub id or folder of the auto-encoder that decodes latents of an artifact; that of the paper by default.
        out: a picture (.png), or the numbers (.npy): points in their own coordinates, or uint8 images [n, h, w, c].
        overwrite: replace the file if it is there.
    """
    from drifting.runs import share

    options = {"seed": seed, "labels": labels, "guidance_scale": guidance_scale, "overwrite": overwrite}
    share.write_samples(run, out, num_samples, vae=vae, **options)
    print(out)


def convert(source: Positional[str], /, *, out: Path, overwrite: bool = False) -> None:
    """Turn an artifact of the authors' release into a folder of ours, or a folder of ours into an artifact; every bit is kept.

    Args:
        source: the folder of an artifact, of an earlier conversion or of a training; or hub:NAME for what the authors published.
        out: the folder to write.
        overwrite: replace an earlier conversion in it.
    """
    from drifting.runs import share

    print(*share.convert(source, out, overwrite=overwrite), sep="\n")


def evaluate(
    run: Positional[Path],
    /,
    *,
    extractor: Annotated[str | None, arg(aliases=["--judge"])] = None,
    real: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
) -> None:
    """Measure a trained run against real data; the figures also go to metrics.json in its folder.

    Args:
        run: the run folder.
        extractor: in whose features images are compared: the folder of a trained classifier (runs/NAME-classifier by default), a
            TorchScript Inception file (.pt), or pixels.
        real: what images are compared with: a folder of images, or statistics of them (.safetensors or .npz); the run's own by
            default. Figures of other real images beside them, the floors, hold none of these.
        num_samples: images to compare; 10,000 by default, and 50,000 of runs whose data are not held in memory.
        seed: which images.
        guidance_scale: of the samples, as in `drifting sample`.
        batch_size: images at a time: bounds memory, and changes nothing else.
        device: where generator, decoder and extractor run: cpu, cuda, cuda:1 or mps.
    """
    from drifting import runs
    from drifting.evaluation import as_text

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", UserWarning)
        given = {"seed": seed, "guidance_scale": guidance_scale, "batch_size": batch_size, "device": device}
        metrics = runs.load_run(run).evaluate(extractor=extractor, real=real, count=num_samples, **given)
    rows = []
    for name, value in metrics.items():
        if not name.endswith("_floor"):
            floor = metrics.get(f"{name}_floor")
            rows.append((name, as_text(value), "" if floor is None else as_text(floor)))
    _print_table(("metric", "value", "real against real"), rows, title=str(run))
    for doubt in doubts:
        print(f"drifting: {doubt.message}", file=sys.stderr)


def compare(runs: Positional[tuple[Path, ...]], /, *, out: Path = Path("runs/comparison"), overwrite: bool = False) -> None:
    """Set trained runs of images side by side: their figures in comparison.md, samples of the same seed in compare.png.

    Args:
        runs: the run folders.
        out: the folder for the two files.
        overwrite: replace them if they are there.
    """
    from drifting.runs.compare import write_comparison

    compared, files = write_comparison(runs, out, overwrite=overwrite)
    # Turned, for a terminal is seldom as wide as all figures of a run.
    figures, *columns = zip(compared.columns, *compared.rows, strict=True)
    _print_table(figures, columns, title=str(out))
    print(*files, sep="\n")
    for doubt in compared.doubts:
        print(f"drifting: {doubt}", file=sys.stderr)


def presets() -> None:
    """List what can be trained."""
    from drifting.presets import GROUPS, PRESETS

    print(wrapped("Minutes are those of 2 CPU cores. Train one with: drifting train NAME", 0))
    for heading, names in GROUPS.items():
        print(f"\n{heading}")
        for name in names:
            preset = PRESETS[name]
            facts = f"data: {preset.data}; minutes: {preset.minutes}; expected: {preset.expected}"
            print(wrapped(f"{name}: {preset.what}", 2, hanging=4), wrapped(facts, 6), sep="\n")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str) -> None:
    """Print a table of plain text, in which no name is read as markup; its first column is not wrapped."""
    headers = [Column(Text(column), no_wrap=index == 0) for index, column in enumerate(columns)]
    table = Table(*headers, title=Text(title, style="table.title"))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


ALL = (train, train_encoder, latents, sample, convert, evaluate, compare, presets)
# They read their words themselves, for their options depend on what is trained.
READERS = {"train": train, "train-encoder": train_encoder, "latents": latents}
