"""The commands: each calls the library and prints. Commands that train are in `training`; the others are parsed by signature."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import Positional

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
    """Draw samples from a trained run, with one forward pass per sample.

    Args:
        run: run folder, artifact of the authors (converted or not), or hub:NAME for a published artifact.
        num_samples: number of samples.
        seed: random seed; sample i of a seed is always the same.
        labels: classes to cycle through, by name or number, as printed before training; all of them by default. If class names are
            whole numbers, such as folders 1, 2 and 3, a number is a name.
        guidance_scale: strength of the guidance, from 1 (none) up; that of the run by default.
        vae: Hub id or folder of the auto-encoder that decodes latents of an artifact; that of the paper by default.
        out: a picture (.png) or an array (.npy): points in their own coordinates, or uint8 images [n, h, w, c].
        overwrite: replace an existing file.
    """
    from drifting.runs import share

    options = {"seed": seed, "labels": labels, "guidance_scale": guidance_scale, "overwrite": overwrite}
    share.write_samples(run, out, num_samples, vae=vae, **options)
    print(out)


def convert(source: Positional[str], /, *, out: Path, overwrite: bool = False) -> None:
    """Convert an artifact of the authors' release into a folder of this library, or back, without changing a bit.

    Args:
        source: folder of an artifact, of an earlier conversion or of a training, or hub:NAME for a published artifact.
        out: the folder to write.
        overwrite: replace an earlier conversion in the folder.
    """
    from drifting.runs import share

    print(*share.convert(source, out, overwrite=overwrite), sep="\n")


def evaluate(
    run: Positional[Path],
    /,
    *,
    extractor: str | None = None,
    real: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
) -> None:
    """Compare samples of a trained run with real data; the figures are also written to metrics.json in the run folder.

    Args:
        run: the run folder.
        extractor: feature extractor for images: folder of a trained classifier (runs/NAME-classifier by default), a TorchScript
            Inception file (.pt), or pixels.
        real: real images to compare with: a folder of images, or their statistics (.safetensors or .npz); the images of the run by
            default. The figures in the column "real against real" are of other real images.
        num_samples: number of images to compare; 10,000 by default, or 50,000 with `real` or for data that are not held in memory.
        seed: random seed of the samples.
        guidance_scale: guidance scale of the samples, as in `drifting sample`.
        batch_size: number of images at a time, which bounds memory and changes nothing else.
        device: device of generator, decoder and extractor: cpu, cuda, cuda:1 or mps.
    """
    from drifting import runs
    from drifting.evaluation import as_text

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", UserWarning)
        metrics = runs.load_run(run).evaluate(
            extractor=extractor,
            real=real,
            count=num_samples,
            seed=seed,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            device=device,
        )
    rows = []
    for name, value in metrics.items():
        if not name.endswith("_floor"):
            floor = metrics.get(f"{name}_floor")
            rows.append((name, as_text(value), "" if floor is None else as_text(floor)))
    _print_table(("metric", "value", "real against real"), rows, title=str(run))
    for doubt in doubts:
        print(f"drifting: {doubt.message}", file=sys.stderr)


def compare(runs: Positional[tuple[Path, ...]], /, *, out: Path = Path("runs/comparison"), overwrite: bool = False) -> None:
    """Compare trained runs of images: a table of their figures in comparison.md, samples of the same seed in compare.png.

    Args:
        runs: the run folders.
        out: the folder for the two files.
        overwrite: replace existing files.
    """
    from drifting.runs.compare import write_comparison

    compared, files = write_comparison(runs, out, overwrite=overwrite)
    # Transposed, because a terminal is seldom wide enough for all figures of a run.
    figures, *columns = zip(compared.columns, *compared.rows, strict=True)
    _print_table(figures, columns, title=str(out))
    print(*files, sep="\n")
    for doubt in compared.doubts:
        print(f"drifting: {doubt}", file=sys.stderr)


def presets() -> None:
    """List the presets that can be trained."""
    from drifting.presets import GROUPS, PRESETS

    print(wrapped("Minutes are those of 2 CPU cores. Train one with: drifting train NAME", 0))
    for heading, names in GROUPS.items():
        print(f"\n{heading}")
        for name in names:
            preset = PRESETS[name]
            facts = f"data: {preset.data}; minutes: {preset.minutes}; expected: {preset.expected}"
            print(wrapped(f"{name}: {preset.what}", 2, hanging=4), wrapped(facts, 6), sep="\n")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str) -> None:
    """Print a table of plain text without markup; its first column is not wrapped."""
    headers = [Column(Text(column), no_wrap=index == 0) for index, column in enumerate(columns)]
    table = Table(*headers, title=Text(title, style="table.title"))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


ALL = (train, train_encoder, latents, sample, convert, evaluate, compare, presets)
# These commands read their words themselves, because their options depend on what is trained.
READERS = {"train": train, "train-encoder": train_encoder, "latents": latents}
# Flags of version 0.1 -> the present ones, of the commands that are parsed by signature.
FORMER = {"--judge": "--extractor"}
