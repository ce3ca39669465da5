"""The Inception Score: high if each sample has one clear class and all samples together have many.

    score = exp( mean over samples of KL(p(class | sample) || mean over samples of p(class | sample)) ),

between 1 and the number of classes. It depends on the number of samples that share a mean. Here these are parts of 5,000, and the
result is the mean of their scores, as published for 50,000 samples in 10 parts. It uses no real images.

Source: Salimans et al., "Improved techniques for training GANs" (2016), section 4.

Shapes: n samples, k classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError


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
