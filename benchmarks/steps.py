"""Time the parts of a training step of each preset: data, generator, encoder, field and optimizer.

Command: python benchmarks/steps.py [--only cifar10] [--steps 10] [--threads 1] [--compile]

The step is that of the training loop, done part by part: generator and encoder forwards and backwards, the field with the gradient
of its loss, and the optimizer with clipping and averages. "Data" are the draws of a step: noise, and features of real samples from
the cache. Images are random and the encoder has its initial weights, which costs as much as the real ones; the toy has its own
points.
--compile compares whole steps of the loop with and without `schedule.compile`, after the first steps, which compile.

With one thread, times are those of the processor, which a busy machine disturbs least; with more, they are elapsed times.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from drifting import presets
from drifting.config import RunConfig
from drifting.data import ToyData
from drifting.hub.artifact import read_weights
from drifting.runs.train import build_encoder
from drifting.training.loop import at_places, draw_batch, train
from drifting.training.positives import FeatureCache, Positives, encode_sets
from drifting.training.state import TrainingState
from drifting.training.step import Made, compare

SHAPES = {"toy": (2,), "mnist-pixel": (1, 28, 28), "mnist-encoder": (1, 28, 28), "cifar10-multiscale": (3, 32, 32)}
PARTS = ("data", "generator", "encoder", "field", "optimizer")
CACHED = 2000
WARM_UP = 2


class RandomSource:
    """Draws random images, or their indices where features are cached."""

    num_classes = 10

    def __init__(self, shape: tuple[int, ...], cached: bool) -> None:
        self.sample_shape, self._cached = shape, cached

    def draw(self, labels: Tensor | None, count: int, rng: torch.Generator, own: slice = slice(None)) -> Tensor:
        """Return samples or indices for each label."""
        return self.draw_unconditional(1 if labels is None else len(labels), count, rng, own)

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = slice(None)) -> Tensor:
        """Return sets of samples or of indices."""
        if self._cached:
            return torch.randint(CACHED, (sets, count), generator=rng)[own]
        return torch.rand((sets, count, *self.sample_shape), generator=rng)[own] * 2 - 1


def parts_of(name: str, *, compiled: bool = False) -> tuple[RunConfig, TrainingState, Positives, Any]:
    """Return the configuration of a preset and what its training needs."""
    config: Any = presets.preset(name)
    config = replace(config, schedule=replace(config.schedule, compile=compiled, steps=10**6))
    toy, shape = isinstance(config.data, ToyData), SHAPES[name]
    if not toy:
        config = replace(config, data=replace(config.data, image_shape=shape, num_classes=10, class_names=tuple("0123456789")))
    network = (
        None if toy or config.encoder.objective is None else config.encoder.build_network(shape, num_classes=10, read=read_weights)
    )
    encoder, cache = build_encoder(config, network), None
    if network is not None and config.cache_features:
        cache = FeatureCache(encoder, torch.rand(CACHED, *shape) * 2 - 1)
    source = config.data.source(config.seed) if toy else RandomSource(shape, cache is not None)
    state = TrainingState(config.build_generator(), config.schedule, config.seed)
    return config, state, Positives(source, encoder, cache), encoder


def step_in_parts(config: RunConfig, state: TrainingState, positives: Positives, encoder: Any, loss: Any) -> Iterator[None]:
    """Do one step of the loop, yielding after each piece of it; `ORDER` names them."""
    schedule = config.schedule
    state.optimizer.zero_grad(set_to_none=True)
    batch = draw_batch(state, positives, schedule)
    state.step += 1
    batch, encoder = at_places(batch, encoder, state, schedule)
    yield
    (inputs,) = batch.inputs(batch.noise, batch.style_indices)
    samples = state.generator(*inputs).unflatten(0, batch.noise.shape[:2])
    yield
    made = samples.detach().requires_grad_()
    features = encode_sets(encoder, made)
    yield
    fixed = {feature: value.detach().requires_grad_() for feature, value in features.items()}
    compare(loss, Made(fixed), batch).loss.backward()
    yield
    torch.autograd.backward(list(features.values()), [value.grad for value in fixed.values()])
    yield
    samples.backward(made.grad)
    yield
    if schedule.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.generator.parameters(), schedule.max_grad_norm)
    state.optimizer.step()
    for average in state.averages.values():
        average.update_parameters(state.generator)
    yield


ORDER = ("data", "generator", "encoder", "field", "encoder", "generator", "optimizer")


def time_parts(name: str, steps: int, clock: Callable[[], float]) -> tuple[dict[str, float], int]:
    """Return the median seconds of each part of a step, and the number of generated samples."""
    config, state, positives, encoder = parts_of(name)
    state.generator.train()
    loss, taken = config.loss.build(), []
    for _ in range(WARM_UP + steps):
        seconds, last = dict.fromkeys(PARTS, 0.0), clock()
        for part, _ in zip(ORDER, step_in_parts(config, state, positives, encoder, loss), strict=True):
            now = clock()
            seconds[part] += now - last
            last = now
        taken.append(seconds)
    schedule = config.schedule
    return {part: statistics.median(one[part] for one in taken[WARM_UP:]) for part in PARTS}, (
        schedule.labels_per_step * schedule.generated
    )


def time_steps(name: str, steps: int, clock: Callable[[], float], *, compiled: bool) -> tuple[float, float]:
    """Return the median seconds of a whole step of the loop, and the seconds of the first step, which may compile."""
    started = clock()
    config, state, positives, encoder = parts_of(name, compiled=compiled)
    taken, first = [], 0.0
    for step in train(state, positives, encoder, config.loss.build(), config.schedule):
        now = clock()
        first = first or now - started
        taken.append(now - started)
        started = now
        if step.number == WARM_UP + steps:
            break
    return statistics.median(taken[WARM_UP:]), first


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names of the presets to run")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compare whole steps with and without compilation instead")
    return parser.parse_args()


def main() -> None:
    """Print one row per preset."""
    options = parse()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    title = f"training steps, {options.threads} threads, torch {torch.__version__}"
    columns = ("step, ms", "compiled / eager", "first step, s") if options.compile else ("step, ms", "samples/s", *PARTS)
    table = Table("preset", *columns, title=title)
    for name in SHAPES:
        if options.only not in name:
            continue
        if options.compile:
            eager, _ = time_steps(name, options.steps, clock, compiled=False)
            compiled, first = time_steps(name, options.steps, clock, compiled=True)
            table.add_row(name, f"{1e3 * eager:.0f}", f"{compiled / eager:.2f}", f"{first:.0f}")
            continue
        seconds, samples = time_parts(name, options.steps, clock)
        total = sum(seconds.values())
        shares = [f"{value / total:.0%}" for value in seconds.values()]
        table.add_row(name, f"{1e3 * total:.0f}", f"{samples / total:,.0f}", *shares)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
