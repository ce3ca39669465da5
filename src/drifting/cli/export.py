"""The command that writes a generator for other programs."""

from pathlib import Path

from tyro.conf import Positional

from drifting.cli.studies import print_table
from drifting.errors import InputError


def export(
    run: Positional[str],
    /,
    *,
    to: str = "onnx",
    out: Path | None = None,
    weights: str = "float32",
    evaluate: bool = False,
    cdn: bool = False,
    runtime: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the generator of a run for other programs, after comparing it with PyTorch: a model, a program or a web page.

    Args:
        run: run folder, artifact of the authors (converted or not), or hub:NAME for a published artifact.
        to: onnx for a model, torch for a program of torch.export, or web for a folder with a page that runs it in a browser.
        out: the file or folder: generator.onnx, generator.pt2 or web in the run folder by default.
        weights: how the weights are stored, float32, float16 or int8; smaller files make other samples. Not for torch.
        evaluate: measure how much the stored weights change the distance to the data. Images need an extractor, as in evaluate.
        cdn: let the page load ONNX Runtime Web from a CDN. By default its files are fetched by npm and put into the folder.
        runtime: the npm package of ONNX Runtime Web, a .tgz or a folder, in place of fetching it.
        overwrite: replace an existing file or page.
    """
    from drifting.evaluation.tables import as_text, direction
    from drifting.exporting import compare_weights
    from drifting.exporting import export as write
    from drifting.exporting.write import check_request
    from drifting.runs import load

    if evaluate and weights == "float32":
        raise InputError("evaluate is True, but weights is 'float32', which changes nothing: pass float16 or int8")
    loaded, options = load(run), {"weights": weights, "cdn": cdn, "runtime": runtime, "overwrite": overwrite}
    if evaluate:
        check_request(loaded, to, out, **options)
        rows = []
        for name, values in compare_weights(loaded, weights).items():
            shown = ("" if value is None else as_text(value) for value in values)
            rows.append((name, *shown, direction(name, has_floor=values[-1] is not None)))
        print_table(("figure", "float32", weights, "real against real", "better"), rows, title=str(run))
    print(*write(loaded, to, out, **options).lines(), sep="\n")
