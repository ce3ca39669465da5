"""The Frechet distance (FID, on Inception features) and the kernel distance (KID) of two sets of features.

    frechet = |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)      of the Gaussians with the sets' means m and covariances S
    kernel  = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = (x y / d + 1)^3,  over pairs of different samples of a set

The trace of the root is the sum of the singular values of R1^T R2, with R R^T = S. They are computed without squaring them, so
small and zero values keep their digits. Any root R gives the same sum. With at most as many samples as features, the centered
samples are a root, so no d x d matrix is needed. The Frechet distance of finite sets is too large, by about 1/n: compare only
figures of the same counts. The kernel distance is unbiased, so it can be negative.

Source: Heusel et al., "GANs trained by a two time-scale update rule ..." (2017), eq. 6; Binkowski et al., "Demystifying MMD GANs"
(2018). The latter averages over random subsets of 1,000; here all pairs are used, which makes the figure reproducible.

Shapes: n and m samples, d features, r columns of a root.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._files import atomic_path
from drifting.errors import InputError, reason
from drifting.metrics.distances import check_features

_CHUNK = 2**23
# Numbers of a covariance, or of its root: 4 GiB.
LARGEST = 2**29


class Gaussian:
    """Mean and covariance of a set of features, in float64.

    Args:
        mean: mean of the samples.
        covariance: unbiased covariance, with n - 1 in the denominator, as in numpy.cov and the releases of FID.
        count: number of samples; 0 if a published file does not say.
        root: instead of the covariance, a matrix R [d, r] with R R^T = covariance.
    """

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        covariance: Float[Tensor, "d d"] | None = None,
        count: int = 0,
        *,
        root: Float[Tensor, "d r"] | None = None,
    ) -> None:
        if (covariance is None) == (root is None):
            raise InputError("covariance and root are both given, or neither: pass one of them")
        self.mean, self.count, self._covariance, self._root = mean, count, covariance, root

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The covariance, computed from the root if necessary."""
        if self._covariance is not None:
            return self._covariance
        root = self.root()
        return root @ root.T

    @property
    def trace(self) -> Float[Tensor, ""]:
        """The trace of the covariance."""
        return self.covariance.trace() if self._root is None else self._root.square().sum()

    def root(self) -> Float[Tensor, "d r"]:
        """Return R with R R^T = covariance, without columns that are zero up to rounding."""
        return _root(self.covariance) if self._root is None else self._root

    def parts(self) -> tuple[str, Tensor]:
        """Return the stored tensor with its name: "covariance" or "root"."""
        return ("covariance", self.covariance) if self._root is None else ("root", self._root)


class RunningGaussian:
    """Mean and covariance of features added in batches, equal to those of all features together.

    Up to d samples of d features are stored. For more, sums of squares about the mean of each batch are combined by the exact
    update, so a large offset loses no digits.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[Tensor] = []
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    @torch.no_grad()
    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Add a batch of features. Batches can have any size and order.

        Raises:
            InputError: if the feature size differs, or the covariance takes too much memory.
        """
        if features.ndim == 2 and len(features) == 0:
            return
        check_features(features=features)
        size = features.shape[1]
        before = self._rows[0].shape[1] if self._rows else size if self._mean is None else len(self._mean)
        if size != before:
            raise InputError(f"features have {size} columns, those before {before}: use one encoder for all batches")
        check_covariance(self.count + len(features), size)
        if self._mean is None and self.count + len(features) <= size:
            self._rows.append(features.clone())
            self.count += len(features)
            return
        self._release()
        self._join(len(features), *_scatter(features))

    def _release(self) -> None:
        """Convert the stored samples into sums of squares."""
        if self._rows:
            kept, self._rows, self.count = torch.cat(self._rows), [], 0
            self._join(len(kept), *_scatter(kept))

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total = self.count + count
        difference = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(difference, difference) * (self.count * count / total)
        self._mean = self._mean + difference * (count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return the mean and covariance of all features; raises InputError before the second sample."""
        if self.count < 2:
            raise InputError(f"features are of {self.count} samples: a covariance needs at least 2")
        if self._mean is not None and self._scatter is not None:
            return Gaussian(self._mean.clone(), self._scatter / (self.count - 1), self.count)
        rows = torch.cat([batch.double() for batch in self._rows])
        mean = rows.mean(0)
        return Gaussian(mean, count=self.count, root=rows.sub_(mean).div_((self.count - 1) ** 0.5).T.contiguous())


def _scatter(features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Return the mean and the sums of squares about it."""
    batch = features.double()
    mean = batch.mean(0)
    centered = batch - mean
    return mean, centered.T @ centered


def check_covariance(count: int, dimensions: int) -> None:
    """Raise InputError if the covariance or its root, min(n, d) x d numbers in float64, takes too much memory."""
    if min(count, dimensions) * dimensions <= LARGEST:
        return
    samples, side = LARGEST // dimensions, math.isqrt(LARGEST)
    fix = f"use at most {samples} samples or {side} features" if samples >= 2 else f"use at most {side} features"
    size = 8 * min(count, dimensions) * dimensions / 2**30
    raise InputError(f"{count} samples of {dimensions} features need {size:.0f} GB for their covariance: {fix}")


def gaussian_of(features: Float[Tensor, "n d"], weights: Float[Tensor, " n"] | None = None) -> Gaussian:
    """Return mean and covariance of features.

    Args:
        features: features of at least 2 samples.
        weights: weight of each sample, at least 0; equal by default. Only their ratios matter.

    Raises:
        InputError: for fewer than 2 samples (of a weight above 0), values that are not finite, or weights that do not fit.
    """
    if weights is None:
        running = RunningGaussian()
        running.add(features)
        return running.gaussian()
    check_features(features=features)
    if weights.shape != features.shape[:1]:
        raise InputError(f"weights have shape {tuple(weights.shape)}: pass {tuple(features.shape[:1])}, one for each sample")
    wrong = weights[~((weights >= 0) & weights.isfinite())]
    if len(wrong):
        raise InputError(f"weights has {float(wrong[0]):g}: pass finite numbers from 0 on")
    rows, shares = features[weights > 0].double(), weights[weights > 0].to(features.device, torch.float64)
    if len(rows) < 2:
        raise InputError(f"features are of {len(rows)} samples: a covariance needs at least 2")
    check_covariance(*rows.shape)
    shares = shares / shares.sum()
    mean = shares @ rows
    root = ((rows - mean) * (shares / (1 - shares.square().sum())).sqrt()[:, None]).T
    if len(rows) > rows.shape[1]:
        return Gaussian(mean, root @ root.T, len(rows))
    return Gaussian(mean, count=len(rows), root=root)


@torch.no_grad()
def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians, in squared units of the features; never negative.

    Singular covariances, as from fewer samples than features, are exact up to rounding; but see `unreliable`.

    Raises:
        InputError: if the feature sizes differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features have {len(a.mean)} and {len(b.mean)} columns: compute both with the same encoder")
    mean, root = b.mean.to(a.mean), b.root().to(a.mean)
    overlap = torch.linalg.svdvals(a.root().T @ root).sum()
    squared = (a.mean - mean).square().sum() + a.trace + b.trace.to(a.mean) - 2 * overlap
    return max(0.0, float(squared))


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d rank"]:
    """Return R with R R^T = covariance, without columns that are zero up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def unreliable(count: int, dimensions: int) -> str | None:
    """Return a warning if the Frechet distance of so few samples is not reliable, or None."""
    if count > dimensions:
        return None
    return (
        f"{count} samples of {dimensions} features have a singular covariance, so the Frechet distance is far too large: "
        f"use more than {dimensions} samples, or read the kernel distance"
    )


@torch.no_grad()
def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the unbiased squared maximum mean discrepancy under (x y / d + 1)^3, over all pairs, in float64.

    Published KID is often multiplied by 1,000.

    Raises:
        InputError: if a set has fewer than 2 samples, the feature sizes differ or a value is not finite.
    """
    check_features(x=x, y=y)
    if min(len(x), len(y)) < 2:
        raise InputError(f"features are of {len(x)} and {len(y)} samples: the kernel distance needs at least 2 of each")
    x, y = x.double(), y.double()
    cross = _kernel_sum(x, y) / (len(x) * len(y))
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * cross


def _kernel_sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    rows = max(1, _CHUNK // len(y))
    sums = []
    for part in x.split(rows):
        kernel = (part @ y.T).div_(x.shape[1]).add_(1)
        sums.append((kernel * kernel).mul_(kernel).sum())
    return float(torch.stack(sums).sum())


def _mean_of_pairs(x: Float[Tensor, "n d"]) -> float:
    themselves = float((x.square().mean(1) + 1).pow(3).sum())
    return (_kernel_sum(x, x) - themselves) / (len(x) * (len(x) - 1))


def save_gaussian(path: Path, gaussian: Gaussian, *, fingerprint: str = "", more: Mapping[str, Tensor] | None = None) -> None:
    """Write a Gaussian, and `more`, to one safetensors file, atomically; the fingerprint, of what it is, goes into its header."""
    from safetensors.torch import save_file

    name, spread = gaussian.parts()
    tensors = {
        **(more or {}),
        "mean": gaussian.mean.cpu().contiguous(),
        name: spread.cpu().contiguous(),
        "count": torch.tensor(gaussian.count),
    }
    with atomic_path(path) as scratch:
        save_file(tensors, scratch, metadata={"fingerprint": fingerprint})


def load_gaussian(path: Path) -> tuple[Gaussian, str]:
    """Return a Gaussian and its fingerprint; raises InputError if the file is missing, damaged or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint", "")
            name = "root" if "root" in set(file.keys()) else "covariance"
            # Cloned, because the rounding of matrix products depends on the memory layout.
            mean, spread = (file.get_tensor(part).double().clone() for part in ("mean", name))
            gaussian = Gaussian(mean, count=int(file.get_tensor("count")), **{name: spread})
    except FileNotFoundError:
        raise InputError(f"path is '{path}', which does not exist: compute the Gaussian first") from None
    # The last four come from a count that is not a number.
    except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError, TypeError) as error:
        raise InputError(
            f"path is '{path}', which is not a Gaussian that can be read ({reason(error)}): delete it and compute it again"
        ) from None
    return gaussian, fingerprint
