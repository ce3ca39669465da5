"""Time the ImageNet recipes on one device: samples of their generators, and a training step of the ablation recipe.

Command: python benchmarks/imagenet.py [--only sample step] [--labels 64 --labels-per-microbatch 2] [--tiny]

Weights and latents are random, which costs as much as real ones. The step is that of `imagenet256-ablation`: 64 labels of 64
generated, 64 real and 16 unconditional samples, B/2, the auto-encoder of width 256 with all its features, three temperatures and
bfloat16, with `--labels-per-microbatch` labels at a time. "In the loss" is the share of the forward pass of the loss, with the
device synchronized. Times are medians after a warm-up; memory is the maximum that torch had allocated. --tiny tries the program out
on a CPU.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import median_seconds, now, peak_gigabytes
from torch import Tensor

from drifting.encoders.base import compose, identity
from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.mae_features import MAEFeatures
from drifting.generators.dit import SIZES, DiT, DiTSize
from drifting.guidance import unconditional_weight
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.training.positives import encode_sets
from drifting.training.step import Batch, computed_in, label_batched_step

TINY = DiTSize(patch=2, width=32, depth=2, heads=2, cond_dim=32)
LATENT, PIXELS = (4, 32, 32), (3, 256, 256)
SHAPES = {"B/2": LATENT, "L/2": LATENT, "B/16": PIXELS, "L/16": PIXELS}


class Timed(DriftingLoss):
    """A loss that measures the time of its forward pass."""

    seconds = 0.0

    def forward(self, *arguments: Any, **options: Any) -> FeatureLoss:
        """Return the loss; the device is synchronized before and after."""
        start = now()
        report = super().forward(*arguments, **options)
        self.seconds += now() - start
        return report


def time_samples(device: str, tiny: bool) -> Table:
    """Time the forward pass of the generators, eager and compiled."""
    table = Table(
        "generator", "precision", "batch", "images/s", "compiled, images/s", "GB", title="samples, without the VAE's decoder"
    )
    for name in ("tiny",) if tiny else SHAPES:
        shape = SHAPES.get(name, (4, 8, 8))
        with torch.device(device):
            network = DiT(sample_shape=shape, size=SIZES.get(name, TINY), num_classes=1000).eval()
        compiled = network if tiny else torch.compile(network, dynamic=False)
        for precision in ("bfloat16", "float32") if name == "L/2" else ("bfloat16",):
            for count in (2,) if tiny else (1, 64, 256):
                noise, scale = torch.randn(count, *shape, device=device), torch.ones(count, device=device)
                labels = torch.arange(count, device=device) % 1000
                codes = torch.randint(64, (count, 32), device=device)
                peak_gigabytes()
                rates, compiles = [], count == 64 and shape == LATENT and precision == "bfloat16"
                for call in (network, compiled) if compiles else (network,):
                    cast = torch.autocast(device, torch.bfloat16) if precision == "bfloat16" else nullcontext()
                    with torch.no_grad(), cast:
                        taken = median_seconds(partial(call, noise, labels, scale, codes), 10)
                    rates.append(f"{count / taken:.0f}")
                table.add_row(name, precision, str(count), *rates, *([] if compiles else [""]), f"{peak_gigabytes():.2f}")
    return table


def recipe(device: str, tiny: bool, compiled: bool) -> tuple[DiT, Callable[..., Tensor], Callable[..., dict[str, Tensor]]]:
    """Return the generator of the ablation recipe, the function that calls it in bfloat16, and the encoder."""
    shape = (4, 8, 8) if tiny else LATENT
    with torch.device(device):
        generator = DiT(sample_shape=shape, size=TINY if tiny else SIZES["B/2"], num_classes=1000)
        trunk = MaskedAutoencoder(shape, width=36 if tiny else 256, depths=(1, 1, 1, 1) if tiny else (3, 4, 6, 3))
    # The output layer starts at zero, which would make all samples equal.
    torch.nn.init.normal_(generator.output.weight, std=generator.size.width**-0.5)
    features = MAEFeatures(trunk)
    call: Any = generator
    if compiled:
        call, features = torch.compile(generator), torch.compile(features)
    encoder = compose({"": features, "global": identity})
    return generator, computed_in("bfloat16", call, device), computed_in("bfloat16", encoder, device)


def parts_of(
    shape: tuple[int, ...], encoder: Callable[..., dict[str, Tensor]], device: str, sizes: tuple[int, int, int]
) -> list[Any]:
    """Return the functions that make the batches of one step; `sizes` are the labels, those per batch, and the samples of one."""
    labels, at_once, count = sizes
    rng = torch.Generator(device).manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randn(labels, count, *shape, generator=rng, device=device)

    noise, real, further = draw(count), draw(count), draw(count // 4)
    codes = torch.randint(64, (labels, count, 32), generator=rng, device=device)
    scale = 1 + 3 * torch.rand(labels, generator=rng, device=device)

    def part(start: int) -> Batch:
        own = slice(start, start + at_once)
        with torch.no_grad():
            positives, unconditional = encode_sets(encoder, real[own]), encode_sets(encoder, further[own])
        return Batch(
            noise=noise[own],
            labels=torch.arange(labels, device=device)[own],
            style_indices=codes[own],
            guidance_scale=scale[own],
            positives=positives,
            unconditional=unconditional,
            unconditional_weight=unconditional_weight(scale[own], count, count // 4),
        )

    return [partial(part, start) for start in range(0, labels, at_once)]


def time_step(device: str, tiny: bool, compiled: bool, labels: int, at_once: int, repeats: int) -> list[str]:
    """Time a training step of the ablation recipe without the optimizer; return a row."""
    generator, call, encoder = recipe(device, tiny, compiled)
    loss, count = Timed(), 4 if tiny else 64
    parts = parts_of(generator.sample_shape, encoder, device, (labels, at_once, count))

    def step() -> None:
        generator.zero_grad()
        loss.seconds = 0.0
        label_batched_step(call, encoder, loss, parts)

    peak_gigabytes()
    # A step of many batches warms up in its first ones.
    seconds = median_seconds(step, repeats, warm_up=int(labels <= 8))
    named = f"{labels} x ({count} + {count} + {count // 4})"
    made = labels * count / seconds
    share = f"{100 * loss.seconds / seconds:.0f} %"
    return [named, str(at_once), "yes" if compiled else "no", f"{seconds:.2f}", f"{made:.0f}", f"{peak_gigabytes():.1f}", share]


def main() -> None:
    """Print one table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["step", "sample"], choices=["step", "sample"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--labels", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--labels-per-microbatch", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    console = Console(width=130)
    console.print(torch.cuda.get_device_name() if options.device == "cuda" else options.device, f"torch {torch.__version__}")
    if "step" in options.only:
        columns = (
            "labels x (generated + real + unconditional)",
            "at once",
            "compiled",
            "s per step",
            "generated/s",
            "GB",
            "in the loss",
        )
        table = Table(*columns, title="step of imagenet256-ablation, without its optimizer")
        for compiled in (False, True) if options.compile else (False,):
            for labels in options.labels:
                for at_once in options.labels_per_microbatch:
                    row = time_step(options.device, options.tiny, compiled, labels, at_once, options.repeats)
                    print(*row, flush=True)
                    table.add_row(*row)
        console.print(table)
    if "sample" in options.only:
        console.print(time_samples(options.device, options.tiny))


if __name__ == "__main__":
    main()
