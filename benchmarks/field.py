"""Time the drift field and the loss against the plain eager formulation of Algorithm 2, and measure their memory.

Command: python benchmarks/field.py [--rows 2048] [--repeats 15]

The baseline is what the paper's listing says, out of place: `torch.cdist`, two softmaxes, a root and two products per temperature.
Both sides run in turn in one process, so that their ratio holds where the machine's speed drifts; memory is measured in a fresh
process each, as the growth of the largest resident set over one call, in matrices of n x 2n floats per group (Linux only).
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import drifting
from drifting.fields import mean_shift
from drifting.fields.pairwise import Memory

TOY_TEMPERATURES = (0.05,)
TEMPERATURES = (0.02, 0.05, 0.2)
SAMPLES_OF_SMALL_GROUPS = 64

Pair = tuple[Tensor, Tensor]
Shape = tuple[int, int, int]  # groups, samples, dimensions


def plain_affinities(distances: Tensor, temperature: float, floor: float) -> Tensor:
    """Return the affinities of Algorithm 2, one full matrix after the other."""
    logits = -distances / temperature
    return (logits.softmax(-1) * logits.softmax(-2)).clamp(min=floor).sqrt()


def plain_drift(generated: Tensor, positives: Tensor, affinity: Tensor) -> Tensor:
    """Return the cross-weighted drift of Algorithm 2."""
    count = generated.shape[-2]
    negative, positive = affinity[..., :count], affinity[..., count:]
    toward = positive * negative.sum(-1, keepdim=True)
    away = negative * positive.sum(-1, keepdim=True)
    return toward @ positives - away @ generated


def plain_distances(generated: Tensor, positives: Tensor) -> Tensor:
    """Return the distances to [generated | positives], the diagonal masked."""
    repelling = torch.cdist(generated, generated) + 1e6 * torch.eye(generated.shape[-2])
    return torch.cat([repelling, torch.cdist(generated, positives)], -1)


@torch.no_grad()
def plain_field(generated: Tensor, positives: Tensor) -> Tensor:
    """The toy field, plainly."""
    affinity = plain_affinities(plain_distances(generated, positives), TOY_TEMPERATURES[0], 0.0)
    return plain_drift(generated, positives, affinity)


def plain_loss(generated: Tensor, positives: Tensor) -> Tensor:
    """The three-temperature loss with its gradient, plainly."""
    samples = generated.clone().requires_grad_()
    with torch.no_grad():
        distances = torch.cat([torch.cdist(generated, generated), torch.cdist(generated, positives)], -1)
        scale = distances.mean()
        unit = scale / generated.shape[-1] ** 0.5
        distances = distances / scale
        distances.diagonal(dim1=-2, dim2=-1).add_(100)
        total = torch.zeros_like(generated)
        for temperature in TEMPERATURES:
            affinity = plain_affinities(distances, temperature, 1e-6)
            drift = plain_drift(generated / unit, positives / unit, affinity)
            total += drift / drift.square().mean().sqrt()
        target = generated / unit + total
    (samples / unit - target).square().mean().backward()
    assert samples.grad is not None
    return samples.grad


def our_field(generated: Tensor, positives: Tensor) -> Tensor:
    """The toy field as the library computes it."""
    return mean_shift(generated, positives, temperature=TOY_TEMPERATURES[0])


def our_loss(generated: Tensor, positives: Tensor, memory: Memory | None = None) -> Tensor:
    """The three-temperature loss with its gradient as the library computes it, in training with the memory of the last step."""
    samples = generated.clone().requires_grad_()
    drifting.drifting_loss(samples, positives, temperatures=TEMPERATURES, memory=memory).loss.mean().backward()
    assert samples.grad is not None
    return samples.grad


def make_pair(shape: Shape) -> Pair:
    """Return generated and real samples that lie near each other."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=rng), torch.randn(shape, generator=rng) + 0.1


def seconds(calls: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return the times of several calls, taken in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 2):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [taken[2:] for taken in times]


def _status(entry: str) -> int:
    """Return a figure of this process from the kernel, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return 1024 * int(line.split()[1])


def _peak(call: Callable[[Tensor, Tensor], Tensor], shape: Shape, queue: "multiprocessing.Queue[float]") -> None:
    call(*make_pair((1, 64, shape[2])))
    samples = make_pair(shape)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    call(*samples)
    queue.put(_status("VmHWM") - before)


def peak_bytes(call: Callable[[Tensor, Tensor], Tensor], shape: Shape) -> float:
    """Return the peak extra memory of one call, measured in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(call, shape, queue))
    process.start()
    peak = queue.get()
    process.join()
    return peak


def main() -> None:
    """Print one row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048, help="generated samples, and as many real ones")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rows, some, groups = options.rows, SAMPLES_OF_SMALL_GROUPS, max(1, options.rows // 4)
    title = f"{rows} generated + {rows} real, float32, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table("case", "plain, ms", "drifting, ms", "speed-up", "plain, matrices", "drifting, matrices", title=title)
    cases = [
        ("field, 1 temperature, d = 2", plain_field, our_field, {}, (1, rows, 2)),
        ("loss and gradient, 3 temperatures, d = 2", plain_loss, our_loss, {"memory": Memory()}, (1, rows, 2)),
        ("loss and gradient, 3 temperatures, d = 64", plain_loss, our_loss, {"memory": Memory()}, (1, rows, 64)),
        ("loss and gradient, 3 temperatures, d = 784", plain_loss, our_loss, {"memory": Memory()}, (1, rows, 784)),
        (f"the same, {groups} groups of {some} + {some}, d = 256", plain_loss, our_loss, {"memory": Memory()}, (groups, some, 256)),
    ]
    for name, plain, ours, settings, shape in cases:
        samples, matrix = make_pair(shape), 4 * shape[0] * shape[1] * 2 * shape[1]
        difference = (plain(*samples) - ours(*samples)).norm() / plain(*samples).norm()
        assert difference < 1e-2, f"{name}: the two disagree by {float(difference)}"
        times = seconds([lambda: plain(*samples), lambda: ours(*samples, **settings)], options.repeats)  # noqa: B023 - called here
        medians = [1e3 * statistics.median(taken) for taken in times]
        ratio = statistics.median(one / other for one, other in zip(*times, strict=True))
        memory = [f"{peak_bytes(call, shape) / matrix:.1f}" for call in (plain, ours)]
        table.add_row(name, *(f"{value:.0f}" for value in medians), f"{ratio:.1f} x", *memory)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
