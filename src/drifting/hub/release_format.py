"""How the authors' release describes a network, names its weights and lays them out; tables that are read in both directions.

Networks here are float32. Settings of precision, memory and dropout in a `model_config` do not change a trained network and are
ignored. Unknown settings are refused, because they could change it.

A kernel is a weight with its axes reversed: [in, out] for [out, in], [height, width, in, out] for [out, in, height, width].
Embeddings of positions and tokens have a leading axis of one. Our single table of styles is the concatenation of theirs.

Source: keys and names in the authors' artifacts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drifting._checks import nearest_name
from drifting.encoders.mae import MASK_SIDE, MaskedAutoencoder
from drifting.errors import InputError
from drifting.generators.dit import DiT, DiTSize

Metadata = dict[str, Any]
GENERATOR, ENCODER = "gen", "mae"

# Larger than any network of the release; beyond these limits, building a network would overflow or never end.
_LARGEST, _MOST_LAYERS, _LONGEST_SIDE, _MOST_STYLES = 2**16, 256, 2**13, 2**12
_WITHOUT_EFFECT = {"use_bf16", "attn_fp32", "use_remat", "dropout_prob"}

# Settings that must be true, and the layers that the release builds otherwise.
_ALWAYS = {"use_swiglu": "perceptrons without a gate", "use_rmsnorm": "layer normalization"}
# Setting of a generator there -> field of `DiTSize`.
_SIZES = {
    "cond_dim": "cond_dim",
    "noise_classes": "style_classes",
    "noise_coords": "num_styles",
    "n_cls_tokens": "num_context_tokens",
    "patch_size": "patch",
    "hidden_size": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "use_qknorm": "normalized",
    "use_rope": "rotary",
}
_KNOWN = {
    GENERATOR: {"num_classes", "input_size", "in_channels", "out_channels", *_SIZES, *_ALWAYS},
    ENCODER: {"base_channels", "patch_size", "layers", "in_channels", "input_patch_size", "num_classes"},
}


def build_network(metadata: Metadata, origin: str, num_classes: int | None = None) -> DiT | MaskedAutoencoder:
    """Return the network of the metadata with initial weights. Encoders take images of any size that the patches divide.

    Args:
        metadata: kind and model_config.
        origin: origin of the metadata, for messages.
        num_classes: number of classes of the weights, if the metadata do not say.

    Raises:
        InputError: if the metadata describe no supported network.
    """
    kind, values = metadata.get("kind"), metadata.get("model_config")
    if kind not in (GENERATOR, ENCODER):
        raise InputError(f"metadata of '{origin}' has kind {_shown(kind)}: pass kind 'gen' or 'mae', and a model_config")
    if not isinstance(values, dict):
        raise InputError(f"metadata of '{origin}' has no object model_config: pass kind and a model_config")
    known = sorted(_KNOWN[kind] | _WITHOUT_EFFECT)
    for name in values:
        if name not in known:
            raise InputError(
                f"model_config of '{origin}' has an unknown {_shown(name)}: did you mean '{nearest_name(name, known)}'?"
            )
    settings = _Settings(values, origin)
    classes = settings.count("num_classes", 0, default=0) or num_classes or None
    try:
        return _generator(settings, classes) if kind == GENERATOR else _encoder(settings, classes)
    except _SettingError:
        raise
    except InputError as error:
        raise InputError(f"model_config of '{origin}' describes no network: {error}") from None


def metadata_of(network: DiT | MaskedAutoencoder) -> Metadata:
    """Return the metadata that describe a network in the format of the release.

    Raises:
        InputError: if the format cannot describe the network.
    """
    if isinstance(network, MaskedAutoencoder):
        return {"kind": ENCODER, "model_config": _of_encoder(network)}
    (_, height, width), std = network.sample_shape, network.size.embedding_std
    unlike = {
        "ends in tanh": network.bounded,
        "takes no guidance scale": not network.guided,
        f"makes images of {height} x {width}": height != width,
        f"has an embedding_std of {std:g}, not {DiTSize.embedding_std}": std != DiTSize.embedding_std,
    }
    for what, found in unlike.items():
        if found:
            raise InputError(f"generator {what}, which the release's format cannot hold: convert another")
    return {"kind": GENERATOR, "model_config": _of_generator(network)}


def _of_generator(network: DiT) -> Metadata:
    return {
        "num_classes": network.num_classes or 0,
        "input_size": network.sample_shape[-1],
        "in_channels": network.noise_shape[0],
        "out_channels": network.sample_shape[0],
        **{theirs: getattr(network.size, ours) for theirs, ours in _SIZES.items()},
        **dict.fromkeys(_ALWAYS, True),
        "use_bf16": False,
        "attn_fp32": True,
        "use_remat": False,
    }


def _of_encoder(network: MaskedAutoencoder) -> Metadata:
    return {
        "base_channels": network.map_shapes["conv1"][0],
        "patch_size": MASK_SIDE,
        "dropout_prob": 0.0,
        "layers": list(network.depths),
        "in_channels": network.image_shape[0],
        "use_bf16": False,
        "input_patch_size": network.patch,
        "num_classes": network.num_classes or 0,
    }


class _SettingError(InputError):
    """A setting is missing or has the wrong type."""


class _Settings:
    """The values of a model_config, checked when they are read."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self.values, self.origin = values, origin

    def count(self, name: str, least: int = 1, default: int | None = None, most: int = _LARGEST) -> int:
        """Return a whole number."""
        value = self._value(name, default)
        if type(value) is not int or value < least:
            raise self._wrong(name, value, f"a whole number of at least {least}")
        if value > most:
            raise self._wrong(name, value, f"a whole number of at most {most}")
        return value

    def positive(self, name: str, default: float) -> float:
        """Return a number above 0."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not 0 < value <= _LARGEST:
            raise self._wrong(name, value, f"a number above 0, of at most {_LARGEST}")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false; true by default."""
        value = self._value(name, True)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def counts(self, name: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(type(each) is int and each <= _MOST_LAYERS for each in value):
            raise self._wrong(name, value, f"a list of whole numbers of at most {_MOST_LAYERS}")
        return tuple(value)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise _SettingError(f"model_config of '{self.origin}' has no {name}: restore it from where it was published")
        return value

    def _wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return _SettingError(f"{name} is {_shown(value)} in the model_config of '{self.origin}': pass {wanted}")


def _shown(value: Any) -> str:
    """Return a value as text for a message, shortened if it is long."""
    # Not repr() of a number that is longer than Python writes out.
    text = f"about 2^{value.bit_length()}" if isinstance(value, int) and value.bit_length() > 64 else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _generator(settings: _Settings, num_classes: int | None) -> DiT:
    for name, otherwise in _ALWAYS.items():
        if not settings.flag(name):
            raise _SettingError(f"{name} is false in the model_config of '{settings.origin}': {otherwise} are not built here")
    num_styles = settings.count("noise_coords", 0, default=0, most=_MOST_STYLES)
    size = DiTSize(
        patch=settings.count("patch_size"),
        width=settings.count("hidden_size"),
        depth=settings.count("depth", 0, most=_MOST_LAYERS),
        heads=settings.count("num_heads"),
        cond_dim=settings.count("cond_dim"),
        mlp_ratio=settings.positive("mlp_ratio", 4.0),
        num_context_tokens=settings.count("n_cls_tokens", 0),
        num_styles=num_styles,
        style_classes=settings.count("noise_classes", 1, None) if num_styles else 1,
        normalized=settings.flag("use_qknorm"),
        rotary=settings.flag("use_rope"),
    )
    side, channels = settings.count("input_size", most=_LONGEST_SIDE), settings.count("in_channels")
    shape = (settings.count("out_channels", default=channels), side, side)
    return DiT(sample_shape=shape, noise_channels=channels, size=size, num_classes=num_classes)


def _encoder(settings: _Settings, num_classes: int | None) -> MaskedAutoencoder:
    sizes = {"width": settings.count("base_channels"), "patch": settings.count("input_patch_size", default=1, most=_LONGEST_SIDE)}
    settings.count("patch_size", default=MASK_SIDE)
    return MaskedAutoencoder((settings.count("in_channels"),), depths=settings.counts("layers"), num_classes=num_classes, **sizes)


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
        if self._has_leading_axis:
            return [weight[None]]
        if self._is_kernel:
            return [weight.permute((2, 3, 1, 0) if weight.ndim == 4 else (1, 0))]
        return list(weight.chunk(len(self.released)))

    def to_ours(self, arrays: Sequence[Tensor]) -> Tensor:
        """Return our weight from the arrays of the release: undo `to_release`."""
        if len(arrays) > 1:
            return torch.cat(tuple(arrays))
        if self._has_leading_axis:
            return arrays[0][0]
        if self._is_kernel:
            return arrays[0].permute((3, 2, 0, 1) if arrays[0].ndim == 4 else (1, 0))
        return arrays[0]

    def released_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays of the release."""
        parts = self.to_release(torch.empty(self.shape, device="meta"))
        return {name: tuple(part.shape) for name, part in zip(self.released, parts, strict=True)}

    @property
    def _is_kernel(self) -> bool:
        return self.released[0].endswith("/kernel")

    @property
    def _has_leading_axis(self) -> bool:
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
