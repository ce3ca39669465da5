import pytest
import torch
from torch import nn

from drifting.generators.residual_mlp import ResidualMLP


def _network(num_classes=None, **settings) -> ResidualMLP:
    torch.manual_seed(0)
    defaults = {"noise_dim": 5, "sample_shape": (1, 2, 3), "width": 7, "hidden": 9, "depth": 3}
    return ResidualMLP(**{**defaults, **settings}, num_classes=num_classes)


def _noise(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


def _shake(network: ResidualMLP) -> None:
    """Move the modulation away from zero."""
    with torch.no_grad():
        for block in network.blocks:
            block.modulation.weight.normal_()


def test_shapes_are_as_announced():
    network = _network(num_classes=4)
    assert (network.noise_shape, network.sample_shape, network.num_classes) == ((5,), (1, 2, 3), 4)
    assert network(_noise(), torch.tensor([0, 1, 2, 3, 0, 1])).shape == (6, 1, 2, 3)
    assert _network(sample_shape=[2])(_noise()).shape == (6, 2)


@pytest.mark.parametrize(("depth", "width", "hidden"), [(1, 3, 2), (2, 8, 16), (5, 4, 4)])
def test_network_has_the_asked_depth_and_widths(depth, width, hidden):
    network = _network(depth=depth, width=width, hidden=hidden)
    shapes = [(tuple(block.expand.weight.shape), tuple(block.contract.weight.shape)) for block in network.blocks]
    assert shapes == [((hidden, width), (width, hidden))] * depth


@pytest.mark.parametrize("num_classes", [None, 3])
def test_output_is_the_formula_of_the_module(num_classes):
    network, noise, labels = _network(num_classes), _noise(), torch.tensor([0, 1, 2, 2, 1, 0])
    _shake(network)
    features = network.input(noise)
    for block in network.blocks:
        scale, shift = block.modulation.weight[labels if num_classes else torch.zeros(6, dtype=torch.long)].chunk(2, 1)
        seen = nn.functional.layer_norm(features, (7,), block.norm.weight, block.norm.bias) * (1 + scale) + shift
        features = features + nn.functional.silu(seen @ block.expand.weight.T + block.expand.bias) @ block.contract.weight.T
        features = features + block.contract.bias
    torch.testing.assert_close(network(noise, labels if num_classes else None).flatten(1), network.output(network.norm(features)))


def test_classes_are_alike_before_training():
    network = _network(num_classes=3)
    first = network(_noise(), torch.zeros(6, dtype=torch.long))
    assert torch.equal(network(_noise(), torch.full((6,), 2)), first)


def test_label_modulates_every_block():
    network = _network(num_classes=3)
    before = network(_noise(1), torch.tensor([2]))
    for block in network.blocks:
        with torch.no_grad():
            block.modulation.weight[2] += 1
        after = network(_noise(1), torch.tensor([2]))
        assert not torch.allclose(after, before)
        before = after


def test_labels_act_on_their_own_samples_only():
    network = _network(num_classes=3)
    _shake(network)
    first = network(_noise(), torch.tensor([0, 0, 0, 0, 0, 0]))
    mixed = network(_noise(), torch.tensor([0, 1, 0, 2, 0, 0]))
    changed = (first - mixed).flatten(1).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, True, False, True, False, False]


def test_samples_do_not_see_each_other():
    network, noise = _network(), _noise()
    torch.testing.assert_close(network(noise)[2:4], network(noise[2:4]))


def test_guidance_scale_is_accepted():
    assert torch.equal(_network()(_noise(), None, torch.ones(6)), _network()(_noise()))


@pytest.mark.parametrize("num_classes", [None, 2])
def test_every_weight_gets_a_gradient(num_classes):
    network = _network(num_classes)
    _shake(network)
    network(_noise(), torch.tensor([0, 1] * 3) if num_classes else None).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if float(weight.grad.abs().sum()) == 0] == []
