import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from drifting.checkpoint import load_tensors, load_weights, save_tensors
from drifting.errors import InputError
from drifting.generators.unet import SIZES, Block, UNet, UNetSize
from tests.support.networks import conditional_inputs, randomized

TINY = UNetSize(patch=4, widths=(8, 12), blocks=2, heads=2, cond_dim=10, head_width=4, num_styles=2, style_classes=4)


def _network(**settings) -> UNet:
    torch.manual_seed(0)
    return UNet(**{"sample_shape": (3, 8, 16), "size": TINY, "num_classes": 3, **settings})


def _inputs(dtype: torch.dtype = torch.float32, channels: int = 3) -> dict[str, torch.Tensor]:
    return conditional_inputs((channels, 8, 16), dtype)


@pytest.mark.parametrize(("name", "millions"), [("cpu", 1.10), ("gpu", 33.8)])
def test_sizes_have_as_many_weights_as_announced(name, millions):
    with torch.device("meta"):
        network = UNet(sample_shape=(3, 32, 32), size=SIZES[name], num_classes=10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


def test_small_size_costs_few_operations():
    network = UNet(sample_shape=(3, 32, 32), size=SIZES["cpu"], num_classes=10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    assert counter.get_total_flops() < 60e6


@pytest.mark.parametrize(
    "size",
    [
        TINY,
        dataclasses.replace(TINY, patch=1, heads=0),
        dataclasses.replace(TINY, patch=2, widths=(8, 8, 8)),
        dataclasses.replace(TINY, widths=(4,), blocks=1, noise_channels=1),
        dataclasses.replace(TINY, patch=8, widths=(8,), noise_channels=5),
    ],
)
def test_shapes_are_as_announced(size):
    network = _network(size=size)
    assert network.noise_shape == (size.noise_channels or 3, 8, 16)
    assert (network.sample_shape, network.num_classes) == ((3, 8, 16), 3)
    assert (network.num_styles, network.style_classes) == (2, 4)
    samples = network(**_inputs(channels=network.noise_shape[0]))
    assert samples.shape == (4, 3, 8, 16)
    samples.square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("seed", [0, 1])
def test_first_samples_spread_as_real_images_do_and_differ(name, seed):
    torch.manual_seed(seed)
    network = UNet(sample_shape=(3, 32, 32), size=SIZES[name], num_classes=10)
    with torch.no_grad():
        samples = network(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))
    assert float(samples.std()) == pytest.approx(0.5, abs=0.05)
    # Of the variance of a pixel most is between samples.
    assert float(samples.var(0).mean() / samples.var()) > 0.6
    apart = torch.pdist(samples.flatten(1))
    assert float(apart.min()) > 0.5 * float(apart.mean())


def test_asked_spread_is_that_before_tanh():
    settings = {"sample_shape": (3, 32, 32), "size": SIZES["cpu"], "bounded": False}
    noise = torch.randn(16, 3, 32, 32)
    for asked in (0.75, 3.0):
        torch.manual_seed(0)
        with torch.no_grad():
            assert float(UNet(**settings, output_std=asked)(noise).std()) == pytest.approx(asked, rel=0.15)


def _conv(layer: nn.Conv2d, maps: torch.Tensor) -> torch.Tensor:
    return conv2d(maps, layer.weight, layer.bias, stride=layer.stride, padding=layer.kernel_size[0] // 2 if layer.padding[0] else 0)


def _norm(layer: nn.GroupNorm, maps: torch.Tensor) -> torch.Tensor:
    groups = maps.unflatten(1, (layer.num_groups, -1)).flatten(2)
    spread = ((groups - groups.mean(2, keepdim=True)) ** 2).mean(2, keepdim=True)
    whitened = ((groups - groups.mean(2, keepdim=True)) / (spread + 1e-5).sqrt()).view_as(maps)
    return whitened * layer.weight[:, None, None] + layer.bias[:, None, None]


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def _doubled(maps: torch.Tensor) -> torch.Tensor:
    """Give the place (2i + k, 2j + m) of channel c what channel 4c + 2k + m has at (i, j)."""
    count, channels, height, width = maps.shape
    large = maps.new_zeros(count, channels // 4, 2 * height, 2 * width)
    for row in range(2):
        for column in range(2):
            large[:, :, row::2, column::2] = maps[:, 2 * row + column :: 4]
    return large


def _block(block: Block, maps: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    shift, scale = (active @ block.modulation.weight.T + block.modulation.bias)[:, :, None, None].chunk(2, 1)
    inner = _norm(block.norm2, _conv(block.conv1, _silu(_norm(block.norm1, maps)))) * (1 + scale) + shift
    beside = maps if maps.shape[1] == inner.shape[1] else _conv(block.shortcut, maps)
    return beside + _conv(block.conv2, _silu(inner))


def test_network_is_the_formula():
    network, inputs = randomized(_network().double()), _inputs(torch.float64)
    active = _silu(network.condition(**inputs))
    level, below = network.maps, network.maps.below
    first = _block(level.down[0], _conv(network.stem, inputs["noise"]), active)
    second = _block(level.down[1], first, active)
    maps = _conv(level.shrink, second)
    for block in below.down:
        maps = _block(block, maps, active)
    tokens = _norm(below.attention.norm, maps).flatten(2).transpose(1, 2)
    maps = maps + below.attention.attention(tokens).transpose(1, 2).view_as(maps)
    for block in below.up:
        maps = _block(block, maps, active)
    maps = _doubled(_conv(level.grow, maps))
    maps = _block(level.up[0], torch.cat([maps, second], 1), active)
    maps = _block(level.up[1], torch.cat([maps, first], 1), active)
    head = network.head
    maps = _silu(_doubled(_conv(head.doublings[0], _silu(_norm(head.norm, maps)))))
    torch.testing.assert_close(network(**inputs), torch.tanh(_doubled(_conv(head.output, maps))))


def test_weights_go_through_a_file(tmp_path):
    first, second = randomized(_network()), _network()
    save_tensors(tmp_path / "unet.safetensors", first.state_dict())
    load_weights(second, load_tensors(tmp_path / "unet.safetensors"), "unet")
    assert torch.equal(first(**_inputs()), second(**_inputs()))


def test_maps_are_kept_channels_last():
    network, orders = _network(), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, given, out: orders.append(given[0].stride(1) == 1))
    network(**_inputs())
    assert all(orders)
    assert len(orders) > 10


def test_network_compiles_as_one_graph():
    network, inputs = randomized(_network(gradient_checkpointing=True)), _inputs()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), network(**inputs))
    compiled(inputs["noise"], inputs["labels"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_shape": (3, 8, 12)}, r"sample_shape is \(3, 8, 12\).*divisible by 8"),
        ({"size": dataclasses.replace(TINY, patch=3)}, "patch is 3"),
        ({"size": dataclasses.replace(TINY, patch=0)}, "patch is 0"),
        ({"size": dataclasses.replace(TINY, widths=())}, r"widths is \(\)"),
        ({"size": dataclasses.replace(TINY, widths=(8, 10))}, r"widths is \(8, 10\)"),
        ({"size": dataclasses.replace(TINY, heads=5)}, "heads is 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        _network(**settings)
