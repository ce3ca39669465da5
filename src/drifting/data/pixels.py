"""Images as files hold them, bytes, and as networks take them, floats in [-1, 1]."""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor


def to_signed(images: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return images in [-1, 1] from bytes; floats are taken to be so already."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def to_bytes(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Return images in [-1, 1] as bytes, rounded; what lies outside is cut off."""
    return ((images + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
