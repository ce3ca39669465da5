"""Compare the quality of images over the processor time of their training: drifting, and flow matching with the same network.

Command: python benchmarks/quality.py --save-dir runs/quality [--minutes 2 5 10] [--smoke] [--table]

Drifting is the preset in PRESETS with one evaluation of the generator; flow matching, see `flow_matching.py`, has 1, 2, 10 and 50.
Both are trained in turn, for 20 seconds at a time on one thread, so that the speed of the machine is the same for both. Times are
those of the processor, of the steps alone. The time to train the encoder and to compute the features of all real images, which the
steps look up, is measured beside them, and the table has drifting with and without it.

Every figure is written to a JSON file in --save-dir, and finished ones are kept; trainings continue from the last measured point.
--table only prints and draws what is there. --smoke tries everything in a minute.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from flow_matching import SCHEDULE, Flow, train_flow
from torch import Tensor

import drifting
from drifting import presets
from drifting._json import save_json
from drifting.checkpoint import load_tensors, save_tensors
from drifting.config import RunConfig
from drifting.data import ImagesData
from drifting.data.pixels import to_bytes
from drifting.evaluation.statistics import unknown_to
from drifting.generators.base import Generator
from drifting.metrics.distances import precision_recall
from drifting.metrics.frechet import frechet_distance, gaussian_of
from drifting.plotting.figures import panels, save_figure
from drifting.presets.settings import adjust
from drifting.pretraining.loop import HeldRows, batches_of
from drifting.pretraining.objectives import train_network
from drifting.runs.evaluate import load_extractor
from drifting.runs.folder import CLASSIFIER_WEIGHTS, ENCODER_WEIGHTS
from drifting.runs.train import build_encoder, build_positives, resolve
from drifting.sampling import batch_of, sample
from drifting.training.loop import train
from drifting.training.positives import Positives
from drifting.training.state import TrainingState

PRESETS = {"mnist": "mnist-pixel", "cifar10": "cifar10-multiscale"}
EVALUATIONS = {"drifting": (1,), "flow": (1, 2, 10, 50)}
FIGURES = ("frechet_distance", "precision", "recall", "accuracy")
ENCODER_TIME, FLOOR = "encoder_time.json", "floor.json"
# Seconds for which one training runs before the other has its turn.
TURN = 20.0


class Training:
    """A training whose processor time is counted.

    Args:
        state: its state.
        steps: state -> iterator that takes its steps.
        path: file of its state.
    """

    def __init__(self, state: TrainingState, steps: Callable[[TrainingState], Iterator[Any]], path: Path) -> None:
        self.state, self._path, self.seconds = state, path, 0.0
        if path.exists():
            tensors = load_tensors(path)
            self.seconds, step = float(tensors.pop("seconds")), int(tensors.pop("step"))
            state.restore(tensors, step, str(path))
        self._steps = steps(state)

    def advance(self, until: float) -> None:
        """Train until this processor time is used."""
        start = time.process_time() - self.seconds
        while self.seconds < until:
            next(self._steps)
            self.seconds = time.process_time() - start

    def save(self) -> None:
        """Write the state."""
        counted = {"seconds": torch.tensor(self.seconds, dtype=torch.float64), "step": torch.tensor(self.state.step)}
        save_tensors(self._path, {**self.state.tensors(), **counted})


class Metrics:
    """The metrics of a generator in the features of a classifier; those of real images are computed once."""

    def __init__(self, config: RunConfig, classifier: Path, count: int) -> None:
        data: Any = config.data
        self.extractor, self._count = load_extractor(str(classifier), config), count
        real = self.extractor.embed(data.load("test").images)
        self._real, self._gaussian = real[:count], gaussian_of(real)
        train = data.load("train")
        # A classifier sees images that it was trained on in another way than new ones.
        others = unknown_to(self.extractor.trained_on, train.images)[:count]
        self._others, self._labels = train.images[others], train.labels[others]

    def floor(self) -> dict[str, float]:
        """Return the metrics of real images that the classifier was not trained on."""
        return self._of(self._others, self._labels)

    def __call__(self, generator: Generator) -> dict[str, float]:
        """Return the metrics of a generator whose samples cycle through the labels."""
        images = to_bytes(sample(generator, self._count, batch_size=batch_of(generator.sample_shape)).clamp(-1, 1))
        return self._of(images, torch.arange(self._count) % cast(int, generator.num_classes))

    def _of(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        assert self.extractor.classify is not None
        features = self.extractor.embed(images)
        neighbors = precision_recall(features, self._real)
        return {
            "frechet_distance": frechet_distance(gaussian_of(features), self._gaussian),
            "precision": neighbors.precision,
            "recall": neighbors.recall,
            "accuracy": float((self.extractor.classify(images) == labels).double().mean()),
        }


def prepared(config: RunConfig, folder: Path) -> tuple[Any, Positives, float]:
    """Return the encoder of a preset, trained once, the source of real samples, and the processor time that both took."""
    network: Any = config.build_network()
    path, start = folder / ENCODER_WEIGHTS, time.process_time()
    settings: Any = config.encoder
    if network is not None and not path.exists():
        images = cast(ImagesData, config.data).load("train")
        rows = HeldRows(images.images, images.labels)
        for _ in train_network(network, settings, batches_of(rows, settings.batch_size, config.seed), seed=config.seed):
            pass
        save_json(folder / ENCODER_TIME, {"training": time.process_time() - start})
        save_tensors(path, network.state_dict())
    if network is None:
        encoder = build_encoder(config)
        return encoder, build_positives(config, encoder), 0.0
    network.load_state_dict(load_tensors(path))
    encoder, start = build_encoder(config, network.eval()), time.process_time()
    positives = build_positives(config, encoder)
    known = {"features": time.process_time() - start, **json.loads((folder / ENCODER_TIME).read_text())}
    save_json(folder / ENCODER_TIME, known)
    return encoder, positives, sum(known.values())


def compile_loops(config: RunConfig, encoder: Any, positives: Positives) -> None:
    """Take a step of a training that is thrown away, so that the loops of the field are compiled before any time is counted."""
    short = dataclasses.replace(config.schedule, steps=1)
    for _ in train(TrainingState(config.build_generator(), short, config.seed), positives, encoder, config.loss.build(), short):
        pass


def study(name: str, options: argparse.Namespace) -> Iterator[None]:
    """Train and measure what is missing for a data set, yielding after each number of minutes."""
    folder, unit = options.save_dir / name, 1.0 if options.smoke else 60.0
    folder.mkdir(parents=True, exist_ok=True)
    classifier = options.save_dir / f"{name}-classifier"
    if not (classifier / CLASSIFIER_WEIGHTS).exists():
        drifting.train(adjust(presets.preset(f"{name}-classifier"), steps=20 if options.smoke else None), classifier)
    config: Any = resolve(presets.preset(PRESETS[name]))
    if options.smoke and config.trains_encoder:
        config = dataclasses.replace(adjust(config, encoder_steps=5), cache_features=False)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=10**6))
    encoder, positives, encoder_seconds = prepared(config, folder)
    compile_loops(config, encoder, positives)
    yield
    metrics, data = Metrics(config, classifier, 200 if options.smoke else options.num_samples), config.data.load("train")
    if not (folder / FLOOR).exists():
        save_json(folder / FLOOR, metrics.floor())
    flow = Flow(config.generator, config.data.image_shape, config.data.num_classes)
    trainings = {
        "drifting": Training(
            TrainingState(config.build_generator(), config.schedule, config.seed),
            lambda state: train(state, positives, encoder, config.loss.build(), config.schedule),
            folder / "drifting.safetensors",
        ),
        "flow": Training(
            TrainingState(flow, SCHEDULE, config.seed), lambda state: train_flow(state, data), folder / "flow.safetensors"
        ),
    }
    for stops in points(encoder_seconds, [unit * minutes for minutes in options.minutes]):
        behind = {each: trainings[each] for each in stops}
        while any(training.seconds < stops[each] for each, training in behind.items()):
            for each, training in behind.items():
                training.advance(min(stops[each], training.seconds + TURN))
        for each, training in behind.items():
            measure(training, each, stops[each], metrics, folder)
        yield


def points(encoder_seconds: float, seconds: list[float]) -> list[dict[str, float]]:
    """Return the times of measurement, in order: all of `seconds`, and those at which drifting with its encoder is as old."""
    shared = [dict.fromkeys(EVALUATIONS, each) for each in seconds]
    if not encoder_seconds:
        return shared
    with_encoder = [{"drifting": each - encoder_seconds} for each in seconds if each > encoder_seconds]
    longest = [{"flow": seconds[-1] + encoder_seconds}]
    return sorted([*shared, *with_encoder, *longest], key=lambda stops: max(stops.values()))


def measure(training: Training, name: str, seconds: float, metrics: Metrics, folder: Path) -> None:
    """Write the metrics of a training that has just reached a time, and its state."""
    for evaluations in EVALUATIONS[name]:
        path = folder / f"{name}_{seconds:.0f}_{evaluations}.json"
        if path.exists():
            continue
        generator, start = training.state.averaged, time.process_time()
        if isinstance(generator, Flow):
            generator.evaluations = evaluations
        figures = {"seconds": seconds, "evaluations": evaluations, "steps": training.state.step, **metrics(generator)}
        save_json(path, {**figures, "measuring": time.process_time() - start})
        print(folder.name, path.stem, path.read_text().replace("\n", ""), flush=True)
    training.save()


def results_of(folder: Path) -> tuple[dict[str, list[dict[str, float]]], float]:
    """Return the measured rows of a data set, by method and evaluations, and the time of its encoder."""
    rows: dict[str, list[dict[str, float]]] = {}
    for method, counts in EVALUATIONS.items():
        for count in counts:
            found = [json.loads(path.read_text()) for path in folder.glob(f"{method}_*_{count}.json")]
            rows[f"{method}, {count}"] = sorted(found, key=lambda row: row["seconds"])
    encoder = folder / ENCODER_TIME
    return rows, sum(json.loads(encoder.read_text()).values()) if encoder.exists() else 0.0


def report(options: argparse.Namespace) -> None:
    """Print the table of what was measured, and draw it."""
    names = [name for name in options.datasets if (options.save_dir / name).is_dir()]
    figure, axes = panels(1, len(names), size=4.6, title="Quality over processor time of the training")
    lines = ["| data | training, evaluations | minutes | with encoder | steps | " + " | ".join(FIGURES) + " |"]
    lines.append("|---" * (5 + len(FIGURES)) + "|")
    for name, panel in zip(names, axes, strict=True):
        rows, encoder_seconds = results_of(options.save_dir / name)
        if (options.save_dir / name / FLOOR).exists():
            floor = json.loads((options.save_dir / name / FLOOR).read_text())
            lines.append(f"| {name} | real images | | | | " + " | ".join(f"{floor[figure]:.3g}" for figure in FIGURES) + " |")
            panel.axhline(floor["frechet_distance"], color="gray", linewidth=0.8, label="real images")
        for label, found in rows.items():
            own = encoder_seconds if label.startswith("drifting") else 0.0
            for row in found:
                values = " | ".join(f"{row[figure]:.3g}" for figure in FIGURES)
                minutes = f"{row['seconds'] / 60:.1f} | {(row['seconds'] + own) / 60:.1f}"
                lines.append(f"| {name} | {label} | {minutes} | {row['steps']:.0f} | {values} |")
            over = [row["seconds"] / 60 for row in found]
            values = [row["frechet_distance"] for row in found]
            (line,) = panel.plot(over, values, marker="o", label=label, linewidth=2.5 if own or "drifting" in label else 1.2)
            if own:
                later = [minutes + own / 60 for minutes in over]
                panel.plot(later, values, marker="o", linestyle="--", color=line.get_color(), label=f"{label}, with its encoder")
        panel.set(title=f"{name}: {PRESETS[name]}", xlabel="processor minutes", ylabel="Frechet distance", yscale="log")
        panel.legend(fontsize="small")
    print("\n".join(lines))
    (options.save_dir / "table.md").write_text("\n".join(lines) + "\n")
    save_figure(figure, options.save_dir / "quality.png")


def main() -> None:
    """Train and measure what is missing, both data sets in turn, then print and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save-dir", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--minutes", nargs="+", type=float, default=[2, 5, 10], help="processor time of each training")
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--table", action="store_true", help="only print and draw what was measured")
    parser.add_argument("--smoke", action="store_true", help="seconds in place of minutes, of tiny trainings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    studies = [] if options.table else [study(name, options) for name in options.datasets]
    while studies:
        studies = [each for each in studies if next(each, each) is None]
    report(options)


if __name__ == "__main__":
    main()
