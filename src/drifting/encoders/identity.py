"""The sample itself as its only feature: enough for points and small images, not for natural ones (the kernel goes flat)."""

from jaxtyping import Float
from torch import Tensor

from drifting.encoders.base import Features


def identity(samples: Float[Tensor, "b *sample"]) -> Features:
    """Return each sample, flattened, as one location of the feature "sample"."""
    return {"sample": samples.flatten(1)[:, None, :]}
