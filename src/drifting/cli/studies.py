"""Commands that show runs, or train many to answer a question, and the table in which commands print."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import OmitArgPrefixes, Positional

from drifting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Problems:
    """Trainings on which fields are compared.

    Attributes:
        presets: the names of presets, or of toys.
        data: the data of the only preset, as in `drifting train`.
        group_sizes: the numbers of generated samples, and of positives, of each label in a step; by default those of the preset.
        temperature_factors: numbers that multiply the temperatures of the presets.
    """

    presets: tuple[str, ...]
    data: str | None = None
    group_sizes: tuple[int, ...] = ()
    temperature_factors: tuple[float, ...] = ()


def compare_fields(
    *,
    problems: Annotated[Problems, OmitArgPrefixes],
    fields: tuple[str, ...],
    seeds: int = 3,
    minutes: float = 1.0,
    num_samples: int = 5000,
    extractor: str | None = None,
    out: Path = Path("runs/fields"),
) -> None:
    """Compare drift fields on equal terms: train each with the same preset, data, seeds and processor time, and evaluate it.

    Writes fields.md, fields.png and fields.json, after each field anew. The same command continues a comparison that was stopped.

    Args:
        problems: the trainings.
        fields: the names of the fields. A wrong name lists them.
        seeds: the number of trainings of each field on each preset.
        minutes: the processor minutes of each training, without those of its encoder.
        num_samples: the number of samples of an evaluation; for digits it is fixed.
        extractor: what compares images, as in `drifting evaluate`; by default the classifier in runs/NAME-classifier.
        out: the folder of the comparison.
    """
    from drifting.runs.compare_fields import FieldComparison, table
    from drifting.runs.compare_fields import compare_fields as compare

    request = FieldComparison(
        **vars(problems), fields=fields, seeds=seeds, minutes=minutes, num_samples=num_samples, extractor=extractor
    )
    heads, *lines = table(compare(request, out), spread=False)
    print_table(heads, lines, title=str(out))
    print(out / "fields.md", out / "fields.png", sep="\n")


def calibrate(
    run: Positional[str],
    /,
    *,
    data: str | None = None,
    dataset: str | None = None,
    encoder_weights: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> None:
    """Propose temperatures from the distances between real samples, and print the flags to use. Nothing is trained.

    Real samples take the place of generated ones, in groups as large as those of a step. A temperature is judged by the effective
    number of positives that attract a sample: one temperature for few, one for a quarter, and one for most of them.

    Args:
        run: the name of a preset, or the folder of a run with its encoder.
        data: the data of the preset, as in `drifting train`.
        dataset: the toy of the preset, as in `drifting train`.
        encoder_weights: a trained encoder, as in `drifting train`.
        batch_size: number of generated samples in a step over all its labels; that of the preset by default.
        seed: random seed of the samples.
    """
    from drifting.presets import PRESETS, adjust, preset
    from drifting.runs import calibrate as calibration
    from drifting.runs.folder import read_saved

    folder = Path(run) if run not in PRESETS and Path(run).is_dir() else None
    given = {"data": data, "dataset": dataset, "encoder_weights": encoder_weights}
    named = {name: value for name, value in given.items() if value is not None}
    config = preset(run, **named) if folder is None else read_saved(folder)
    if folder is not None and named:
        name, value = next(iter(named.items()))
        raise InputError(f"{name} is '{value}', but the run in '{folder}' has its own: leave it out")
    config = config if batch_size is None else adjust(config, batch_size=batch_size)
    found = calibration.calibrate(config, folder, seed=seed)
    sizes = f"{found.generated} samples, {found.positives} positives of a label"
    print_table(("aim", "temperature", "effective positives"), calibration.lines(found), title=f"{run}: {sizes}")
    print(calibration.flags(found))


def report(runs: Positional[tuple[Path, ...]], /, *, out: Path | None = None, overwrite: bool = False) -> None:
    """Write the report of a run, or of several side by side: an HTML file that needs no network.

    Every training ends with the report of its run. Write it again after an evaluation.

    Args:
        runs: the run folders. A run need not be finished.
        out: the file. By default it is report.html in the folder of the only run, which is replaced.
        overwrite: replace an existing file.
    """
    from drifting.runs.report import write_report

    print(write_report(runs, out, overwrite=overwrite or out is None))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str) -> None:
    """Print a table of plain text without markup; its first column is not wrapped."""
    headers = [Column(Text(column), no_wrap=index == 0) for index, column in enumerate(columns)]
    table = Table(*headers, title=Text(title, style="table.title"))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
