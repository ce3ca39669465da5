"""Time the loss on many groups and training steps of the 33M-parameter generators on a GPU.

Command: python benchmarks/gpu.py [--only work loss step] [--tiny]

The loss, by the Triton kernels and by torch alone, is compared with the paper's listing in batched PyTorch, out of place, eager and
by `torch.compile`, in the same process. "Bound" is the time that the bytes and operations of the kernels (see `gpu_work`) take at
the rates of a large copy and of a large float32 product on the device. `--only work` lists bytes and operations on any machine,
without computing anything. The steps are those of `cifar10-multiscale-gpu` on random images: generator, encoder of width 64, loss,
optimizer and averaged weights. Times are medians after a warm-up; memory is the maximum that torch had allocated. --tiny tries the
program out on a CPU.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from gpu_work import limits, of_eager, of_kernels
from rich.console import Console
from rich.table import Table
from timing import median_seconds, peak_gigabytes
from torch import Tensor

import drifting
from drifting.config import RunConfig
from drifting.data import ImagesData
from drifting.data.sources import InMemorySource
from drifting.encoders import SimCLRConfig
from drifting.fields import triton_drifts
from drifting.generators import DiTConfig, UNetConfig
from drifting.generators.dit import SIZES
from drifting.generators.unet import SIZES as UNET_SIZES
from drifting.presets import preset
from drifting.runs.train import build_encoder
from drifting.training.loop import train
from drifting.training.positives import Positives
from drifting.training.state import TrainingState

TEMPERATURES = (0.02, 0.05, 0.2)
# Groups, generated, positives, channels: locations of the maps of the ablation recipe for eight labels, MNIST, populations.
LOSSES = [
    *((8192, 64, 80, 256), (2048, 64, 80, 512), (512, 64, 80, 1024), (128, 64, 80, 2048), (10, 64, 64, 784)),
    *((1, 640, 640, 512), (1, 4096, 4096, 512), (1, 2048, 2048, 2)),
]


def plain_loss(samples: Tensor, positives: Tensor) -> Tensor:
    """Return the loss of all groups by the paper's listing, batched."""
    generated = samples.detach()
    with torch.no_grad():
        distances = torch.cat([torch.cdist(generated, generated), torch.cdist(generated, positives)], 2)
        scale = distances.mean()
        unit = scale / generated.shape[2] ** 0.5
        distances = distances / scale
        distances.diagonal(dim1=1, dim2=2).add_(100)
        total, count = torch.zeros_like(generated), generated.shape[1]
        for temperature in TEMPERATURES:
            logits = -distances / temperature
            affinity = (logits.softmax(2) * logits.softmax(1)).clamp(min=1e-6).sqrt()
            negative, positive = affinity[..., :count], affinity[..., count:]
            drift = (positive * negative.sum(2, keepdim=True)) @ positives - (negative * positive.sum(2, keepdim=True)) @ generated
            drift = drift / unit
            total += drift / drift.square().mean().sqrt()
        target = generated / unit + total
    return (samples / unit - target).square().mean()


def our_loss(samples: Tensor, positives: Tensor) -> Tensor:
    """Return the loss of all groups as the library computes it."""
    return drifting.drifting_loss(samples, positives, temperatures=TEMPERATURES).loss.mean()


def backward(loss: Callable[[], Tensor]) -> None:
    """Compute a loss and its gradient."""
    loss().backward()


def by_torch(samples: Tensor, positives: Tensor) -> Tensor:
    """Return the loss as the library computes it without Triton."""
    with patch.object(triton_drifts, "is_available", lambda problem: False):
        return our_loss(samples, positives)


def draw(shape: tuple[int, int, int, int], device: str) -> tuple[Tensor, Tensor]:
    """Return generated samples and positives."""
    groups, generated, real, channels = shape
    rng = None if device == "meta" else torch.Generator(device).manual_seed(0)
    samples = torch.randn(groups, generated, channels, generator=rng, device=device, requires_grad=True)
    return samples, torch.randn(groups, real, channels, generator=rng, device=device) + 0.1


def describe(shape: tuple[int, int, int, int]) -> str:
    """Name a shape."""
    groups, generated, real, channels = shape
    return f"{groups} x {generated} + {real} x {channels}"


def count_work() -> Table:
    """List the bytes and operations of loss and gradient."""
    columns = [f"{name}, {unit}" for name in ("plain", "torch", "kernels") for unit in ("GB", "TFLOP")]
    table = Table("groups x generated + positives x channels", *columns, title="work of loss and gradient")
    for shape in LOSSES:
        arguments = draw(shape, "meta")
        with patch.object(torch, "autocast", lambda *arguments, **options: nullcontext()):  # knows no such device
            eager = [of_eager(partial(backward, partial(loss, *arguments))) for loss in (plain_loss, by_torch)]
        row = [
            (f"{work.bytes / 1e9:.3f}", f"{work.operations / 1e12:.4f}") for work in (*eager, of_kernels(shape, len(TEMPERATURES)))
        ]
        table.add_row(describe(shape), *(value for pair in row for value in pair))
    return table


def time_losses(device: str, tiny: bool) -> Table:
    """Time loss and gradient for groups of several sizes."""
    sides = {"plain": plain_loss, "compiled": torch.compile(plain_loss, dynamic=False), "torch": by_torch, "drifting": our_loss}
    columns = [f"{name}, {unit}" for name in sides for unit in ("ms", "GB")]
    table = Table("groups x generated + positives x channels", *columns, "bound, ms", title="loss")
    possible = limits(device)
    for shape in [(8, 16, 20, 8), (1, 80, 80, 20)] if tiny else LOSSES:
        samples, positives = draw(shape, device)
        calls = {name: partial(loss, samples, positives) for name, loss in sides.items()}
        (expected,) = torch.autograd.grad(calls["plain"](), samples)
        row = []
        for name, call in calls.items():
            (gradient,) = torch.autograd.grad(call(), samples)
            assert (gradient - expected).norm() < 2e-2 * expected.norm(), name
            peak_gigabytes()
            before = torch.cuda.memory_allocated() / 2**30 if device == "cuda" else 0.0
            row += [f"{1e3 * median_seconds(partial(backward, call), 7):.2f}"]
            row += [f"{peak_gigabytes() - before:.2f}"]
        bound = of_kernels(shape, len(TEMPERATURES)).seconds(possible)
        table.add_row(describe(shape), *row, f"{1e3 * bound:.2f}")
    return table


def small_runs(device: str, tiny: bool) -> Iterator[tuple[str, RunConfig]]:
    """Yield runs on 32 x 32 images: both generators, whole and in microbatches, in both precisions."""
    base = preset("cifar10-multiscale-gpu")
    assert isinstance(base, RunConfig)
    assert isinstance(base.data, ImagesData)
    base = dataclasses.replace(base, device=device, data=dataclasses.replace(base.data, image_shape=(3, 32, 32), num_classes=10))
    # SimCLR has the same network; only its training does without the classes.
    kept = {name: getattr(base.encoder, name) for name in ("arch", "feature_dims", "features")}
    encoder = SimCLRConfig(width=8 if tiny else 64, **kept)
    generators: list[Any] = [
        UNetConfig(**vars(UNET_SIZES["cpu" if tiny else "gpu"])),
        DiTConfig(**vars(SIZES["cpu" if tiny else "gpu"])),
    ]
    sizes = {"labels_per_step": 2, "generated": 4, "positives": 4} if tiny else {}
    for generator in generators:
        for precision in ("float32", "bfloat16"):
            for microbatch_size in (None, 4 if tiny else 128):
                changes = {"precision": precision, "microbatch_size": microbatch_size, **sizes}
                schedule = dataclasses.replace(base.schedule, **changes)
                name = f"{type(generator).__name__.removesuffix('Config')}, {precision}, {microbatch_size or 'whole'}"
                yield name, dataclasses.replace(base, generator=generator, encoder=encoder, schedule=schedule)


def time_steps(device: str, tiny: bool, steps: int) -> Table:
    """Time training steps on random images."""
    table = Table("generator, precision, microbatch", "parameters", "ms per step", "GB", title="step of cifar10-multiscale-gpu")
    for name, config in small_runs(device, tiny):
        generator = config.build_generator().to(device)
        network = config.build_network()
        assert network is not None
        encoder = build_encoder(config, network.to(device))
        images = torch.rand(2000, 3, 32, 32, device=device) * 2 - 1
        positives = Positives(InMemorySource(images, torch.arange(2000, device=device) % 10), encoder, batch_size=1280)
        schedule = dataclasses.replace(config.schedule, steps=steps + 4)
        state = TrainingState(generator, schedule, 0)
        running = train(state, positives, encoder, config.loss.build(), schedule)
        peak_gigabytes()
        try:
            taken = f"{1e3 * median_seconds(partial(next, running), steps):.1f}"
        except torch.OutOfMemoryError:
            taken = "out of memory"
        count = sum(weight.numel() for weight in generator.parameters()) / 1e6
        row = (name, f"{count:.1f} M", taken, f"{peak_gigabytes():.2f}")
        print(*row, flush=True)
        table.add_row(*row)
        del generator, network, encoder, positives, state, running
        if device == "cuda":
            torch.cuda.empty_cache()
    return table


def main() -> None:
    """Print one table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["work", "loss", "step"], choices=["work", "loss", "step"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device, tiny = options.device, options.tiny
    parts = {
        "work": count_work,
        "loss": lambda: time_losses(device, tiny),
        "step": lambda: time_steps(device, tiny, options.steps),
    }
    console = Console(width=150)
    console.print(torch.cuda.get_device_name() if device == "cuda" else device, f"torch {torch.__version__}")
    for part in options.only:
        console.print(parts[part]())


if __name__ == "__main__":
    main()
