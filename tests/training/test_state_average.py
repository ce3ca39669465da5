import pytest
import torch
from torch import nn

from drifting.training.state import exponential_average


def _follow(decay: float, steps: int) -> tuple[nn.Linear, list[torch.Tensor], torch.nn.Module]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    average = exponential_average(layer, decay)
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
        average.update_parameters(layer)
        seen.append(layer.weight.detach().double().clone())
    return layer, seen, average


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_decay_in_force_is_the_smaller_of_decay_and_one_plus_k_over_ten_plus_k(decay):
    _, seen, average = _follow(decay, 40)
    expected = seen[0]
    for updates, weight in enumerate(seen[1:], start=1):
        kept = min(decay, (1 + updates) / (10 + updates))
        expected = kept * expected + (1 - kept) * weight
    torch.testing.assert_close(average.module.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_first_update_copies_the_weights():
    layer, _, average = _follow(0.999, 1)
    assert torch.equal(average.module.weight, layer.weight)


def test_average_is_a_network_of_its_own_without_gradients():
    layer, _, average = _follow(0.9, 3)
    before = average.module.weight.clone()
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(average.module.weight, before)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_decay_zero_follows_the_generator_exactly():
    layer, _, average = _follow(0.0, 5)
    torch.testing.assert_close(average.module.weight, layer.weight, rtol=0, atol=1e-7)


def test_state_goes_on_where_it_was_saved():
    layer, _, average = _follow(0.999, 5)
    other = exponential_average(layer, 0.999)
    other.load_state_dict(average.state_dict())
    with torch.no_grad():
        layer.weight.add_(1)
    average.update_parameters(layer)
    other.update_parameters(layer)
    assert torch.equal(average.module.weight, other.module.weight)
    assert int(other.n_averaged) == 6
