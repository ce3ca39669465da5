"""The Frechet distance of torchmetrics for the same features: another implementation of the same formula."""

import pytest
import torch
from torch import nn

from drifting.metrics import frechet_distance, gaussian_of
from drifting.metrics.frechet import RunningGaussian


class _Features(nn.Module):
    """Stands in for the Inception network: features that depend on all pixels."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(3 * 6 * 6, self.num_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.double().flatten(1) / 255 - 0.5) @ self.matrix


def _images(count: int, seed: int, brightest: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(brightest, (count, 3, 6, 6), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize("brightest", [255, 180])
def test_distance_is_that_of_torchmetrics(brightest):
    fid = pytest.importorskip("torchmetrics.image.fid")
    features = _Features()
    try:
        metric = fid.FrechetInceptionDistance(feature=features, normalize=False).set_dtype(torch.float64)
    except (ModuleNotFoundError, TypeError, ValueError) as error:  # of a release without extractors of one's own
        pytest.skip(str(error))
    real, generated, running = _images(200, 2, 255), _images(150, 3, brightest), RunningGaussian()
    for part in real.split(64):
        metric.update(part, real=True)
    for part in generated.split(64):
        metric.update(part, real=False)
        running.add(features(part))
    reference = gaussian_of(features(real))
    assert frechet_distance(running.gaussian(), reference) == pytest.approx(float(metric.compute()), rel=1e-8)
