"""Small real images that come with a library: scikit-learn's handwritten digits."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class LabelledSplit(NamedTuple):
    """A fixed, stratified division of a labelled data set. Images are [s, channels, height, width] in [-1, 1]."""

    train: Float[Tensor, "s c h w"]
    train_labels: Int[Tensor, " s"]
    held_out: Float[Tensor, "t c h w"]
    held_out_labels: Int[Tensor, " t"]


def load_digits() -> LabelledSplit:
    """Return the 1797 digits of 8 x 8 pixels, one fifth of each class held out, always the same one.

    Source: scikit-learn's `load_digits`, the test part of "Optical Recognition of Handwritten Digits" (UCI).
    """
    from sklearn.datasets import load_digits as embedded_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = embedded_digits(return_X_y=True)
    images = (np.asarray(pixels) / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, np.asarray(labels), test_size=0.2, stratify=labels, random_state=0)
    train, held_out, train_labels, held_out_labels = map(torch.from_numpy, parts)
    return LabelledSplit(train, train_labels, held_out, held_out_labels)
