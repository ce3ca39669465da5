"""Features of the images themselves beside those of a network."""

import torch

from drifting.encoders.pooling import image_names, norm_x
from drifting.encoders.resnet import ResNet, ResNetFeatures, available_features

IMAGES = 2 * torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) - 1


def _network(channels: int = 3) -> ResNet:
    statistics = ((0.5,) * channels, (0.25,) * channels)
    return ResNet("resnet18", (channels, 16, 16), num_classes=None, small_stem=True, width=4, statistics=statistics)


def test_colors_of_the_images_stand_beside_the_features():
    images = IMAGES
    features = ResNetFeatures(_network(), ["image_std_4", "image_mean", "norm_x", "pixels", "stage3_std", "image_mean_8"])(images)
    assert [tuple(value.shape[1:]) for value in features.values()] == [(16, 3), (1, 3), (1, 3), (1, 768), (1, 16), (4, 3)]
    torch.testing.assert_close(features["image_mean_8"][0, 1], images[0, :, :8, 8:].mean((1, 2)))
    torch.testing.assert_close(features["image_mean"][:, 0], images.mean((2, 3)))
    torch.testing.assert_close(features["image_std_4"][0, 6, 1], (images[0, 1, 4:8, 8:12].var(correction=0) + 1e-6).sqrt())
    assert torch.equal(features["norm_x"], norm_x(images))
    assert torch.equal(features["pixels"][:, 0], images.flatten(1))
    assert "image" not in available_features(_network())
    # Tiles of 8 are for images alone.
    assert not any(name.startswith("stage") and name.endswith("_8") for name in available_features(_network()))


def test_chroma_is_what_is_left_of_colors_beside_gray():
    names = ("chroma_mean", "chroma_std", "chroma_std_4", "image_std")
    encoder = ResNetFeatures(_network().double(), names)
    images = IMAGES.double()
    features = encoder(images)
    axes = torch.tensor([[1, -1, 0], [1, 1, -2]], dtype=torch.float64)
    axes = axes / axes.norm(dim=1, keepdim=True)
    chromas = torch.einsum("dc,bchw->bdhw", axes, images)
    torch.testing.assert_close(features["chroma_mean"][:, 0], chromas.mean((2, 3)))
    tiles = chromas.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).movedim(3, 4)
    spread = (tiles.var((4, 5), correction=0)).flatten(2).mT
    torch.testing.assert_close(features["chroma_std_4"], spread.add(1e-6).sqrt(), rtol=1e-3, atol=1e-3)
    gray = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert float(encoder(gray)["chroma_std"].max()) < 2e-3
    assert "chroma_std" not in available_features(_network(channels=1))


def test_tiles_of_the_images_overlap_by_half_and_are_offered_where_they_cover_the_image():
    (tiles,) = ResNetFeatures(_network(), ["tiles"])(IMAGES).values()
    corners = [(top, left) for top in (0, 4, 8) for left in (0, 4, 8)]
    expected = [IMAGES[:, :, top : top + 8, left : left + 8].movedim(1, 3).flatten(1) for top, left in corners]
    assert torch.equal(tiles, torch.stack(expected, 1))
    offered = {side: "tiles" in image_names((3, side, side)) for side in (4, 8, 10, 16, 28, 32, 64)}
    assert offered == {4: False, 8: True, 10: False, 16: True, 28: True, 32: True, 64: True}
