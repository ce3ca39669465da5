import pytest
import torch
from torch.nn.functional import conv2d, pixel_shuffle, silu

from drifting.errors import InputError
from drifting.nn.upsampling import Decoder, double, smoothed


def test_every_place_makes_the_four_that_it_stands_for():
    maps = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(0))
    doubled = double(maps)
    assert doubled.shape == (2, 6, 6, 2)
    for row in range(6):
        for column in range(6):
            part = 2 * (row % 2) + column % 2
            assert torch.equal(doubled[:, row, column], maps[:, row // 2, column // 2, 2 * part : 2 * part + 2])


def _shuffled(maps: torch.Tensor) -> torch.Tensor:
    # pixel_shuffle has the four parts innermost, here they are outermost.
    return pixel_shuffle(maps.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


def _through(blocks: torch.nn.ModuleList, maps: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        maps = maps + conv2d(silu(maps), block.weight, block.bias, padding=1)
    return silu(maps)


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("doublings", [2, 3])
def test_decoder_is_blocks_then_a_convolution_of_single_places_then_one_of_three_by_three(smoothing, blocks, doublings):
    torch.manual_seed(0)
    options = {"smoothing": smoothing, "blocks": blocks, "doublings": doublings}
    decoder, features = Decoder(5, (2, 8, 8), 3, **options), torch.randn(4, 5)
    side, channels = (2, 6) if doublings == 2 else (1, 12)
    quarter = decoder.spread(features).reshape(4, side, side, channels).movedim(-1, 1)
    if doublings == 3:
        assert len(decoder.early_blocks) == blocks
        eighth = _through(decoder.early_blocks, quarter)
        quarter = _shuffled(conv2d(eighth, decoder.early.weight[:, :, None, None], decoder.early.bias))
    assert len(decoder.blocks) == blocks
    quarter = _through(decoder.blocks, quarter)
    half = _shuffled(conv2d(quarter, decoder.first.weight[:, :, None, None], decoder.first.bias))
    expected = _shuffled(conv2d(silu(half), decoder.second.weight, decoder.second.bias, padding=1))
    torch.testing.assert_close(decoder(features), smoothed(expected) if smoothing else expected)


@pytest.mark.parametrize("shape", [(1, 8, 12), (1, 6, 6), (1, 0, 0)])
def test_images_must_be_squares_of_a_side_divisible_by_four(shape):
    with pytest.raises(InputError, match="divisible by 4"):
        Decoder(5, shape, 3)


def test_three_doublings_need_a_side_divisible_by_eight_and_there_are_no_others():
    with pytest.raises(InputError, match=r"image_shape is \(1, 12, 12\).*divisible by 8"):
        Decoder(5, (1, 12, 12), 3, doublings=3)
    with pytest.raises(InputError, match="doublings is 4: pass 2 or 3"):
        Decoder(5, (1, 16, 16), 3, doublings=4)


def test_smoothing_stops_alternating_pixels_and_leaves_even_surfaces_alone():
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    for pattern in (rows, columns, rows + columns):
        alternating = 1.0 - 2.0 * (pattern % 2)
        assert float(smoothed(alternating.expand(2, 3, 8, 8))[:, :, 1:-1, 1:-1].abs().max()) < 1e-6
    even = torch.tensor([0.3, -0.7, 0.0])[None, :, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(smoothed(even), even)
    image = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    window = image[0, 0, 1:4, 1:4]
    expected = (window * torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])).sum() / 16
    torch.testing.assert_close(smoothed(image)[0, 0, 2, 2], expected)
