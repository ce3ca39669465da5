"""The handwritten digits that scikit-learn includes: small real images without a download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting.data.dataset import ImageData
from drifting.data.pixels import to_bytes
from drifting.data.sources import InMemorySource


class LabeledSplit(NamedTuple):
    """A fixed, stratified split of a labeled data set. Images are [s, channels, height, width] in [-1, 1]."""

    train: Float[Tensor, "s c h w"]
    train_labels: Int[Tensor, " s"]
    held_out: Float[Tensor, "t c h w"]
    held_out_labels: Int[Tensor, " t"]


def load_digits() -> LabeledSplit:
    """Return the 1797 digits of 8 x 8 pixels. The same fifth of each class is always held out.

    Source: scikit-learn's `load_digits`, the test part of "Optical Recognition of Handwritten Digits" (UCI).
    """
    from sklearn.datasets import load_digits as embedded_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = embedded_digits(return_X_y=True)
    images = (np.asarray(pixels) / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, np.asarray(labels), test_size=0.2, stratify=labels, random_state=0)
    train, held_out, train_labels, held_out_labels = map(torch.from_numpy, parts)
    return LabeledSplit(train, train_labels, held_out, held_out_labels)


@dataclass(frozen=True, kw_only=True)
class DigitsData(ImageData):
    """Handwritten digits of 8 x 8 pixels, included in scikit-learn."""

    num_classes: ClassVar[int | None] = 10  # pyright: ignore[reportIncompatibleVariableOverride] - always, and no setting
    conditional: ClassVar[bool] = True  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return (1, 8, 8)

    @property
    def title(self) -> str:
        """Name of the data in pictures."""
        return "digits"

    def source(self, seed: int, bank: Any = None, **options: Any) -> InMemorySource:
        """Return the training images."""
        del seed, bank, options
        split = load_digits()
        return InMemorySource(split.train, split.train_labels)

    def depict(self, drawing: Any) -> list[Path]:
        """Draw images, and the nearest of the training images."""
        return drawing.images(to_bytes(load_digits().train))

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        """Ask classifiers of digits."""
        return evaluation.digits(load_digits())
