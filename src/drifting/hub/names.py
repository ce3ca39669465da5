"""What every weight of ours is called in the authors' release, and how it lies there: one table for each network, read both ways.

A kernel is a weight with its axes turned round: [in, out] for [out, in], [height, width, in, out] for [out, in, height, width].
Embeddings of positions and tokens have a leading axis of one. Our one table of styles is theirs one after the other.

Source: names in the authors' artifacts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drifting.encoders.mae import MaskedAutoencoder
from drifting.generators.dit import DiT

# Module of ours -> of the release.
_CONDITION_AND_ENDS = {
    "condition.classes": "Embed_0",
    "condition.norm": "RMSNorm_0",
    "condition.guidance.0": "TimestepEmbedder_0/TorchLinear_0/Dense_0",
    "condition.guidance.2": "TimestepEmbedder_0/TorchLinear_1/Dense_0",
    "embed": "LightningDiT_0/TorchLinear_0/Dense_0",
    "context": "LightningDiT_0/TorchLinear_1/Dense_0",
    "norm": "LightningDiT_0/FinalLayer_0/RMSNorm_0",
    "modulation": "LightningDiT_0/FinalLayer_0/TorchLinear_0/Dense_0",
    "output": "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0",
}
_TRANSFORMER_BLOCK = {
    "modulation": "TorchLinear_0/Dense_0",
    "norm_attention": "RMSNorm_0",
    "norm_mlp": "RMSNorm_1",
    "attention.qkv": "Attention_0/TorchLinear_0/Dense_0",
    "attention.output": "Attention_0/TorchLinear_1/Dense_0",
    "attention.norm_queries": "Attention_0/q_norm",
    "attention.norm_keys": "Attention_0/k_norm",
    "mlp.gate": "SwiGLUFFN_0/TorchLinear_0/Dense_0",
    "mlp.value": "SwiGLUFFN_0/TorchLinear_1/Dense_0",
    "mlp.output": "SwiGLUFFN_0/TorchLinear_2/Dense_0",
}
_STEM_AND_ENDS = {
    "stem.conv": "encoder/conv1",
    "stem.norm": "encoder/gn1",
    "bridge.conv": "decoder/bridge/conv",
    "bridge.norm": "decoder/bridge/gn",
    "head": "decoder/head",
    "classify": "fc",
}
_RESIDUAL_BLOCK = {
    "first.conv": "conv1",
    "first.norm": "gn1",
    "second.conv": "conv2",
    "second.norm": "gn2",
    "shortcut.conv": "proj_conv",
    "shortcut.norm": "proj_gn",
}
_UP_BLOCK = {
    "norm": "concat_norm_fn",
    "first.conv": "proj/conv",
    "first.norm": "proj/gn",
    "second.conv": "refine/conv",
    "second.norm": "refine/gn",
}
_UP_BLOCKS = ("up43", "up32", "up21", "up10")

# Names of a leaf there, by the class of our module; every other class has theirs in common with us.
_LEAVES: Mapping[type[nn.Module], Mapping[str, str]] = {
    nn.Linear: {"weight": "kernel"},
    nn.Conv2d: {"weight": "kernel"},
    nn.GroupNorm: {"weight": "scale"},
    nn.Embedding: {"weight": "embedding"},
}


@dataclass(frozen=True)
class Place:
    """Where one weight of ours lies in the release.

    Attributes:
        name: of ours.
        shape: of ours.
        released: name there; several where it is cut into as many parts along its first axis.
    """

    name: str
    shape: tuple[int, ...]
    released: tuple[str, ...]

    def to_release(self, weight: Tensor) -> list[Tensor]:
        """Return the arrays of the release that hold our weight, in the order of `released`; they may share its memory."""
        if self._led:
            return [weight[None]]
        if self._kernel:
            return [weight.permute((2, 3, 1, 0) if weight.ndim == 4 else (1, 0))]
        return list(weight.chunk(len(self.released)))

    def to_ours(self, arrays: Sequence[Tensor]) -> Tensor:
        """Return our weight from the arrays of the release: undo `to_release`."""
        if len(arrays) > 1:
            return torch.cat(tuple(arrays))
        if self._led:
            return arrays[0][0]
        if self._kernel:
            return arrays[0].permute((3, 2, 0, 1) if arrays[0].ndim == 4 else (1, 0))
        return arrays[0]

    def released_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays of the release."""
        parts = self.to_release(torch.empty(self.shape, device="meta"))
        return {name: tuple(part.shape) for name, part in zip(self.released, parts, strict=True)}

    @property
    def _kernel(self) -> bool:
        return self.released[0].endswith("/kernel")

    @property
    def _led(self) -> bool:
        return self.released[0].endswith("_embed")


def places(network: DiT | MaskedAutoencoder) -> list[Place]:
    """Return where every weight of a network lies in the release."""
    found = list(_leaves(network, _generator_modules(network) if isinstance(network, DiT) else _encoder_modules(network)))
    if isinstance(network, DiT):
        alone: dict[str, tuple[str, ...]] = {
            "positions": ("LightningDiT_0/pos_embed",),
            "context_tokens": ("LightningDiT_0/cls_embed",),
        }
        alone["condition.styles.weight"] = tuple(f"noise_embeds_{index}/embedding" for index in range(network.num_styles))
        shapes = {name: tuple(value.shape) for name, value in network.named_parameters() if name in alone}
        found += [Place(name, shape, alone[name]) for name, shape in shapes.items()]
    return found


def _leaves(network: nn.Module, modules: Mapping[str, str]) -> Iterator[Place]:
    for ours, theirs in modules.items():
        module = network.get_submodule(ours)
        renamed = _LEAVES.get(type(module), {})
        for leaf, value in module.named_parameters():
            yield Place(f"{ours}.{leaf}", tuple(value.shape), (f"{theirs}/{renamed.get(leaf, leaf)}",))


def _generator_modules(network: DiT) -> dict[str, str]:
    modules = dict(_CONDITION_AND_ENDS)
    for block in range(network.size.depth):
        modules |= _within(f"blocks.{block}", f"LightningDiT_0/blocks_{block}", _TRANSFORMER_BLOCK)
    return _present(network, modules)


def _encoder_modules(network: MaskedAutoencoder) -> dict[str, str]:
    modules = dict(_STEM_AND_ENDS)
    for stage, depth in enumerate(network.depths):
        modules[f"stages.{stage}.norm"] = f"encoder/layer{stage + 1}_norm"
        for block in range(depth):
            modules |= _within(f"stages.{stage}.blocks.{block}", f"encoder/stages_{stage}/layers_{block}", _RESIDUAL_BLOCK)
    for index, theirs in enumerate(_UP_BLOCKS):
        modules |= _within(f"climb.{index}", f"decoder/{theirs}", _UP_BLOCK)
    return _present(network, modules)


def _within(ours: str, theirs: str, modules: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}/{value}" for name, value in modules.items()}


def _present(network: nn.Module, modules: Mapping[str, str]) -> dict[str, str]:
    """Return those modules that the network has: it may do without classes, guidance, context or some shortcuts."""
    known = dict(network.named_modules())
    return {name: value for name, value in modules.items() if name in known}
