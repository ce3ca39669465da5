"""Caches of latents whose numbers the tests choose themselves, with no auto-encoder."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from drifting._json import save_json
from drifting.data.latents import INDEX, CacheIndex, shard_path


def make_index(count: int, *, classes: int | None = None, shard_size: int = 5, **facts) -> CacheIndex:
    """Return the index of a cache of latents 2 x 3 x 3."""
    names = None if classes is None else tuple(f"n{label}" for label in range(classes))
    given = {"vae": "a/vae", "vae_fingerprint": "f00d", "scale": 0.5, "shift": 1.0, "latent_shape": (2, 3, 3), "image_size": 24}
    given |= {"split": "train", "files": "beef", **facts}
    return CacheIndex(count=count, class_names=names, shard_size=shard_size, **given)


def write_cache(folder: Path, moments: Tensor, labels: Tensor | None = None, **facts) -> CacheIndex:
    """Write moments [s, 2, 4, 3, 3] and their labels."""
    index = make_index(len(moments), classes=None if labels is None else int(labels.max()) + 1, **facts)
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / INDEX, index.to_json())
    for number, rows in enumerate(index.shards):
        tensors = {"moments": moments[rows.start : rows.stop].half()}
        if labels is not None:
            tensors["labels"] = labels[rows.start : rows.stop].clone()
        save_file(tensors, shard_path(folder, number), metadata={"latents": f"{index.fingerprint()} {number} unchecked"})
    return index


def told_apart(count: int, spread: float = 0.0) -> Tensor:
    """Return moments whose mean is the number of the image, below 0 for its mirror image, and their standard deviation."""
    means = torch.arange(1, count + 1.0)[:, None] * torch.tensor([1.0, -1.0])
    log_variance = torch.full_like(means, 2 * torch.tensor(spread).log().clamp(min=-30).item())
    return torch.stack([means, log_variance], -1).repeat_interleave(2, -1)[..., None, None].expand(-1, -1, -1, 3, 3).contiguous()
