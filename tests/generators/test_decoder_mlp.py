import pytest
import torch

from drifting.generators.mlp import DecoderMLP
from drifting.nn import smoothed


def _network(num_classes=None, **settings) -> DecoderMLP:
    torch.manual_seed(0)
    defaults = {"noise_dim": 5, "sample_shape": (3, 8, 8), "width": 7, "depth": 3, "code_dim": 6, "decoder_width": 4}
    return DecoderMLP(**{**defaults, **settings}, num_classes=num_classes)


def _noise(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


def test_shapes_are_as_announced():
    network = _network(num_classes=4)
    assert (network.noise_shape, network.sample_shape, network.num_classes) == ((5,), (3, 8, 8), 4)
    assert network(_noise(), torch.tensor([0, 1, 2, 3, 0, 1])).shape == (6, 3, 8, 8)


def test_output_is_the_decoded_code_through_tanh():
    network, labels = _network(num_classes=2), torch.tensor([0, 1] * 3)
    torch.testing.assert_close(network(_noise(), labels), network.decode(network.imagine(_noise(), labels)).tanh())
    assert network.imagine(_noise(), labels).shape == (6, 6)


def test_images_stay_in_their_range():
    network = _network()
    with torch.no_grad():
        network.decode.second.weight.mul_(1e4)
    assert float(network(_noise()).detach().abs().max()) == 1


def test_gain_multiplies_every_matrix_product_at_the_start():
    plain, bent = _network(), _network(gain=3.0)
    for name, weight in plain.named_parameters():
        product = name.endswith("weight") and name.startswith(("imagine", "decode.spread"))
        torch.testing.assert_close(bent.get_parameter(name), 3 * weight if product else weight)


@pytest.mark.parametrize("num_classes", [None, 2])
def test_every_weight_gets_a_gradient(num_classes):
    network = _network(num_classes, decoder_blocks=2)
    network(_noise(), torch.tensor([0, 1] * 3) if num_classes else None).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if float(weight.grad.abs().sum()) == 0] == []


def test_guided_code_is_that_of_the_guided_perceptron():
    network, scale = _network(guided=True), torch.tensor([1.0, 1.5, 2.0, 1.0, 4.0, 1.0])
    assert (network.guided, network.imagine.guided, _network().guided) == (True, True, False)
    images = network(_noise(), None, scale)
    torch.testing.assert_close(images, network.decode(network.imagine(_noise(), None, scale)).tanh())
    changed = (images - network(_noise())).flatten(1).abs().amax(1) > 1e-7
    assert changed.tolist() == (scale > 1).tolist()


def test_smoothing_comes_before_tanh_and_adds_no_weights():
    plain, smooth = _network(), _network(smoothing=True)
    assert smooth.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(smooth(_noise()), smoothed(plain.decode(plain.imagine(_noise()))).tanh())
