"""The transformer against outputs of the authors' release, with the release's own weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting.generators.dit import DiT, DiTSize

FOLDER = os.environ.get("DRIFTING_REFERENCE")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="DRIFTING_REFERENCE names no folder with outputs of the release")

# Module of the release -> ours, in the network and in a block; a kernel is a transposed weight.
NETWORK = {
    "Embed_0": "condition.classes",
    "RMSNorm_0": "condition.norm",
    "TimestepEmbedder_0/TorchLinear_0": "condition.guidance.0",
    "TimestepEmbedder_0/TorchLinear_1": "condition.guidance.2",
    "LightningDiT_0/TorchLinear_0": "embed",
    "LightningDiT_0/TorchLinear_1": "context",
    "LightningDiT_0/FinalLayer_0/RMSNorm_0": "norm",
    "LightningDiT_0/FinalLayer_0/TorchLinear_0": "modulation",
    "LightningDiT_0/FinalLayer_0/TorchLinear_1": "output",
}
BLOCK = {
    "TorchLinear_0": "modulation",
    "RMSNorm_0": "norm_attention",
    "RMSNorm_1": "norm_mlp",
    "Attention_0/TorchLinear_0": "attention.qkv",
    "Attention_0/TorchLinear_1": "attention.output",
    "Attention_0/q_norm": "attention.norm_queries",
    "Attention_0/k_norm": "attention.norm_keys",
    "SwiGLUFFN_0/TorchLinear_0": "mlp.gate",
    "SwiGLUFFN_0/TorchLinear_1": "mlp.value",
    "SwiGLUFFN_0/TorchLinear_2": "mlp.output",
}


class _Msgpack:
    """Read what a file of flax parameters holds: maps, lists, strings, small numbers, bytes, and arrays as extensions."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def bytes(self, count: int) -> bytes:
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, width: int) -> int:
        return int.from_bytes(self.bytes(width), "big")

    def value(self):
        kind = self.number(1)
        for end, make in ((0x80, int), (0x90, self.map), (0xA0, self.list), (0xC0, self.text)):
            if kind < end:
                return make(kind & (0x1F if end == 0xC0 else 0x0F)) if end > 0x80 else kind
        families = {0xC4: self.bytes, 0xC7: self.array, 0xCC: int, 0xD9: self.text}
        for first, make in families.items():
            if first <= kind < first + 3:
                return make(self.number(1 << (kind - first)))
        wide = {0xDC: self.list, 0xDE: self.map}
        return wide[kind & 0xFE](self.number(2 << (kind & 1)))

    def map(self, count: int) -> dict:
        return {self.value(): self.value() for _ in range(count)}

    def list(self, count: int) -> list:
        return [self.value() for _ in range(count)]

    def text(self, count: int) -> str:
        return self.bytes(count).decode()

    def array(self, count: int) -> np.ndarray:
        assert self.number(1) == 1
        shape, kind, data = _Msgpack(self.bytes(count)).value()
        return np.frombuffer(data, kind).reshape(shape)


def _flat(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    leaves = {}
    for name, value in tree.items():
        leaves.update(_flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return leaves


def _our_name(name: str) -> str:
    module, leaf = name.replace("/Dense_0", "").rsplit("/", 1)
    leaf = {"kernel": "weight", "embedding": "weight"}.get(leaf, leaf)
    if module.startswith("LightningDiT_0/blocks_"):
        block, module = module.removeprefix("LightningDiT_0/blocks_").split("/", 1)
        return f"blocks.{block}.{BLOCK[module]}.{leaf}"
    return f"{NETWORK[module]}.{leaf}"


def _state(leaves: dict[str, np.ndarray], num_styles: int) -> dict[str, torch.Tensor]:
    values = {name: torch.tensor(value) for name, value in leaves.items()}
    state = {
        "positions": values.pop("LightningDiT_0/pos_embed")[0],
        "context_tokens": values.pop("LightningDiT_0/cls_embed")[0],
        "condition.styles.weight": torch.cat([values.pop(f"noise_embeds_{index}/embedding") for index in range(num_styles)]),
    }
    return {**state, **{_our_name(name): value.T if name.endswith("kernel") else value for name, value in values.items()}}


def _released(case: str) -> tuple[DiT, dict[str, torch.Tensor]]:
    folder = Path(FOLDER) / case
    facts = json.loads((folder / "metadata.json").read_text())["model_config"]
    size = DiTSize(
        patch=facts["patch_size"],
        width=facts["hidden_size"],
        depth=facts["depth"],
        heads=facts["num_heads"],
        cond_dim=facts["cond_dim"],
        mlp_ratio=facts["mlp_ratio"],
        num_context_tokens=facts["n_cls_tokens"],
        num_styles=facts["noise_coords"],
        style_classes=facts["noise_classes"],
    )
    shape = (facts["in_channels"], facts["input_size"], facts["input_size"])
    network = DiT(sample_shape=shape, size=size, num_classes=facts["num_classes"])
    leaves = _flat(_Msgpack((folder / "ema_params.msgpack").read_bytes()).value())
    network.load_state_dict(_state(leaves, size.num_styles))
    with np.load(folder / "expected.npz") as arrays:
        values = {name: torch.tensor(arrays[name]) for name in arrays}
    return network, {name: value.movedim(-1, 1) if name.endswith("_nhwc") else value for name, value in values.items()}


@pytest.mark.parametrize("case", ["generator_latent", "generator_pixel"])
def test_outputs_are_those_of_the_release(case):
    network, expected = _released(case)
    given = [expected[name] for name in ("noise_nhwc", "labels", "cfg_scale", "style_indices")]
    with torch.no_grad():
        condition, samples = network.condition(*given), network(*given)
    torch.testing.assert_close(condition, expected["condition"], rtol=0, atol=1e-6)
    torch.testing.assert_close(samples, expected["output_nhwc"], rtol=0, atol=3e-6)
