import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from drifting.checkpoint import load_tensors, load_weights, save_tensors
from drifting.encoders.mae import MaskedAutoencoder, mae_loss, random_mask
from drifting.encoders.mae_features import MAEFeatures, available_features
from drifting.encoders.pooling import multi_scale, norm_x
from drifting.errors import InputError
from drifting.hub import read_artifact

REFERENCE = os.environ.get("DRIFTING_REFERENCE")


def released_model(case: str) -> tuple[MaskedAutoencoder, torch.Tensor, dict[str, torch.Tensor]]:
    """Return the network, its images and what the release makes of them, channels first."""
    artifact = read_artifact(Path(REFERENCE) / case)
    settings = artifact.metadata["model_config"]
    with np.load(artifact.folder / "expected.npz") as arrays:
        expected = {name: torch.tensor(arrays[name]) for name in arrays}
    for name in ("image", "reconstruction"):
        expected[name] = expected.pop(f"{name}_nhwc").permute(0, 3, 1, 2)
    names = {"width": "base_channels", "patch": "input_patch_size", "num_classes": "num_classes", "depths": "layers"}
    network = MaskedAutoencoder(expected["image"].shape[1:], **{ours: settings[theirs] for ours, theirs in names.items()})
    network.load_state_dict({name: artifact.read(name) for name in artifact.places})
    return network, expected.pop("image"), expected


def _network(shape=(3, 16, 16), seed=0, **kwargs) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    return MaskedAutoencoder(shape, **{"width": 8, "num_classes": 5, "depths": (1, 2, 3, 1), **kwargs})


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


@pytest.mark.skipif(REFERENCE is None, reason="DRIFTING_REFERENCE names no folder with outputs of the release")
@pytest.mark.parametrize("case", ["mae_latent", "mae_pixel"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1.5e-5)])
def test_outputs_are_those_of_the_release(case, dtype, tolerance):
    network, images, expected = released_model(case)
    network, images = network.to(dtype), images.to(dtype)
    with torch.no_grad():
        reconstruction, logits = network(images)
        features = MAEFeatures(network)(images)
    ours = {"reconstruction": reconstruction, "logits": logits, **{f"act_{name}": value for name, value in features.items()}}
    assert ours.keys() == expected.keys()
    errors = {name: float((value - expected[name]).abs().max()) for name, value in ours.items()}
    assert {name: error for name, error in errors.items() if not error < tolerance} == {}


@pytest.mark.parametrize(("shape", "patch"), [((1, 28, 28), 1), ((3, 32, 32), 4), ((4, 12, 20), 2), ((2, 8, 8), 1)])
def test_shapes_follow_the_images(shape, patch):
    network, images = _network(shape, patch=patch), _images(2, *shape)
    grid = (shape[1] // patch, shape[2] // patch)
    reconstruction, logits = network(images, random_mask(2, grid, torch.Generator()))
    assert network.grid == grid
    assert reconstruction.shape == network.patches(images).shape == (2, shape[0] * patch**2, *grid)
    assert logits.shape == (2, 5)
    assert {name: tuple(value.shape[1:]) for name, value in network.maps(images).items()} == network.map_shapes
    assert network.map_shapes["conv1"] == (8, *grid)
    assert network.map_shapes["layer4"] == network.map_shapes["layer4_blk1"] == (64, -(-grid[0] // 8), -(-grid[1] // 8))
    assert network.embed(images).shape == (2, 64)


def test_patches_are_those_of_the_loops():
    network, images = _network((3, 8, 12), patch=4), _images(2, 3, 8, 12)
    patches = network.patches(images)
    for row in range(8):
        for column in range(12):
            channel = 3 * (4 * (row % 4) + column % 4)
            assert torch.equal(patches[:, channel : channel + 3, row // 4, column // 4], images[:, :, row, column])


def test_features_are_those_of_the_maps():
    network, images = _network((3, 16, 16), patch=2), _images(2, 3, 16, 16)
    names = available_features(network)
    features = MAEFeatures(network, names)(images)
    assert tuple(features) == names
    assert torch.equal(features["norm_x"], norm_x(network.patches(images)))
    for name, map in network.maps(images).items():
        for key, value in multi_scale(name, map).items():
            assert torch.equal(features[key], value)


def test_every_second_block_is_a_feature_by_default():
    network = _network(depths=(3, 4, 1, 2))

    def blocks(every: int) -> set[str]:
        return {name for name in MAEFeatures(network, every=every).names if re.fullmatch(r"layer\d_blk\d", name)}

    assert blocks(2) == {"layer1_blk2", "layer2_blk2", "layer2_blk4", "layer4_blk2"}
    assert blocks(3) == {"layer1_blk3", "layer2_blk3"}
    assert len(blocks(1)) == 10
    assert MAEFeatures(network).names == available_features(network, 2)


def test_features_come_in_the_order_asked_for():
    shapes = [
        (key, *value.shape) for key, value in MAEFeatures(_network(), ["layer3_std", "norm_x"])(_images(2, 3, 16, 16)).items()
    ]
    assert shapes == [("layer3_std", 2, 1, 32), ("norm_x", 2, 1, 3)]


def test_gradients_flow_to_the_images_and_weights_are_frozen():
    encoder = MAEFeatures(_network())
    images = _images(2, 3, 16, 16).requires_grad_()
    sum(value.square().sum() for value in encoder.train()(images).values()).backward()
    assert bool((images.grad != 0).all())
    assert not encoder.autoencoder.training
    assert all(value.grad is None and not value.requires_grad for value in encoder.parameters())


@pytest.mark.parametrize("settings", [{"patch": 1}, {"patch": 2, "num_classes": None}])
def test_every_weight_learns(settings):
    network, images = _network(**settings), _images(4, 3, 16, 16)
    mask = random_mask(4, network.grid, torch.Generator().manual_seed(0))
    reconstruction, logits = network(images, mask)
    loss = mae_loss(reconstruction, network.patches(images), mask)
    (loss if logits is None else loss + cross_entropy(logits, torch.arange(4))).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_hidden_places_are_not_seen_and_the_others_are():
    network, images = _network(patch=2), _images(2, 3, 16, 16)
    mask = random_mask(2, network.grid, torch.Generator().manual_seed(0))
    hidden = mask.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    assert 0.2 < float(hidden.float().mean()) < 0.8
    outputs = network(images, mask)
    for change, same in [(hidden, True), (~hidden, False)]:
        for before, after in zip(outputs, network(torch.where(change, 0.3, images), mask), strict=True):
            assert torch.equal(before, after) == same
    blank = torch.where(hidden, 0.0, images)
    assert all(torch.equal(before, after) for before, after in zip(outputs, network(blank), strict=True))


def test_mask_hides_squares_independently():
    mask = random_mask(2000, (8, 12), torch.Generator().manual_seed(0), probability=0.3)
    assert mask.shape == (2000, 1, 8, 12)
    squares = mask[:, 0].unflatten(2, (6, 2)).unflatten(1, (4, 2))
    assert torch.equal(squares, squares[:, :, :1, :, :1].expand_as(squares))
    each = squares[:, :, 0, :, 0].flatten(1).double()
    # Five standard deviations of a frequency, and of a correlation.
    assert float((each.mean(0) - 0.3).abs().max()) < 5 * (0.3 * 0.7 / 2000) ** 0.5
    correlation = torch.corrcoef(each.T) - torch.eye(24)
    assert float(correlation.abs().max()) < 5 / 2000**0.5
    assert torch.equal(mask, random_mask(2000, (8, 12), torch.Generator().manual_seed(0), probability=0.3))
    assert random_mask(3, (4, 4), torch.Generator(), probability=1.0).all()
    assert not random_mask(3, (4, 4), torch.Generator(), probability=0.0).any()


def test_loss_is_that_of_the_loops_and_ignores_what_is_seen():
    reconstruction, patches = _images(2, 6, 4, 4).double(), _images(2, 6, 4, 4).double().flip(0)
    mask = random_mask(2, (4, 4), torch.Generator().manual_seed(1))
    places = [(i, row, column) for i in range(2) for row in range(4) for column in range(4) if mask[i, 0, row, column]]
    assert 0 < len(places) < 32
    squares = [(reconstruction[i, c, y, x] - patches[i, c, y, x]) ** 2 for i, y, x in places for c in range(6)]
    expected = float(sum(squares)) / len(squares)
    assert float(mae_loss(reconstruction, patches, mask)) == pytest.approx(expected, rel=1e-12)
    elsewhere = torch.where(mask, reconstruction, torch.nan).requires_grad_()
    loss = mae_loss(elsewhere, patches, mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(elsewhere.grad != 0, mask.expand_as(patches))
    assert float(mae_loss(reconstruction, patches, torch.zeros_like(mask))) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_precision_are_computed_with_in_that_of_the_network(dtype):
    encoder, images = MAEFeatures(_network()), _images(2, 3, 16, 16).to(dtype)
    expected = encoder(images.float())
    for name, value in encoder(images).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])


def test_half_precision_has_losses_and_features_in_float32():
    network, images, mask = _network(), _images(2, 3, 16, 16), random_mask(2, (16, 16), torch.Generator().manual_seed(0))
    exact = mae_loss(network(images, mask)[0], images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, _ = network(images, mask)
        loss = mae_loss(reconstruction, images, mask)
        features = MAEFeatures(network)(images)
    assert reconstruction.dtype == torch.bfloat16
    assert {loss.dtype, *(value.dtype for value in features.values())} == {torch.float32}
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


def test_weights_go_through_a_file(tmp_path):
    saved, other = MAEFeatures(_network()), MAEFeatures(_network(seed=1))
    save_tensors(tmp_path / "encoder.safetensors", saved.state_dict())
    load_weights(other, load_tensors(tmp_path / "encoder.safetensors"), "encoder")
    images = _images(2, 3, 16, 16)
    assert torch.equal(saved(images)["layer4_mean"], other(images)["layer4_mean"])
    with pytest.raises(InputError, match="do not fit"):
        load_weights(_network(width=4), saved.autoencoder.state_dict(), "encoder")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _network(patch=5), "patch is 5"),
        (lambda: _network((3, 16, 20), patch=8), "16 x 20"),
        (lambda: _network(patch=0), "patch is 0"),
        (lambda: _network((3,), patch=0), "which are of any size"),
        (lambda: _network(depths=(1, 2, 3)), "depths is"),
        (lambda: _network(depths=(1, 2, 0, 1)), "depths is"),
        (lambda: _network()(_images(2, 3, 32, 32)), r"images are \(3, 32, 32\)"),
        (lambda: _network()(_images(2, 1, 16, 16)), r"images are \(1, 16, 16\)"),
        (lambda: random_mask(2, (7, 8), torch.Generator()), "side is 2"),
        (lambda: random_mask(2, (8, 8), torch.Generator(), probability=1.5), "probability is 1.5"),
        (lambda: MAEFeatures(_network(), ["layer2_blk3"]), "did you mean 'layer2_blk"),
        (lambda: MAEFeatures(_network(), ["layer4_mean_4"]), "features has 'layer4_mean_4'"),
        (lambda: MAEFeatures(_network(), ["conv1", "conv1"]), "each once"),
        (lambda: MAEFeatures(_network(), []), "at least one"),
        (lambda: MAEFeatures(_network(), every=0), "every is 0"),
        (lambda: MAEFeatures(_network())(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), r"images are torch\.uint8: pass floats"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
