import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from drifting.checkpoint import load_state_dict, load_weights
from drifting.encoders.pooling import IMAGENET, multi_scale
from drifting.encoders.resnet import (
    STAGES,
    ResNet,
    ResNetFeatures,
    _Block,
    adapt_weights,
    available_features,
)
from drifting.errors import InputError

SHAPE = (3, 16, 16)
# Stages, blocks and convolutions of torchvision's networks, written out from their state dicts.
CONVOLUTIONS = {"resnet10": 2, "resnet18": 2, "resnet50": 3}
DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
ALL = pytest.mark.parametrize(("arch", "small_stem"), [(arch, stem) for arch in DEPTHS for stem in (True, False)])


def _network(arch: str = "resnet18", shape=SHAPE, seed: int = 0, **kwargs) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(arch, shape, **{"num_classes": 5, "width": 4, "small_stem": True, **kwargs})


def _shaken(network: nn.Module) -> nn.Module:
    """Return the network in float64 and evaluation mode, its normalizations far from the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.3 * torch.randn_like(tensor))
            module.running_var.uniform_(0.5, 2)
    return network.double().eval()


def _images(shape=SHAPE, count: int = 3, dtype=torch.float32) -> torch.Tensor:
    return 2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype) - 1


def torchvision_forward(arch: str, state: dict, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return maps, embedding and logits, by the definition of the networks and the names of torchvision's weights."""

    def layer(x, conv, norm, stride):
        weight = state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        numbers = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *numbers, eps=1e-5)

    found, last = {}, CONVOLUTIONS[arch]
    mean, std = (torch.tensor(values).to(images)[:, None, None] for values in IMAGENET)
    large = state["conv1.weight"].shape[2] == 7
    x = functional.relu(layer(((images + 1) / 2 - mean) / std, "conv1", "bn1", 2 if large else 1))
    x = functional.max_pool2d(x, 3, 2, 1) if large else x
    for stage, depth in enumerate(DEPTHS[arch], 1):
        for block in range(depth):
            name, stride, inner = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1, x
            for number in range(1, last + 1):
                here = stride if number == last - 1 else 1
                inner = layer(inner, f"{name}.conv{number}", f"{name}.bn{number}", here)
                inner = functional.relu(inner) if number < last else inner
            short = f"{name}.downsample"
            x = functional.relu(inner + (layer(x, f"{short}.0", f"{short}.1", stride) if f"{short}.0.weight" in state else x))
            found[f"stage{stage}" if block == depth - 1 else f"stage{stage}_block{block + 1}"] = x
    found["embedding"] = x.mean((2, 3))
    found["logits"] = found["embedding"] @ state["fc.weight"].T + state["fc.bias"]
    return found


@pytest.mark.parametrize(("arch", "count", "tensors"), [("resnet18", 11_689_512, 122), ("resnet50", 25_557_032, 320)])
def test_weights_are_those_of_torchvision(arch, count, tensors):
    with torch.device("meta"):
        network = ResNet(arch, (3, 224, 224), num_classes=1000, small_stem=False)
    assert sum(value.numel() for value in network.parameters()) == count
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(shapes) == tensors
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv1.weight"] == ((64, 64, 3, 3) if arch == "resnet18" else (64, 64, 1, 1))
    assert shapes["layer4.0.downsample.0.weight"] == ((512, 256, 1, 1) if arch == "resnet18" else (2048, 1024, 1, 1))
    assert shapes["layer4.1.conv2.weight"] == (512, 512, 3, 3)
    assert ("layer1.0.downsample.0.weight" in shapes) == ("layer1.0.conv3.weight" in shapes) == (arch == "resnet50")
    assert shapes["fc.weight"] == (1000, 512 if arch == "resnet18" else 2048)
    assert {"bn1.running_mean", "layer3.1.bn2.num_batches_tracked", "layer2.0.downsample.1.bias", "fc.bias"} <= shapes.keys()
    assert not [name for name in shapes if not re.fullmatch(r"(conv1|bn1|fc|layer[1-4]\.\d\.\w+(\.[01])?)\.\w+", name)]


@ALL
@pytest.mark.parametrize("side", [16, 19])
def test_every_map_is_that_of_the_definition(arch, small_stem, side):
    network, images = _shaken(_network(arch, (3, side, side), small_stem=small_stem)), _images((3, side, side), 2, torch.float64)
    expected = torchvision_forward(arch, network.state_dict(), images)
    maps = network.maps(images, tuple(network.map_shapes))
    assert {name: tuple(map.shape[1:]) for name, map in maps.items()} == network.map_shapes
    for name, map in maps.items():
        torch.testing.assert_close(map, expected[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.embed(images), expected["embedding"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(images), expected["logits"], rtol=1e-9, atol=1e-9)


def _naive_layer(x: np.ndarray, conv: nn.Conv2d, norm: nn.BatchNorm2d, stride: int) -> np.ndarray:
    """Return convolution and normalization by the batch's statistics, place by place."""
    weight, pad = conv.weight.detach().numpy(), conv.weight.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((side - weight.shape[2]) // stride + 1 for side in x.shape[2:])
    y = np.zeros((len(x), len(weight), rows, columns))
    for b, o, i, j in np.ndindex(*y.shape):
        window = x[b, :, i * stride : i * stride + weight.shape[2], j * stride : j * stride + weight.shape[3]]
        y[b, o, i, j] = (window * weight[o]).sum()
    mean, variance = y.mean((0, 2, 3), keepdims=True), y.var((0, 2, 3), keepdims=True)
    scale, shift = (value.detach().numpy()[None, :, None, None] for value in (norm.weight, norm.bias))
    return (y - mean) / np.sqrt(variance + 1e-5) * scale + shift


@pytest.mark.parametrize(("before", "stride", "expansion"), [(3, 1, 1), (2, 2, 1), (8, 1, 4), (3, 2, 4)])
def test_block_in_training_is_that_of_the_loops(before, stride, expansion):
    block = _shaken(_Block(before, 3 if expansion == 1 else 2, stride, expansion)).train()
    map = torch.randn(2, before, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inner = x = map.numpy()
    # A bottleneck has its stride in the middle, as torchvision's has.
    for number, here in enumerate((stride, 1) if expansion == 1 else (1, stride, 1), 1):
        inner = inner if number == 1 else np.maximum(inner, 0)
        inner = _naive_layer(inner, getattr(block, f"conv{number}"), getattr(block, f"bn{number}"), here)
    short = _naive_layer(x, *block.downsample, stride) if block.downsample is not None else x
    assert (block.downsample is None) == (stride == 1)
    np.testing.assert_allclose(block(map).detach().numpy(), np.maximum(inner + short, 0), rtol=1e-9, atol=1e-9)


def test_bottlenecks_begin_as_their_shortcuts():
    torch.manual_seed(0)
    network = ResNet("resnet50", (3, 16, 16), num_classes=None, small_stem=True, width=4).eval()
    images, stages = torch.rand(2, 3, 16, 16) * 2 - 1, ("stage1", "stage3")
    maps = network.maps(images, tuple(network.map_shapes))
    for stage in stages:
        assert maps[stage].any()
        assert torch.equal(maps[stage], maps[f"{stage}_block1"])
    shortcut = network.layer3[0].downsample
    expected = shortcut[1](shortcut[0](maps["stage2"][:, :, ::2, ::2])).relu()
    torch.testing.assert_close(maps["stage3_block1"], expected, rtol=1e-4, atol=1e-5)


def test_images_are_resized_and_standardized_inside():
    shape = (2, 6, 8)
    network = _network(shape=shape, resize=12, statistics=((0.5, 0.2), (0.1, 0.4))).double()
    images = _images(shape, dtype=torch.float64).requires_grad_()
    large = functional.interpolate(images, (12, 12), mode="bilinear", align_corners=False)
    expected = torch.stack([((large[:, 0] + 1) / 2 - 0.5) / 0.1, ((large[:, 1] + 1) / 2 - 0.2) / 0.4], 1)
    torch.testing.assert_close(network.standardize(images), expected)
    assert network.map_shapes["stage1"] == (4, 12, 12)
    network.eval()(images).sum().backward()
    assert bool((images.grad != 0).all())


def test_layers_behind_the_last_map_are_not_run():
    network = _network().eval()
    network.layer2[1].register_forward_hook(lambda *_: pytest.fail("a layer was run for nothing"))
    assert list(network.maps(_images(), ("stage2_block1", "stage1"))) == ["stage2_block1", "stage1"]
    with pytest.raises(pytest.fail.Exception):
        network.maps(_images(), ("stage2",))
    colors = ResNetFeatures(network, ["image_mean", "pixels"])
    network.conv1.register_forward_hook(lambda *_: pytest.fail("the network was run for colors"))
    assert colors(_images())["image_mean"].shape == (3, 1, 3)


@pytest.mark.parametrize("dims", [None, (6, 7, 8, 40), (24,)])
def test_features_are_those_of_the_projected_maps(dims):
    network, images = _shaken(_network(feature_dims=dims)), _images(dtype=torch.float64)
    names = available_features(network)
    features = ResNetFeatures(network, names)(images)
    assert tuple(features) == names
    for name, map in network.maps(images, tuple(network.map_shapes)).items():
        projection = network.projections[name].weight if name in network.projections else torch.eye(map.shape[1]).double()
        for key, value in multi_scale(name, torch.einsum("bchw,dc->bdhw", map, projection)).items():
            torch.testing.assert_close(features[key], value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features["stage4_mean"][:, 0], network.embed(images))
    assert network.embed(images).shape[1] == (dims or (32,))[-1]
    assert torch.equal(network(images), network.fc(network.embed(images)))


def test_projections_of_early_stages_keep_distances_and_are_not_trained():
    network = _network(feature_dims=(8, 12, 20, 40)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for stage, length in zip(STAGES, (8, 12, 20, 40), strict=True):
        points, projection = torch.randn(6, network.map_shapes[stage][0]), network.projection(stage)
        assert projection.shape == (length, points.shape[1])
        projected = points @ projection.T
        torch.testing.assert_close(torch.cdist(projected, projected), torch.cdist(points, points))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    functional.cross_entropy(network(_images()), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    same = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    fixed = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert same == fixed == {f"projections.{stage}.weight" for stage in STAGES[:3]}


def test_gradients_flow_to_the_images_and_nothing_else_changes():
    encoder = ResNetFeatures(_network(), ["stage1_mean_2", "stage4_mean", "image_std"])
    around = nn.ModuleList([encoder]).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = _images().requires_grad_()
    assert around.training
    assert not any(part.training for part in encoder.modules())
    sum(value.square().sum() for value in encoder(images).values()).backward()
    assert bool((images.grad != 0).all())
    assert all(value.grad is None and not value.requires_grad for value in encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    torch.testing.assert_close(encoder(images)["stage4_mean"][:1], encoder(images[:1])["stage4_mean"])


def test_half_precision_gives_features_in_float32():
    encoder = ResNetFeatures(_network(feature_dims=(24,)), ["stage4_mean", "stage4_std", "stage2", "norm_x"])
    exact = encoder(_images())
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(_images())
    assert {value.dtype for value in features.values()} == {torch.float32}
    for name, value in features.items():
        assert float((value - exact[name]).norm() / exact[name].norm()) < 0.03


def test_published_weights_go_through_a_file(tmp_path):
    saved = _shaken(_network("resnet50", seed=1, num_classes=7)).float()
    state = {f"module.{name}": value for name, value in saved.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    weights = load_state_dict(tmp_path / "x.pth")
    for classes in (7, 5, None):
        network = _network("resnet50", num_classes=classes)
        head = network.fc.weight.clone() if classes else None
        load_weights(network, adapt_weights(network, weights), "x.pth")
        assert torch.equal(network.eval().embed(_images()), saved.eval().embed(_images()))
        assert head is None or torch.equal(network.fc.weight, saved.fc.weight if classes == 7 else head)
    assert torch.equal(network(_images()), network.embed(_images()))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"width": 8}, "conv1.weight is (4, 3, 3, 3), not (8, 3, 3, 3); bn1.weight is (4,), not (8,); bn1.bias is (4,), not (8,)"),
        ({"small_stem": False}, "(conv1.weight is (4, 3, 3, 3), not (4, 3, 7, 7))"),
        ({"arch": "resnet50"}, "layer1.0.conv3.weight is missing; layer1.0.bn3.weight is missing; layer1.0.bn3.bias is missing"),
        ({"feature_dims": (32,)}, "(projections.stage4.weight is missing)"),
        ({"feature_dims": (9,), "num_classes": 6}, "fc.weight is (5, 32), not (6, 9)"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(network, words):
    other = _network(**network)
    with pytest.raises(InputError, match=re.escape(words)):
        load_weights(other, adapt_weights(other, _network().state_dict()), "x.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet34"}, "arch is 'resnet34': pass resnet10 or resnet18 or resnet50"),
        ({"width": 0}, "width is 0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"feature_dims": (8, 0)}, "feature_dims is 0"),
        ({"feature_dims": (8,) * 5}, "at most 4 stages"),
        ({"resize": 0}, "resize is 0"),
        ({"shape": (1, 16, 16)}, "for 1 channels"),
        ({"statistics": ((0.5,) * 3, (0.5, 0.0, 0.5))}, "above 0 for 3 channels"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        _network(**arguments)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (3, 16, 8)])
@pytest.mark.parametrize("names", [["stage1_mean"], ["image_mean"]])
def test_other_images_are_refused_by_both_shapes(shape, names):
    with pytest.raises(InputError, match=re.escape(f"{shape}, but the encoder takes (3, 16, 16)")):
        ResNetFeatures(_network(), names)(torch.zeros(2, *shape))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stage4_men"], "did you mean 'stage4_mean'"),
        (["stage4_mean_4"], "features has 'stage4_mean_4'"),
        (["image"], "did you mean 'image_std'"),
        (["stage1", "stage1"], "each once"),
        ([], "at least one"),
    ],
)
def test_features_that_are_not_there_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        ResNetFeatures(_network(), names)
    with pytest.raises(InputError, match="did you mean 'stage2_block1'"):
        _network().maps(_images(), ["stage2_block2"])
