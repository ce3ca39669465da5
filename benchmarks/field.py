"""Time the drifting loss with its gradient against the same mathematics in plain torch, torch.compile and a JAX jit.

Command: python benchmarks/field.py [--threads 1] [--repeats 15] [--only d=64] [--floor 1e-6]

Every row is one call at three temperatures. The baselines write down Algorithm 2 and appendix A.6 out of place, one full matrix
after the other: eager, through `torch.compile`, and in JAX under `jit`; the latter needs the extra `bench`. All sides run in turn
in one process, so that their ratios hold where the machine's speed drifts. With one thread the ratios are those of processor time,
which a busy machine disturbs least; with more threads they are those of elapsed time.

"Of torch's rate" is the number of multiplications in our matrix products, divided by the whole time of a call, as a part of what
one large product of torch reaches.

Memory is measured in a fresh process, as the growth of the largest resident set over one call (Linux only).
"""

import argparse
import functools
import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import drifting
from drifting.fields import MeanShift
from drifting.fields.pairwise import DIRECT_DIMENSIONS, Memory

TEMPERATURES = (0.02, 0.05, 0.2)
Call = Callable[[], object]


class Case(NamedTuple):
    """The shape of one problem: groups, generated samples, positives, unconditional negatives, coordinates."""

    groups: int
    generated: int
    positives: int
    unconditional: int
    dimension: int

    def __str__(self) -> str:
        counts = " + ".join(str(count) for count in self[1:4] if count)
        return f"{self.groups} x ({counts}), d={self.dimension}" if self.groups > 1 else f"{counts}, d={self.dimension}"

    def samples(self) -> list[Tensor]:
        """Return generated samples, positives and unconditional negatives, if any, that lie near each other."""
        rng = torch.Generator().manual_seed(0)
        shapes = [(self.groups, count, self.dimension) for count in self[1:4] if count]
        return [torch.randn(shape, generator=rng) + 0.1 * index for index, shape in enumerate(shapes)]


CASES = (
    Case(1, 2048, 2048, 0, 2),
    Case(64, 64, 64, 16, 64),
    Case(64, 64, 64, 16, 256),
    Case(64, 64, 64, 16, 1024),
    Case(1, 640, 640, 0, 512),
    Case(1, 4096, 4096, 0, 512),
)
# Too large for the baselines, which keep several matrices of n x k.
LARGE = Case(1, 16384, 16384, 0, 64)


def plain_loss(generated: Tensor, positives: Tensor, unconditional: Tensor | None = None, *, floor: float) -> tuple[Tensor, Tensor]:
    """Return the loss of each group and the gradient of their mean, plainly."""
    samples = generated.detach().requires_grad_()
    negatives = generated if unconditional is None else torch.cat([generated, unconditional], 1)
    split, count = negatives.shape[1], generated.shape[1]
    with torch.no_grad():
        targets = torch.cat([negatives, positives], 1)
        distances = torch.cdist(generated, targets)
        scale = distances.mean()
        unit = scale / generated.shape[-1] ** 0.5
        distances = distances / scale
        distances[..., :count] += 100 * torch.eye(count)
        goal = generated / unit
        for temperature in TEMPERATURES:
            logits = -distances / temperature
            affinity = (logits.softmax(-1) * logits.softmax(-2)).clamp(min=floor).sqrt()
            negative, positive = affinity[..., :split], affinity[..., split:]
            toward = (positive * negative.sum(-1, keepdim=True)) @ (positives / unit)
            drift = toward - (negative * positive.sum(-1, keepdim=True)) @ (negatives / unit)
            goal = goal + drift / drift.square().mean().sqrt()
    loss = (samples / unit - goal).square().mean((1, 2))
    (gradient,) = torch.autograd.grad(loss.mean(), samples)
    return loss.detach(), gradient


def plain_value(generated: Tensor, positives: Tensor, unconditional: Tensor | None, floor: float) -> tuple[Tensor, Tensor]:
    """The same for `torch.compile`, which takes no call of autograd: the gradient is that of the equation."""
    negatives = generated if unconditional is None else torch.cat([generated, unconditional], 1)
    split, count = negatives.shape[1], generated.shape[1]
    distances = torch.cdist(generated, torch.cat([negatives, positives], 1))
    scale = distances.mean()
    unit = scale / generated.shape[-1] ** 0.5
    distances = distances / scale
    masked = torch.cat([100 * torch.eye(count), torch.zeros(count, distances.shape[-1] - count)], 1)
    total = torch.zeros_like(generated)
    for temperature in TEMPERATURES:
        logits = -(distances + masked) / temperature
        affinity = (logits.softmax(-1) * logits.softmax(-2)).clamp(min=floor).sqrt()
        negative, positive = affinity[..., :split], affinity[..., split:]
        toward = (positive * negative.sum(-1, keepdim=True)) @ (positives / unit)
        drift = toward - (negative * positive.sum(-1, keepdim=True)) @ (negatives / unit)
        total = total + drift / drift.square().mean().sqrt()
    return total.square().mean((1, 2)), -2 * total / (total.numel() * unit)


def jax_loss(samples: Sequence[Tensor], floor: float) -> Callable[[], tuple]:
    """Return a call of the same mathematics in JAX under jit, on arrays that JAX holds."""
    jax: Any = importlib.import_module("jax")
    jnp: Any = importlib.import_module("jax.numpy")

    def value(generated, positives, unconditional):  # noqa: ANN202 - arrays of JAX
        fixed = jax.lax.stop_gradient(generated)
        negatives = fixed if unconditional is None else jnp.concatenate([fixed, unconditional], 1)
        split, count = negatives.shape[1], fixed.shape[1]
        targets = jnp.concatenate([negatives, positives], 1)
        squares = (fixed**2).sum(-1)[:, :, None] + (targets**2).sum(-1)[:, None] - 2 * jnp.einsum("gnd,gkd->gnk", fixed, targets)
        distances = jnp.sqrt(jnp.maximum(squares, 1e-8))
        scale = distances.mean()
        unit = scale / fixed.shape[-1] ** 0.5
        distances = (distances / scale).at[:, :, :count].add(100 * jnp.eye(count))
        goal = fixed / unit
        for temperature in TEMPERATURES:
            logits = -distances / temperature
            affinity = jnp.sqrt(jnp.maximum(jax.nn.softmax(logits, -1) * jax.nn.softmax(logits, -2), floor))
            negative, positive = affinity[..., :split], affinity[..., split:]
            coefficients = jnp.concatenate(
                [-negative * positive.sum(-1, keepdims=True), positive * negative.sum(-1, keepdims=True)], -1
            )
            drift = jnp.einsum("gnk,gkd->gnd", coefficients, targets / unit)
            goal = goal + drift / jnp.sqrt(jnp.maximum((drift**2).mean(), 1e-8))
        loss = ((generated / unit - jax.lax.stop_gradient(goal)) ** 2).mean((1, 2))
        return loss.mean(), loss

    compiled = jax.jit(jax.value_and_grad(value, has_aux=True))
    arrays = [jnp.asarray(part.numpy()) for part in samples]
    arrays += [None] * (3 - len(arrays))

    def call() -> tuple:
        (_, loss), gradient = compiled(*arrays)
        return loss, gradient.block_until_ready()

    return call


def our_loss(samples: Sequence[Tensor], floor: float, memory: Memory | None = None) -> tuple[Tensor, Tensor]:
    """Return the loss of each group and the gradient of their mean as the library computes them."""
    generated = samples[0].detach().requires_grad_()
    options = {"temperatures": TEMPERATURES, "field": MeanShift(floor), "memory": memory}
    loss = drifting.drifting_loss(generated, *samples[1:], **options).loss
    (gradient,) = torch.autograd.grad(loss.mean(), generated)
    return loss.detach(), gradient


def calls_of(case: Case, floor: float, chosen: set[str]) -> dict[str, Call]:
    """Return the sides to compare, ours first."""
    samples = case.samples()
    calls: dict[str, Call] = {"drifting": functools.partial(our_loss, samples, floor, Memory())}
    if "eager" in chosen:
        calls["eager"] = functools.partial(plain_loss, *samples, floor=floor)
    if "compile" in chosen:
        compiled = torch.compile(plain_value, dynamic=False)
        calls["compile"] = functools.partial(compiled, *samples, *[None] * (3 - len(samples)), floor)
    if "jax" in chosen:
        calls["jax"] = jax_loss(samples, floor)
    return calls


def check(calls: dict[str, Call]) -> None:
    """Stop where a side computes something else."""
    results = {name: [torch.tensor(part.__array__()) for part in call()] for name, call in calls.items()}  # pyright: ignore
    for name, (_, gradient) in results.items():
        difference = float((gradient - results["drifting"][1]).norm() / gradient.norm())
        assert difference < 1e-2, f"{name} and drifting disagree by {difference}"


def seconds(calls: Sequence[Call], repeats: int, clock: Callable[[], float]) -> list[list[float]]:
    """Return the times of several calls, taken in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            start = clock()
            call()
            taken.append(clock() - start)
    return [taken[1:] for taken in times]


def _status(entry: str) -> int:
    """Return a figure of this process from the kernel, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return 1024 * int(line.split()[1])


def _peak(case: Case, side: str, floor: float, queue: "multiprocessing.Queue[float]") -> None:
    small = Case(2, 16, 16, case.unconditional and 8, case.dimension)
    for call in calls_of(small._replace(groups=min(2, case.groups)), floor, {side}).values():
        call()
    call = calls_of(case, floor, {side})[side]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    call()
    queue.put(_status("VmHWM") - before)


def peak_bytes(case: Case, side: str, floor: float) -> float:
    """Return the peak extra memory of one call, measured in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(case, side, floor, queue))
    process.start()
    peak = queue.get()
    process.join()
    return peak


def product_rate(repeats: int, clock: Callable[[], float]) -> float:
    """Return the multiplications per second of one large matrix product of torch."""
    size = 1024
    one, other = torch.randn(size, size), torch.randn(size, size)
    return size**3 / min(seconds([lambda: one @ other], repeats, clock)[0])


def executed(case: Case) -> int:
    """Return the multiplications of the matrix products of our loss: the distances, and the drifts at every temperature."""
    products = 0 if case.dimension <= DIRECT_DIMENSIONS else 1 + len(TEMPERATURES)
    return products * case.groups * case.generated * sum(case[1:4]) * case.dimension


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="a part of the names of the cases to run")
    parser.add_argument("--sides", nargs="*", default=["eager", "compile", "jax"], help="the baselines to run")
    parser.add_argument("--floor", type=float, default=1e-6, help="lower bound of the squared affinity")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    return parser.parse_args()


def main() -> None:
    """Print one row per case."""
    options = parse()
    torch.set_num_threads(options.threads)
    os.environ["NPROC"] = str(options.threads)  # the number of threads of XLA
    if options.threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    clock = time.process_time if options.threads == 1 else time.perf_counter
    title = f"loss and gradient, 3 temperatures, floor {options.floor:g}, {options.threads} threads, torch {torch.__version__}"
    table = Table("case", "drifting, ms", "of torch's rate", *(f"{side} / drifting" for side in options.sides), title=title)
    for column in ("MB, drifting", "MB, eager") if options.memory else ():
        table.add_column(column)
    for case in CASES:
        if options.only not in str(case):
            continue
        calls = calls_of(case, options.floor, set(options.sides))
        check(calls)
        times = seconds(list(calls.values()), options.repeats, clock)
        rate = executed(case) / statistics.median(times[0]) / product_rate(options.repeats, clock)
        ratios = [f"{statistics.median(taken) / statistics.median(times[0]):.2f}" for taken in times[1:]]
        memory = [f"{peak_bytes(case, side, options.floor) / 1e6:.0f}" for side in ("drifting", "eager") if options.memory]
        table.add_row(str(case), f"{1e3 * statistics.median(times[0]):.1f}", f"{rate:.0%}" if rate else "", *ratios, *memory)
    Console(width=140).print(table)
    if options.memory:
        print(f"memory of {LARGE}: {peak_bytes(LARGE, 'drifting', options.floor) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
