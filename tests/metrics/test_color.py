import numpy as np
import pytest
import torch

from drifting.errors import InputError
from drifting.metrics import images as comparing
from drifting.metrics.images import color_histogram, color_statistics, compare_colors


def _images(count: int, channels: int, seed: int, size: int = 6) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _flat(rgb: tuple[float, ...], count: int = 2) -> torch.Tensor:
    return torch.tensor(rgb)[None, :, None, None].expand(count, -1, 4, 4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk", [1, 300, 2**22])
def test_statistics_and_histogram_are_those_of_numpy(channels, chunk, monkeypatch):
    monkeypatch.setattr(comparing, "_CHUNK", chunk)
    images = _images(9, channels, 0) * torch.linspace(0.3, 1, channels)[:, None, None] + 0.1
    pixels = images.double().transpose(0, 1).flatten(1).numpy()
    mean, std = color_statistics(images)
    assert mean.tolist() == pytest.approx(pixels.mean(1), rel=1e-12)
    assert std.tolist() == pytest.approx(pixels.std(1), rel=1e-12)
    expected, _ = np.histogramdd(pixels.T.clip(-1, 1), bins=8, range=[(-1, 1)] * channels)
    np.testing.assert_allclose(color_histogram(images), expected / expected.sum(), atol=1e-15)


def test_bins_are_those_of_their_colors():
    histogram = color_histogram(torch.cat([_flat((-1.0, 0.0, 1.0)), _flat((-0.74, 0.3, 0.99))]))
    assert histogram.shape == (8, 8, 8)
    assert histogram[0, 4, 7] == 0.5
    assert histogram[1, 5, 7] == 0.5


def test_values_beyond_the_range_count_as_its_ends():
    assert color_histogram(_flat((-3.0, 1e30, 1.0)))[0, 7, 7] == 1


def test_identical_sets_have_distance_zero_and_disjoint_palettes_one():
    images = _images(5, 3, 0)
    same = compare_colors(images.flip(0), images)
    assert same.histogram_distance == 0
    assert same.mean == pytest.approx(same.real_mean, rel=1e-12)
    assert same.std == pytest.approx(same.real_std, rel=1e-12)
    other = compare_colors(_flat((0.5, 0.5, 0.5)), _flat((-0.5, 0.5, 0.5), count=7))
    assert other.histogram_distance == 1
    assert (other.mean, other.real_mean) == ((0.5, 0.5, 0.5), (-0.5, 0.5, 0.5))
    assert other.std == other.real_std == (0, 0, 0)


def test_distance_is_the_share_of_pixels_that_differ_whatever_the_sizes():
    first, second = _flat((0.5, 0.5, 0.5)), _flat((-0.5, 0.5, 0.5))
    mixed = torch.cat([first, first, first, second])
    found = compare_colors(mixed, torch.ones(3, 3, 9, 5) * 0.5)
    assert found.histogram_distance == 0.25
    assert found.mean[0] == 0.25
    assert found.std[0] == pytest.approx(0.1875**0.5, rel=1e-12)
    assert found.std[1:] == (0, 0)


def test_a_swap_of_channels_is_seen():
    images = _images(20, 3, 0) * torch.tensor([0.2, 1.0, 1.0])[:, None, None]
    assert compare_colors(images.flip(1), images).histogram_distance > 0.5


def test_wrong_images_are_refused():
    images = _images(2, 3, 0)
    with pytest.raises(InputError, match="3 channels and real 1"):
        compare_colors(images, images[:, :1])
    with pytest.raises(InputError, match=r"generated is torch\.uint8"):
        compare_colors(images.byte(), images)
    with pytest.raises(InputError, match="real has the shape"):
        compare_colors(images, images[0])
    with pytest.raises(InputError, match="1 or 3 channels"):
        color_histogram(torch.zeros(2, 4, 3, 3))
    with pytest.raises(InputError, match="not finite"):
        color_statistics(images * torch.nan)
