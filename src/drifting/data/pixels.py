"""Convert images between bytes, as in files, and floats in [-1, 1], as in networks."""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor


def to_signed(images: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return bytes as images in [-1, 1]; floats are returned unchanged."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def to_bytes(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Return images in [-1, 1] as bytes, rounded and clamped."""
    return ((images + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
