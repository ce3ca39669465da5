"""The model card of a shared run: README.md with the metadata of the Hugging Face Hub, made from the run.

It says what the generator makes, how to use it, its figures with those of real data, and how it was trained.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from drifting import __version__
from drifting._extras import install_hint
from drifting.data.readers.find import HUB_IDS
from drifting.evaluation.tables import Value, lines, markdown
from drifting.runs.samples import TrainedGenerator

# Labels in the example, and figures that the metadata repeat.
_SHOWN_LABELS, _NUMBERS = 3, (int, float)


def model_card(run: TrainedGenerator, name: str, metrics: Mapping[str, Value], *, picture: str | None, dtype: str) -> str:
    """Return the text of the model card of a run.

    Args:
        run: the run.
        name: what `drifting.load` is called with in the example: owner/name, or a folder.
        metrics: figures of its evaluation; empty if it was not evaluated.
        picture: name of the picture of samples beside the card; None if there is none.
        dtype: number format of the weights in their file, such as float32.
    """
    data, points = run.config.data, len(run.generator.sample_shape) == 1
    kind = "points" if points else "images"
    shown = [] if picture is None else [f"![Samples, one forward pass each]({picture})", ""]
    return "\n".join(
        [
            f"---\n{_metadata(run, name, metrics)}\n---",
            "",
            f"# {data.title}: {kind} in one forward pass",
            "",
            f"A generator of {kind} that was trained by a drift field: every sample takes one pass. Made with `drifting` "
            f"{__version__}, an unofficial implementation of [Generative Modeling via Drifting](https://arxiv.org/abs/2602.04770).",
            "",
            *shown,
            "## Use",
            "",
            "```sh",
            install_hint("train"),
            "```",
            "",
            "```python",
            *example(run, name),
            "```",
            "",
            "## Figures",
            "",
            *_figures(metrics),
            "",
            "## Training",
            "",
            *_training(run, dtype),
            "",
            "## License",
            "",
            "- The code of `drifting`: MIT.",
            "- The data, and with them these weights: **to be filled in by whoever shares them.**",
            "",
        ]
    )


def example(run: TrainedGenerator, name: str) -> list[str]:
    """Return four lines of Python that load a run and sample from it."""
    labels = run.generator.num_classes
    chosen = "" if labels is None else f", labels={list(range(min(labels, _SHOWN_LABELS)))}"
    form = "points [16, 2]"
    if len(run.generator.sample_shape) == 3:
        channels, height, width = run.config.data.exported_shape()
        form = f"uint8 [16, {height}, {width}, {channels}]"
    return [
        "import drifting",
        f"run = drifting.load({name!r})",
        f"samples = run.sample(16, seed=0{chosen})  # {form}",
        "print(samples.shape, samples.dtype)",
    ]


def _metadata(run: TrainedGenerator, name: str, metrics: Mapping[str, Value]) -> str:
    """Return the metadata in YAML."""
    hub: Any = importlib.import_module("huggingface_hub")
    data: Any = run.config.data
    images = len(run.generator.sample_shape) == 3
    dataset = HUB_IDS.get(data.title)
    task = "unconditional-image-generation" if images else "other"
    reference = metrics.get("reference", f"samples of {data.title}")
    results = [
        hub.EvalResult(
            task_type=task,
            dataset_type=dataset or "other",
            dataset_name=str(reference),
            metric_type=line.name,
            metric_name=line.name.replace("_", " ") + (f" (of real data: {line.floor})" if line.floor else ""),
            metric_value=metrics[line.name],
        )
        for line in lines(metrics)
        if line.better and isinstance(metrics[line.name], _NUMBERS)
    ]
    facts = hub.ModelCardData(
        license="unknown",
        library_name="drifting",
        tags=["drifting", "one-step", "generative"],
        pipeline_tag=task if images else None,
        datasets=dataset,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return facts.to_yaml().strip()


def _figures(metrics: Mapping[str, Value]) -> list[str]:
    shown = [line for line in lines(metrics) if not line.name.startswith("frechet_curve")]
    if not shown:
        return ["Not evaluated yet: `drifting evaluate` measures the run."]
    rows = [("figure", "samples", "real against real", "better"), *((line.name.replace("_", " "), *line[1:]) for line in shown)]
    return [
        "The same figure of real data, where there is one, says what can be reached. Compare it with the samples, not with zero.",
        "",
        markdown(rows).rstrip("\n"),
    ]


def _training(run: TrainedGenerator, dtype: str) -> list[str]:
    config, schedule = run.config, run.config.schedule
    classes, counts = run.generator.num_classes, config.data.counts
    count = f", {sum(counts):,} of them" if counts else ""
    kinds = "one population" if classes is None else f"{classes} classes"
    weights = sum(value.numel() for value in run.generator.parameters())
    temperatures = ", ".join(f"{value:g}" for value in config.loss.temperatures)
    names = [type(part).__name__.removesuffix("Config") for part in (config.generator, config.encoder, config.loss.field)]
    return [
        f"- Data: {config.data.title}{count}, {kinds}.",
        f"- Generator: {names[0]}, {weights:,} weights (averaged over training), stored in {dtype}.",
        f"- Drift field: {names[2]} at the temperatures {temperatures}, in the features {names[1]}.",
        f"- Preset `{config.preset}`: {schedule.steps:,} steps, each with {schedule.generated} generated and {schedule.positives} "
        f"real samples{' of each of its labels' * (classes is not None)}.",
        "- `config.json` holds every setting; `drifting train --config config.json` trains it again.",
    ]
