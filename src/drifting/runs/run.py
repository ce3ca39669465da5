"""A run and its folder: load it, sample from it, evaluate it.

The folder holds config.json, metrics.jsonl, generator.safetensors (averaged weights), checkpoints/, snapshots.safetensors and the
pictures; `load_run(folder)` needs the first and third alone.
"""

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drifting._files import hold
from drifting._json import save_json
from drifting.checkpoint import load_network
from drifting.errors import InputError
from drifting.evaluation import Metrics
from drifting.runs import publish
from drifting.runs.evaluate import Evaluation
from drifting.runs.folder import CONFIG, METRICS, REPORT, WEIGHTS, read_config
from drifting.runs.samples import TrainedGenerator, can_be_drawn, picture_of

# Points, and rows and columns of images, of the picture in a notebook.
_POINTS, _ROWS, _COLUMNS = 2000, 4, 10


@dataclass(frozen=True)
class Run(TrainedGenerator):
    """A trained run.

    Attributes:
        pictures: its pictures.
    """

    pictures: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        """Return the run in a line: its folder, its data and its generator."""
        weights = sum(value.numel() for value in self.generator.parameters())
        kind, steps = type(self.generator).__name__, self.config.schedule.steps
        return f"Run('{self.folder}': {self.config.data.title}, {kind} of {weights:,} weights, {steps:,} steps)"

    def _repr_html_(self) -> str:
        """Return the same with a picture of samples, which notebooks show; without it if no picture shows them."""
        text = f"<code>{html.escape(repr(self))}</code>"
        try:
            picture = self._repr_png_()
        except InputError:  # what decodes the samples is missing
            picture = None
        shown = (
            "" if picture is None else f'<br><img alt="samples" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        )
        return text + shown

    def _repr_png_(self) -> bytes | None:
        """Return a picture of samples of seed 0 as the content of a PNG file; None if no picture shows them."""
        points, classes = self.generator.sample_shape == (2,), self.generator.num_classes
        samples = self.sample(_POINTS if points else _ROWS * min(_COLUMNS, classes or _COLUMNS))
        if not can_be_drawn(samples.shape[1:]):
            return None
        file = io.BytesIO()
        picture_of(self, samples, None).save(file, "png")
        return file.getvalue()

    def summary(self) -> list[str]:
        """Return the paths of its pictures and of its report."""
        report = self.folder / REPORT
        return [*map(str, self.pictures), *([str(report)] if report.exists() else [])]

    def evaluate(
        self,
        *,
        extractor: str | None = None,
        real: str | None = None,
        count: int | None = None,
        seed: int = 0,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
    ) -> Metrics:
        """Measure the run against real data and keep the figures in metrics.json; arguments as of `evaluate.Evaluation`."""
        evaluation = Evaluation(self, extractor, real, count, seed, guidance_scale, batch_size, device)
        with hold(self.folder, "run"):
            metrics = evaluation.measure()
            save_json(self.folder / METRICS, metrics)
        return metrics

    def save_pretrained(self, folder: str | Path, *, half: bool = False, overwrite: bool = False) -> list[Path]:
        """Write the run into a folder to share, with a model card, and return its files; see `publish.save_pretrained`."""
        return publish.save_pretrained(self, folder, half=half, overwrite=overwrite)

    def push_to_hub(self, repository: str, *, private: bool | None = None, half: bool = False) -> str:
        """Upload the run to owner/name on the Hugging Face Hub and return its address; see `publish.push_to_hub`."""
        return publish.push_to_hub(self, repository, private=private, half=half)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network trained on its own: a classifier or an encoder.

    Attributes:
        weights: their file.
        figures: name -> share of images that are classified correctly, or error of the hidden patches; empty if neither is known.
    """

    weights: Path
    figures: Mapping[str, float]

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.weights.parent

    def summary(self) -> list[str]:
        """Return the figures and the file of the weights, one line each."""
        lines = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.figures.items()]
        return [*(lines or ["no accuracy, because the images do not have two classes or more"]), str(self.weights)]


def load_run(folder: str | Path) -> Run:
    """Return the trained run of a folder, ready to sample on the CPU, or raise InputError; see also `share.load`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run is '{folder}', which is not a folder: name the --save-dir of a training")
    config = read_config(folder / CONFIG)
    generator = load_network(config.build_generator, folder / WEIGHTS)
    return Run(folder, config, generator.eval())
