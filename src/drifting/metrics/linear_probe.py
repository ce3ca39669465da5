"""Linear probe: the accuracy of a linear classifier on features, which measures how well they separate the classes.

Shapes: s training and t test samples, d features.
"""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting.errors import InputError


def linear_probe(
    train: Float[Tensor, "s d"],
    train_labels: Int[Tensor, " s"],
    test: Float[Tensor, "t d"],
    test_labels: Int[Tensor, " t"],
    *,
    iterations: int = 200,
) -> float:
    """Return the test accuracy of a logistic regression on standardized features.

    Args:
        train: features for training.
        train_labels: classes of the training features, at least two.
        test: features for testing.
        test_labels: classes of the test features.
        iterations: largest number of iterations of the fit.

    Raises:
        InputError: if features are not finite, or the training labels are all the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not bool(torch.stack([train.isfinite().all(), test.isfinite().all()]).all()):
        raise InputError("features hold NaN or infinite values: train the encoder with a lower learning rate")
    if len(train_labels.unique()) < 2:
        raise InputError("labels are all the same: a probe needs at least two classes")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=iterations))
    with warnings.catch_warnings():
        # A fit that stops early still is a valid probe.
        warnings.simplefilter("ignore")
        probe.fit(train.double().cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test.double().cpu().numpy(), test_labels.cpu().numpy()))
