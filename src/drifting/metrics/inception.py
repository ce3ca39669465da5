"""The Inception network: its features, the 2,048 numbers per image that define FID, and the Inception Score of its classes.

    score = exp( mean over samples of KL(p(class | sample) || mean over samples of p(class | sample)) )

is high if each sample has one clear class and all samples together have many; it lies between 1 and the number of classes. It
depends on the number of samples that share a mean. Here these are parts of 5,000, and the result is the mean of their scores, as
published for 50,000 samples in 10 parts. It uses no real images.

The network is the TorchScript file that NVIDIA publishes with StyleGAN2-ADA, converted from the original graph of 2015 with its own
resizing to 299 x 299; other Inception weights give other numbers. It is about 90 MiB, and its license is not that of this library.

torch.jit.load runs the code of the file. Only this module calls it, after it checked the hash of the file.

Source: Karras et al., "Training generative adversarial networks with limited data" (2020), release stylegan2-ada-pytorch;
Salimans et al., "Improved techniques for training GANs" (2016), section 4 (the score).

Shapes: n images, c channels, h x w pixels, d features (2,048), k classes (1,008).
"""

import hashlib
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from drifting._files import atomic_path
from drifting.errors import InputError

URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
_TIMEOUT = 30


class Inception:
    """The Inception network: bytes of images with 1 or 3 channels, of any size -> float32 features on the device of the images.

    Args:
        network: the published TorchScript module.
        device: device of the module.
        batch_size: number of images in one pass.
    """

    def __init__(self, network: Callable[..., Tensor], device: torch.device | str, batch_size: int) -> None:
        self._network, self._device, self._batch_size = network, device, batch_size

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the features that define FID."""
        return self._apply(images, return_features=True)

    def probabilities(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the class probabilities that define the Inception Score: those without the bias of the last layer."""
        return self._apply(images, no_output_bias=True)

    @torch.no_grad()
    def _apply(self, images: UInt8[Tensor, "n c h w"], **options: bool) -> Tensor:
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3) or len(images) == 0:
            raise InputError(
                f"images are {images.dtype} of the shape {tuple(images.shape)}: pass uint8 [n, c, h, w] of 1 or 3 channels, "
                "which is (images * 127.5 + 128).clamp(0, 255) of images in [-1, 1]"
            )
        parts = images.expand(-1, 3, -1, -1).split(self._batch_size)
        return torch.cat([self._network(part.to(self._device).float(), **options) for part in parts]).to(images.device)


def load_inception(
    path: Path | None = None, *, check_hash: bool = True, device: torch.device | str = "cpu", batch_size: int = 64
) -> Inception:
    """Return the network that maps images to their Inception features.

    Args:
        path: the TorchScript file; None for the file in torch's cache folder, which is downloaded the first time.
        check_hash: whether to refuse a file that is not byte for byte the published one.
        device: device of the network.
        batch_size: number of images in one pass.

    Raises:
        InputError: if the file is missing, cannot be downloaded, or is not the published TorchScript file.
    """
    file = _downloaded() if path is None else path
    if not file.is_file():
        raise InputError(f"path is '{file}', which is not a file: download {URL}, or pass None to have it downloaded")
    if check_hash:
        _check(file, f"path is '{file}'")
    try:
        network = torch.jit.load(file, map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"path is '{file}', which is not a TorchScript file ({reason}): download {URL}") from None

    return Inception(network, device, batch_size)


def _check(file: Path, problem: str) -> None:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        raise InputError(
            f"{problem}: its sha256 is {digest.hexdigest()[:16]}..., not the published {SHA256[:16]}...; download {URL} again, "
            "or pass check_hash=False if you trust it: loading runs its code"
        )


def _downloaded() -> Path:
    """Return the file in torch's cache folder, downloaded if it is not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[1]
    if not file.exists():
        try:
            with (
                atomic_path(file) as scratch,
                urllib.request.urlopen(URL, timeout=_TIMEOUT) as answer,
                scratch.open("wb") as stream,
            ):
                shutil.copyfileobj(answer, stream)
                stream.flush()
                _check(scratch, "path is None, so the Inception was downloaded")
        except OSError as error:  # URLError, timeouts and a folder that cannot be written are all OSErrors
            raise InputError(
                f"path is None and {URL} cannot be downloaded to '{file.parent}' ({error}): "
                "download it on another machine and pass its path"
            ) from None
    return file


class RunningInceptionScore:
    """The score of probabilities added in batches of any size.

    Args:
        part: number of samples that share a mean. An incomplete last part is left out, unless it is the only one.
    """

    def __init__(self, part: int = 5000) -> None:
        self._part, self._count = part, 0
        self._sum: Tensor | None = None
        self._negative_entropy = 0.0
        self._scores: list[float] = []

    @torch.no_grad()
    def add(self, probabilities: Float[Tensor, "n k"]) -> None:
        """Add the class probabilities of some samples."""
        while len(probabilities) > 0:
            space = self._part - self._count
            self._add(probabilities[:space].double().cpu())
            probabilities = probabilities[space:]
            if self._count == self._part:
                self._scores.append(self._score())
                self._count, self._sum, self._negative_entropy = 0, None, 0.0

    def _add(self, probabilities: Float[Tensor, "n k"]) -> None:
        total = probabilities.sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._negative_entropy += float(torch.xlogy(probabilities, probabilities).sum())
        self._count += len(probabilities)

    def _score(self) -> float:
        if self._sum is None:
            raise InputError("probabilities are of 0 samples: the score needs at least 1")
        mean = self._sum / self._count
        return float((self._negative_entropy / self._count - torch.xlogy(mean, mean).sum()).exp())

    def score(self) -> float:
        """Return the mean of the scores of all parts; raises InputError before the first sample."""
        return sum(self._scores) / len(self._scores) if self._scores else self._score()
