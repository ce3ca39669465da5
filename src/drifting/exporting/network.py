"""A generator as one function of plain tensors, which other programs can compute, and the facts that they need to call it.

    noise, labels, guidance_scale, style_indices  ->  samples, images

Every input has one row for each sample. Labels, scale and style codes are inputs only where the generator takes them. `samples` are
points in the coordinates of the user, or images [b, c, h, w] as the generator makes them, in about [-1, 1]. For images there are
also `images`, bytes [b, h, w, c] from 0 to 255, which `drifting sample` writes. Latents are `samples` and are not decoded.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drifting import __version__
from drifting.generators.base import Generator
from drifting.sampling import Sampler, seeded_codes, seeded_noise

Inputs = dict[str, Tensor]


class Portable(nn.Module):
    """A generator that also converts its samples to the user's form.

    Args:
        generator: the network.
        export: samples -> samples in the user's form; None to leave them as they are.
        makes_images: whether the user's form is images as bytes, which are returned beside the samples.
    """

    def __init__(self, generator: Generator, export: Callable[[Tensor], Tensor] | None, *, makes_images: bool) -> None:
        super().__init__()
        self.generator = _portable_layers(copy.deepcopy(generator).float().eval())
        self.export, self.makes_images = export, makes_images

    def forward(
        self,
        noise: Float[Tensor, "b ..."],
        labels: Int[Tensor, " b"] | None = None,
        guidance_scale: Float[Tensor, " b"] | None = None,
        style_indices: Int[Tensor, "b s"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the samples and, of images, their bytes."""
        codes = {} if style_indices is None else {"style_indices": style_indices}
        scale = self.generator.noise_scale
        samples = self.generator(noise if scale == 1 else scale * noise, labels, guidance_scale, **codes)
        if self.export is None:
            return (samples,)
        # A copy, because the conversion to bytes may be in place.
        return (samples, self.export(samples.clone())) if self.makes_images else (self.export(samples),)


class _SummedRows(nn.Module):
    """An `EmbeddingBag` that sums, in operations that every format has."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.weight = bag.weight

    def forward(self, rows: Int[Tensor, "b s"]) -> Float[Tensor, "b z"]:
        """Return the sums of the rows of a table."""
        return nn.functional.embedding(rows, self.weight).sum(1)


def _portable_layers(network: Generator) -> Generator:
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.EmbeddingBag):
            network.set_submodule(name, _SummedRows(layer))
    return network


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is exported.

    Attributes:
        network: the generator, with samples in the user's form.
        kind: "points" in the plane, "images", "latents", or "samples" of any other shape.
        recipe: name of the preset, or "artifact" for a network of the authors' release.
        title: name of the data.
        class_names: name of each label; None if they are not known or there are none.
        guidance_scale: guidance scale that `drifting sample` uses; None for a generator that takes none.
        highest_guidance_scale: highest one of the training; None if it is not known.
        unit: length of one unit of the generator in the user's form, in which differences are measured.
    """

    network: Portable
    kind: str
    recipe: str
    title: str
    class_names: tuple[str, ...] | None
    guidance_scale: float | None
    highest_guidance_scale: float | None
    unit: float

    @property
    def generator(self) -> Generator:
        """The generator."""
        return self.network.generator

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("samples", "images") if self.network.makes_images else ("samples",)

    def facts(self) -> dict[str, Any]:
        """Return what a program needs to know to call the network, as JSON values."""
        generator, classes = self.generator, self.generator.num_classes
        facts: dict[str, Any] = {
            "made_by": f"drifting {__version__}",
            "recipe": self.recipe,
            "title": self.title,
            "kind": self.kind,
            "noise": {"law": "standard normal, independent", "shape": list(generator.noise_shape)},
            "sample_shape": list(generator.sample_shape),
        }
        if classes is not None:
            facts["labels"] = {"count": classes, "names": list(self.class_names or map(str, range(classes)))}
        if self.guidance_scale is not None:
            facts["guidance_scale"] = {"default": self.guidance_scale, "highest": self.highest_guidance_scale}
        if generator.num_styles:
            facts["style_indices"] = {"count": generator.num_styles, "values": generator.style_classes, "law": "uniform"}
        return facts

    def metadata(self) -> dict[str, str]:
        """Return the facts as texts; those that are not texts as JSON."""
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.facts().items()}

    def inputs(self, count: int, seed: int = 0) -> Inputs:
        """Return the inputs of the first samples of a seed, with all labels in turn and the usual guidance scale.

        Noise and style codes are those of `drifting.sampling.sample`.
        """
        generator, indices = self.generator, range(count)
        inputs: Inputs = {"noise": seeded_noise(indices, generator.noise_shape, seed)}
        if generator.num_classes is not None:
            inputs["labels"] = torch.arange(count) % generator.num_classes
        if self.guidance_scale is not None:
            inputs["guidance_scale"] = torch.full((count,), float(self.guidance_scale))
        if generator.num_styles:
            inputs["style_indices"] = seeded_codes(indices, generator.num_styles, generator.style_classes, seed).long()
        return inputs


def subject_of(sampler: Sampler, replaced_by: Generator | None = None) -> Subject:
    """Return what to export of a run, or of a generator of the release.

    Args:
        sampler: the run or the generator.
        replaced_by: a generator to export in place of that of the sampler, such as one with rounded weights.
    """
    config = getattr(sampler, "config", None)
    generator: Generator = sampler.generator if replaced_by is None else replaced_by
    latent = config.data.latent if config is not None else sampler.vae is not None  # pyright: ignore[reportAttributeAccessIssue]
    export = None if latent else sampler._exporter()
    kind, unit = _form(generator, export) if export is not None else ("latents", 1.0)
    schedule = None if config is None else config.schedule
    scale, highest = (1.0, None) if generator.guided else (None, None)
    if generator.guided and schedule is not None and schedule.draws_guidance:
        scale, highest = schedule.guidance_scale, schedule.highest_guidance_scale
    return Subject(
        network=Portable(generator, export, makes_images=kind == "images"),
        kind=kind,
        recipe="artifact" if config is None else config.preset,
        title="artifact" if config is None else config.data.title,
        class_names=None if sampler.class_names is None else tuple(sampler.class_names),
        guidance_scale=scale,
        highest_guidance_scale=highest,
        unit=unit,
    )


def _form(generator: Generator, export: Callable[[Tensor], Tensor]) -> tuple[str, float]:
    """Return the kind of the samples in the user's form, and the length of one unit of the generator there."""
    zero, one = (export(torch.full((1, *generator.sample_shape), value)) for value in (0.0, 1.0))
    if zero.dtype == torch.uint8 and zero.ndim == 4:
        return "images", 1.0
    unit = float((one.double() - zero.double()).abs().max())
    return "points" if zero.shape[1:] == (2,) else "samples", unit if 0 < unit < math.inf else 1.0
