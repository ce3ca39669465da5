"""Norms of gradients and changes of weights, by part of a network."""

import copy

import pytest
import torch
from torch import nn

from drifting.training.changes import Changes


def stepped(network, rate):
    changes = Changes(network)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.grad is not None:
                weight.sub_(rate * weight.grad)
    return {name: float(value) for name, value in changes.figures().items()}


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = nn.ModuleDict({"first": nn.Linear(3, 4), "blocks": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])})
    value = torch.ones(5, 3)
    for layer in (made["first"], *made["blocks"]):
        value = layer(value)
    value.sum().backward()
    return made


def joined(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).norm()


def test_norms_are_those_of_all_weights_of_a_part(network):
    before = copy.deepcopy(network)
    found = stepped(network, 0.1)
    assert found.keys() == {f"{kind}/{part}" for kind in ("gradient_norm", "weight_change") for part in ("first", "blocks")}
    for part in ("first", "blocks"):
        gradient = joined(weight.grad for weight in network[part].parameters())
        assert found[f"gradient_norm/{part}"] == pytest.approx(float(gradient))
        size = joined(before[part].parameters())
        assert found[f"weight_change/{part}"] == pytest.approx(float(0.1 * gradient / size), rel=1e-4)


def test_weights_without_gradient_are_no_part(network):
    for weight in network["first"].parameters():
        weight.grad = None
    assert {name.partition("/")[2] for name in stepped(network, 0.1)} == {"blocks"}


def test_no_step_is_no_change(network):
    assert stepped(network, 0.0)["weight_change/first"] == 0
