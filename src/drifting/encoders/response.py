"""How strongly a feature encoder responds to changes of real images: one that does not see a change cannot teach it.

Equation, for images x_i and their changed versions x_i', per feature and over all locations:

    response = mean_i |f(x_i) - f(x_i')| / mean_(i != j) |f(x_i) - f(x_j)|

It is near or above 1 if a changed image is as far from the image as another one, and 0 if the features do not see the change.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.encoders.base import FeatureEncoder

# Images whose features are compared: the mean distance between them is known to a few percent.
MOST_IMAGES = 32
# A change that moves the images themselves less than this, relative to the distance between them, tells nothing about an encoder:
# gray images in three channels cannot be recolored.
_SMALLEST_CHANGE = 0.2
_COLORS = 3
_SEED = 0


@torch.no_grad()
def responses(encoder: FeatureEncoder, images: Float[Tensor, "b c h w"], *, colors: bool = True) -> dict[str, float]:
    """Return response/CHANGE/FEATURE of the first images, at least two; CHANGE is "shuffled" pixels, or "recolored" images.

    A change that hardly changes the images is left out, and so is a feature that is the same for all images. No random number of
    another stream is drawn.

    Args:
        encoder: the feature encoder.
        images: real images, as the encoder takes them.
        colors: whether the channels are colors.
    """
    images = images[:MOST_IMAGES]
    changes: dict[str, Callable[[Tensor], Tensor]] = {"shuffled": _shuffled}
    if colors and images.shape[1] == _COLORS:
        changes["recolored"] = lambda values: values.roll(1, dims=1)
    found, before = {}, encoder(images)
    pixels = images.flatten(1)[:, None]
    for name, change in changes.items():
        changed = change(images)
        moved = _response(pixels, changed.flatten(1)[:, None])
        if moved is None or moved < _SMALLEST_CHANGE:
            continue
        after = encoder(changed)
        for feature, value in before.items():
            if (response := _response(value, after[feature])) is not None:
                found[f"response/{name}/{feature}"] = response
    return found


def _shuffled(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return images whose pixels are in a random order, another one for each image; all channels of a pixel stay together."""
    rng = torch.Generator().manual_seed(_SEED)
    flat = images.flatten(2)
    order = torch.stack([torch.randperm(flat.shape[2], generator=rng) for _ in range(len(flat))]).to(flat.device)
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(images)


def _response(before: Float[Tensor, "b k d"], after: Float[Tensor, "b k d"]) -> float | None:
    """Return the response of one feature; None if it is the same for all images."""
    before, after = before.float(), after.float()
    among = float(torch.cdist(before.transpose(0, 1), before.transpose(0, 1)).mean()) * len(before) / (len(before) - 1)
    size = float(torch.linalg.vector_norm(before, dim=2).mean())
    return None if among <= 1e-6 * size or among == 0 else float(torch.linalg.vector_norm(before - after, dim=2).mean()) / among
