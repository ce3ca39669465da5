"""A published variational auto-encoder between images and latents, from the library diffusers.

    latent = (mean + exp(log_variance / 2) * noise - shift) * scale,    image = decode(latent / scale + shift)

Shapes: b images, c channels of an image, h x w pixels, k channels of a latent, m = 2 k of its moments, y x x its places.

Source: the latents of the paper are those of Stable Diffusion's auto-encoder, 4 x 32 x 32 for 256 x 256 pixels.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import full_precision
from drifting._lazy import load_published
from drifting.checkpoint import check_finite
from drifting.errors import InputError

DEFAULT = "stabilityai/sd-vae-ft-mse"
# The library clamps log-variances to this range.
_LOG_VARIANCES = (-30.0, 20.0)

Images = Float[Tensor, "b c h w"]
Latents = Float[Tensor, "b k y x"]
Moments = Float[Tensor, "b m y x"]


class VAE(nn.Module):
    """A frozen auto-encoder between images in [-1, 1] and latents with a standard deviation of about 1.

    Args:
        network: an AutoencoderKL of diffusers, or a module with the same interface.
        origin: name or folder that it was loaded from.

    Attributes:
        origin: the same, with the full path of a folder.
        channels: channels of an image.
        latent_channels: channels of a latent.
        reduction: side of an image divided by the side of its latent.
    """

    def __init__(self, network: nn.Module, origin: str | Path = "") -> None:
        super().__init__()
        self.origin = full_name(origin)
        self.network = network.requires_grad_(False).eval()
        facts: Any = network.config
        self.scale, self.shift = float(facts.scaling_factor), float(getattr(facts, "shift_factor", None) or 0.0)
        self.channels, self.latent_channels = int(facts.in_channels), int(facts.latent_channels)
        self.reduction = 2 ** (len(facts.block_out_channels) - 1)

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return the shape of the latent of a square image, or raise InputError if the image has no latent."""
        if image_size < 1 or image_size % self.reduction:
            raise InputError(f"image_size is {image_size}: pass a multiple of {self.reduction}, the pixels to a place of a latent")
        side = image_size // self.reduction
        return self.latent_channels, side, side

    @torch.no_grad()
    def moments(self, images: Images) -> Moments:
        """Return the mean, then the log-variance, of the latents of images, neither shifted nor scaled."""
        return full_precision(self._network.encode(images).latent_dist.parameters)

    def draw(self, moments: Moments, noise: Latents) -> Latents:
        """Return latents drawn from the distribution with these moments, from standard normal noise."""
        return draw_latents(moments, noise, scale=self.scale, shift=self.shift)

    @torch.no_grad()
    def decode(self, latents: Latents, batch_size: int = 16) -> Images:
        """Return images, `batch_size` at a time, on the device of the latents."""
        device = next(self.network.parameters()).device
        parts = (part.to(device) / self.scale + self.shift for part in latents.split(batch_size))
        return torch.cat([full_precision(self._network.decode(part).sample).to(latents.device) for part in parts])

    @property
    def _network(self) -> Any:
        return self.network

    def fingerprint(self) -> str:
        """Return a fingerprint of the weights and of the scale of the latents, 16 hexadecimal digits."""
        digest = hashlib.sha256(f"{self.scale} {self.shift}".encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def draw_latents(moments: Moments, noise: Latents, *, scale: float, shift: float) -> Latents:
    """Return shifted and scaled latents drawn from the distribution with these moments, from standard normal noise."""
    mean, log_variance = full_precision(moments).chunk(2, 1)
    return (mean + (log_variance.clamp(*_LOG_VARIANCES) / 2).exp() * noise - shift) * scale


def full_name(name_or_folder: str | Path) -> str:
    """Return the name of a published auto-encoder, or the whole path of a folder."""
    return str(Path(name_or_folder).resolve()) if name_or_folder and Path(name_or_folder).exists() else str(name_or_folder)


def load_vae(name_or_folder: str | Path = DEFAULT) -> VAE:
    """Return a published auto-encoder. Only safetensors are read; code that comes with them never runs.

    Args:
        name_or_folder: id on the Hugging Face Hub, or a folder made by `save_pretrained`.

    Raises:
        InputError: if the library or the weights are missing.
    """
    network = load_published("vae", str(name_or_folder), "diffusers", "AutoencoderKL", low_cpu_mem_usage=False)
    check_finite(network.state_dict().items(), str(name_or_folder))
    return VAE(network.float(), name_or_folder)
