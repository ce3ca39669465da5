"""Compare temperatures on MNIST: short trainings of both presets, evaluated in the features of a classifier.

Command: python benchmarks/temperatures.py --extractor runs/mnist-classifier --save-dir runs/temperatures [--seeds 3]

Each run takes a fixed number of steps, about a minute, so other work on the machine does not change the figures. The figures of a
run are written to a JSON file in --save-dir, and finished runs are kept. Two processes with one thread each, one for each of
--presets, take less time than one process with two threads. At the end the table is printed and written as Markdown, and drawn as
temperatures.png.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

from drifting._json import save_json
from drifting.config import RunConfig
from drifting.data import ImagesData
from drifting.data.pixels import to_bytes
from drifting.encoders.base import FeatureEncoder
from drifting.generators.base import Generator
from drifting.metrics.distances import precision_recall
from drifting.metrics.frechet import frechet_distance, gaussian_of
from drifting.plotting.figures import GENERATED, REAL, panels, save_figure
from drifting.presets.points_and_digits import mnist_encoder, mnist_pixel
from drifting.runs.evaluate import load_extractor
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.train import build_encoder, build_positives, resolve
from drifting.sampling import sample
from drifting.training.loop import train
from drifting.training.state import TrainingState

SETTINGS = ((0.02,), (0.04,), (0.05,), (0.2,), (0.4,), (0.02, 0.05, 0.2), (0.04, 0.4))
# (preset, temperatures) -> the metrics of every seed
Results = dict[tuple[str, str], list[dict[str, float]]]
PRESETS = {"mnist-pixel": mnist_pixel, "mnist-encoder": mnist_encoder}
STEPS = {"mnist-pixel": 500, "mnist-encoder": 350}
FIGURES = ("frechet_distance", "floors", "precision", "recall", "coverage", "accuracy")


class Metrics:
    """The metrics of a generator in the features of an extractor; those of real images are computed once."""

    def __init__(self, config: RunConfig, extractor: str, count: int) -> None:
        assert isinstance(config.data, ImagesData)
        train_set, test_set = (config.data.load(split) for split in ("train", "test"))
        self.extractor = load_extractor(extractor, config)
        assert train_set.labels is not None
        self.labels = train_set.labels[:count]
        self.real = self.extractor.embed(test_set.images)
        self.gaussian = gaussian_of(self.real)
        self.floor = frechet_distance(gaussian_of(self.extractor.embed(train_set.images[:count])), self.gaussian)

    def __call__(self, generator: Generator) -> dict[str, float]:
        """Return the metrics of a generator."""
        assert self.extractor.classify is not None
        images = to_bytes(sample(generator, len(self.labels), labels=self.labels.tolist()))
        features = self.extractor.embed(images)
        distance = frechet_distance(gaussian_of(features), self.gaussian)
        neighbors = precision_recall(features, self.real)
        return {
            "frechet_distance": distance,
            "floors": distance / self.floor,
            "precision": neighbors.precision,
            "recall": neighbors.recall,
            "coverage": neighbors.coverage,
            "accuracy": float((self.extractor.classify(images) == self.labels).double().mean()),
        }


def measure(config: RunConfig, encoder: FeatureEncoder, metrics: Metrics, count: int) -> dict[str, float]:
    """Train for `count` steps and return the metrics of the averaged generator."""
    positives = build_positives(config, encoder)
    state = TrainingState(config.build_generator(), config.schedule, config.seed)
    steps = train(state, positives, encoder, config.loss.build(), config.schedule)
    start = time.perf_counter()
    for _ in itertools.islice(steps, count):
        pass
    seconds = time.perf_counter() - start
    return {"steps": state.step, "seconds": seconds, **metrics(state.averaged)}


def name_of(setting: tuple[float, ...]) -> str:
    """Return the label of a set of temperatures in tables and pictures."""
    return " + ".join(f"{value:g}" for value in setting)


def draw(results: Results, path: Path) -> None:
    """Draw distance, precision and recall over the settings, a line for each preset."""
    figure, axes = panels(1, 3, size=4.4, title="MNIST: the effect of temperatures, median of the seeds")
    names = [name_of(setting) for setting in SETTINGS]
    for panel, name in zip(axes, ("frechet_distance", "precision", "recall"), strict=True):
        for preset, color in (("mnist-pixel", REAL), ("mnist-encoder", GENERATED)):
            known = [label for label in names if results.get((preset, label))]
            if not known:
                continue
            values = [statistics.median(run[name] for run in results[preset, label]) for label in known]
            panel.plot(known, values, marker="o", color=color, label=preset)
        panel.set(title=name.replace("_", " "), xlabel="temperatures", yscale="log" if name == "frechet_distance" else "linear")
        panel.tick_params(axis="x", rotation=60)
        panel.legend()
    save_figure(figure, path)


def study(options: argparse.Namespace) -> Results:
    """Train the missing runs and return the metrics of all runs."""
    results: Results = defaultdict(list)
    bases = [resolve(PRESETS[name](options.data)) for name in options.presets]
    # All seeds share one encoder, so only the training of the generator varies.
    encoders = {}
    for base in bases:
        folder = options.save_dir / base.preset
        folder.mkdir(parents=True, exist_ok=True)
        encoders[base.preset] = build_encoder(base, prepare_encoder(base, folder, base.build_network()))
    metrics = Metrics(bases[0], options.extractor, options.num_samples)
    for seed, base, setting in itertools.product(range(options.seeds), bases, SETTINGS):
        loss = dataclasses.replace(base.loss, temperatures=setting)
        config = dataclasses.replace(base, loss=loss, schedule=dataclasses.replace(base.schedule, steps=10**6), seed=seed)
        path = options.save_dir / f"{config.preset}_{name_of(setting).replace(' ', '')}_{seed}.json"
        if not path.exists():
            save_json(path, measure(config, encoders[config.preset], metrics, options.steps or STEPS[config.preset]))
            print(path.stem, path.read_text().replace("\n", ""), flush=True)
        results[config.preset, name_of(setting)].append(json.loads(path.read_text()))
    return results


def main() -> None:
    """Train the missing runs, then print and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractor", required=True, help="folder of the trained mnist-classifier")
    parser.add_argument("--save-dir", type=Path, required=True)
    parser.add_argument("--data", help="folder or Hub id of MNIST; $DRIFTING_DATA/mnist by default")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--steps", type=int, help=f"number of steps of each run; {STEPS} by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-samples", type=int, default=5000)
    options = parser.parse_args()
    results = study(options)
    lines = ["| preset | temperatures | steps | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 3) + "|"]
    for (preset, label), runs in results.items():
        values = [statistics.median(run[name] for run in runs) for name in ("steps", *FIGURES)]
        lines.append(f"| {preset} | {label} | {values[0]:.0f} | " + " | ".join(f"{value:.3g}" for value in values[1:]) + " |")
    print("\n".join(lines))
    (options.save_dir / "table.md").write_text("\n".join(lines) + "\n")
    draw(results, options.save_dir / "temperatures.png")


if __name__ == "__main__":
    main()
