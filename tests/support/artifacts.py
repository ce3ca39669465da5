"""Artifacts of the release's format, made up: small networks with random weights."""

import json
import os
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from drifting.hub import build_network, write_artifact

REFERENCE = os.environ.get("DRIFTING_REFERENCE")
needs_reference = pytest.mark.skipif(REFERENCE is None, reason="DRIFTING_REFERENCE names no folder with outputs of the release")

GENERATOR = {
    "cond_dim": 12,
    "num_classes": 5,
    "noise_classes": 6,
    "noise_coords": 3,
    "input_size": 8,
    "in_channels": 4,
    "n_cls_tokens": 2,
    "patch_size": 2,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 4.0,
    "out_channels": 4,
    **dict.fromkeys(("use_qknorm", "use_swiglu", "use_rope", "use_rmsnorm"), True),
}
ENCODER = {
    "base_channels": 8,
    "patch_size": 2,
    "dropout_prob": 0.0,
    "layers": [1, 2, 1, 1],
    "in_channels": 3,
    "use_bf16": False,
    "input_patch_size": 1,
    "num_classes": 4,
}
DEFAULTS = {"gen": GENERATOR, "mae": ENCODER}


def metadata_for(kind: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return metadata of a small network; a setting of ... is left out."""
    settings = {name: value for name, value in {**DEFAULTS[kind], **changes}.items() if value is not ...}
    return {"kind": kind, "model_config": settings}


def make_artifact(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write an artifact of random weights and return its folder."""
    metadata = metadata_for(kind, changes)
    torch.manual_seed(len(str(metadata)))
    network = build_network(metadata, "made up")
    # Everything counts: no gate is closed, and no bias is zero.
    weights = {name: torch.randn(value.shape).mul(0.3).add(0.1).to(dtype) for name, value in network.state_dict().items()}
    write_artifact(folder, metadata, network, weights.__getitem__)
    return folder


def tree_of(folder: Path) -> dict[str, Any]:
    """Return the tree of an artifact as the library reads it: maps of (shape, dtype, bytes)."""
    extension = {"ext_hook": lambda code, data: msgpack.unpackb(data)}
    return msgpack.unpackb((folder / "ema_params.msgpack").read_bytes(), **extension)


def packed(array: np.ndarray | list[Any], code: int = 1) -> msgpack.ExtType:
    """Return an array as flax writes it, or an extension of this type around the values of a list."""
    if isinstance(array, np.ndarray):
        array = [list(array.shape), array.dtype.name, array.tobytes()]
    return msgpack.ExtType(code, msgpack.packb(array))


def rewrite(folder: Path, tree: dict[str, Any]) -> None:
    """Write a tree, as `tree_of` gives it or of any other values, in place of an artifact's."""

    def pack(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: pack(each) for name, each in value.items()}
        return packed(value) if isinstance(value, list) else value

    (folder / "ema_params.msgpack").write_bytes(msgpack.packb(pack(tree)))


def reconfigure(folder: Path, **changes: Any) -> None:
    """Change settings in the metadata of an artifact; one of ... is left out."""
    metadata = json.loads((folder / "metadata.json").read_text())
    settings = {**metadata["model_config"], **changes}
    metadata["model_config"] = {name: value for name, value in settings.items() if value is not ...}
    (folder / "metadata.json").write_text(json.dumps(metadata))


def expected(case: str) -> dict[str, torch.Tensor]:
    """Return what the release computed, channels first."""
    with np.load(Path(REFERENCE or "") / case / "expected.npz") as arrays:
        values = {name: torch.tensor(arrays[name]) for name in arrays}
    return {name.removesuffix("_nhwc"): value.movedim(-1, 1) if name.endswith("_nhwc") else value for name, value in values.items()}
