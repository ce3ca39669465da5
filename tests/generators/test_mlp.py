import pytest
import torch
from torch import nn

from drifting.generators.mlp import MLP


def _network(num_classes=None, **settings) -> MLP:
    torch.manual_seed(0)
    return MLP(**{"noise_dim": 5, "sample_shape": (1, 2, 3), "width": 7, "depth": 3, **settings}, num_classes=num_classes)


def _noise(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


def test_shapes_are_as_announced():
    network = _network(num_classes=4)
    assert (network.noise_shape, network.sample_shape, network.num_classes) == ((5,), (1, 2, 3), 4)
    assert network(_noise(), torch.tensor([0, 1, 2, 3, 0, 1])).shape == (6, 1, 2, 3)
    assert _network(sample_shape=[2])(_noise()).shape == (6, 2)


def test_output_is_the_plain_network():
    network = _network()
    features = _noise()
    for layer in network.hidden:
        features = nn.functional.silu(layer(features))
    torch.testing.assert_close(network(_noise()).flatten(1), network.output(features))


@pytest.mark.parametrize(("depth", "width"), [(1, 3), (2, 8), (5, 4)])
def test_network_has_the_asked_depth_and_width(depth, width):
    network = _network(depth=depth, width=width)
    assert [layer.out_features for layer in network.hidden] == [width] * depth


def test_label_shifts_every_hidden_layer():
    network = _network(num_classes=3)
    assert [tuple(shift.weight.shape) for shift in network.shifts] == [(3, 7)] * 3
    before = network(_noise(1), torch.tensor([2]))
    for shift in network.shifts:
        with torch.no_grad():
            shift.weight[2] += 1
        after = network(_noise(1), torch.tensor([2]))
        assert not torch.allclose(after, before)
        before = after


def test_unconditional_generator_has_no_label_weights_and_ignores_labels():
    network = _network()
    assert len(network.shifts) == 0
    assert torch.equal(network(_noise(), torch.zeros(6, dtype=torch.long)), network(_noise()))


def test_every_weight_gets_a_gradient():
    network = _network(num_classes=2)
    network(_noise(), torch.tensor([0, 1] * 3)).square().sum().backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in network.parameters())


LABELS, SCALES = torch.tensor([0, 1] * 3), torch.tensor([1.0, 1.0, 1.5, 2.0, 4.0, 1.0])


def test_guided_network_begins_as_the_unguided_one_and_is_it_without_guidance():
    plain, guided = _network(num_classes=2), _network(num_classes=2, guided=True)
    state = guided.state_dict()
    assert [name for name in state if name not in plain.state_dict()] == [f"guidance.{index}.weight" for index in range(3)]
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    for scale in (None, torch.ones(6)):
        assert torch.equal(guided(_noise(), LABELS, scale), plain(_noise(), LABELS))


def test_guidance_scale_acts_on_its_own_samples_only():
    network = _network(num_classes=2, guided=True)
    changed = (network(_noise(), LABELS, SCALES) - network(_noise(), LABELS)).flatten(1).abs().amax(1) > 1e-6
    assert changed.tolist() == (SCALES > 1).tolist()


def test_guidance_shifts_every_hidden_layer_by_the_logarithm_of_the_scale():
    network = _network(guided=True)
    features = _noise()
    for layer, shift in zip(network.hidden, network.guidance, strict=True):
        features = nn.functional.silu(layer(features) + SCALES.log()[:, None] * shift.weight[:, 0])
    torch.testing.assert_close(network(_noise(), None, SCALES).flatten(1), network.output(features))


def test_every_guided_weight_gets_a_gradient():
    network = _network(num_classes=2, guided=True)
    network(_noise(), LABELS, SCALES).square().sum().backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in network.parameters())


def test_guided_network_computes_in_the_precision_of_its_noise():
    network = _network(num_classes=2, guided=True).double()
    assert network(_noise().double(), LABELS, SCALES).dtype == torch.float64
