"""The command that writes a generator for other programs."""

from pathlib import Path

from tyro.conf import Positional


def export(run: Positional[str], /, *, to: str = "onnx", out: Path | None = None, overwrite: bool = False) -> None:
    """Write the generator of a run for other programs, after comparing it with PyTorch: an ONNX model, or a torch.export program.

    Args:
        run: run folder, artifact of the authors (converted or not), or hub:NAME for a published artifact.
        to: the format: onnx or torch.
        out: the file: generator.onnx or generator.pt2 in the run folder by default.
        overwrite: replace an existing file.
    """
    from drifting.exporting import export as write
    from drifting.runs import load

    print(*write(load(run), to, out, overwrite=overwrite).lines(), sep="\n")
