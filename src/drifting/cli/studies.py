"""Commands that show runs, or train many to answer a question, and the table in which commands print."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import Positional


def compare_fields(
    *,
    presets: tuple[str, ...],
    fields: tuple[str, ...],
    seeds: int = 3,
    minutes: float = 1.0,
    group_sizes: tuple[int, ...] = (),
    temperature_factors: tuple[float, ...] = (),
    num_samples: int = 5000,
    out: Path = Path("runs/fields"),
) -> None:
    """Compare drift fields on equal terms: train each with the same preset, data, seeds and processor time, and evaluate it.

    Images are compared in the features of the classifier in runs/NAME-classifier. Writes fields.md, fields.png and fields.json,
    after each field anew. The same command continues a comparison that was stopped.

    Args:
        presets: the names of presets, or of toys.
        fields: the names of the fields. A wrong name lists them.
        seeds: the number of trainings of each field on each preset.
        minutes: the processor minutes of each training, without those of its encoder.
        group_sizes: the numbers of generated samples, and of positives, of each label in a step; by default those of the preset.
        temperature_factors: numbers that multiply the temperatures of the presets.
        num_samples: the number of samples of an evaluation; for digits it is fixed.
        out: the folder of the comparison.
    """
    from drifting.runs.compare_fields import FieldComparison, table
    from drifting.runs.compare_fields import compare_fields as compare

    request = FieldComparison(
        presets=presets,
        fields=fields,
        seeds=seeds,
        minutes=minutes,
        group_sizes=group_sizes,
        temperature_factors=temperature_factors,
        num_samples=num_samples,
    )
    heads, *lines = table(compare(request, out), spread=False)
    print_table(heads, lines, title=str(out))
    print(out / "fields.md", out / "fields.png", sep="\n")


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
