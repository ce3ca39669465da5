import functools
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from drifting.training.state import ExponentialAverage


def _follow(decay: float, steps: int) -> tuple[nn.Linear, list[torch.Tensor], torch.nn.Module]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    average = ExponentialAverage(layer, decay)
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
    other = ExponentialAverage(layer, 0.999)
    other.load_state_dict(average.state_dict())
    with torch.no_grad():
        layer.weight.add_(1)
    average.update_parameters(layer)
    other.update_parameters(layer)
    assert torch.equal(average.module.weight, other.module.weight)
    assert int(other.n_averaged) == 6


def _one_by_one(average: Sequence[torch.Tensor], current: Sequence[torch.Tensor], updates: torch.Tensor, decay: float) -> None:
    """Update weight by weight, in the arithmetic of earlier versions."""
    kept = torch.as_tensor((1 + updates) / (10 + updates)).clamp(max=decay)
    for mine, new in zip(average, current, strict=True):
        mine.lerp_(new, 1 - kept.to(mine))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.999, 0.99995])
def test_update_of_all_weights_at_once_is_bit_for_bit_that_of_each(decay, dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 2)).to(dtype)
    average = ExponentialAverage(network, decay)
    earlier = AveragedModel(network, multi_avg_fn=functools.partial(_one_by_one, decay=decay))
    for step in range(60):
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight))
        network[1].running_mean.add_(step)
        average.update_parameters(network)
        with torch.no_grad():
            earlier.update_parameters(network)
    for n in range(2**19, 2**19 + 3):  # a long run
        average.n_averaged.fill_(n)
        earlier.n_averaged.fill_(n)
        average.update_parameters(network)
        with torch.no_grad():
            earlier.update_parameters(network)
    expected = earlier.state_dict()
    assert average.state_dict().keys() == expected.keys()
    assert [name for name, value in average.state_dict().items() if not torch.equal(value, expected[name])] == []
