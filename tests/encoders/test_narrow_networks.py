"""Gradients of convolutions in narrow networks: oneDNN without AVX-512 miscounts some convolutions of fewer than eight channels."""

import pytest
import torch
from torch import nn

from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.resnet import ResNet

IMAGES = 2 * torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1


def _resnet(arch: str) -> nn.Module:
    network = ResNet(arch, (3, 16, 16), num_classes=5, small_stem=True, width=4).eval()
    for name, weight in network.named_parameters():
        # At 0, where bottlenecks begin, no gradient would reach their convolutions.
        if name.endswith("bn3.weight"):
            nn.init.ones_(weight)
    return network


def _autoencoder() -> nn.Module:
    return MaskedAutoencoder((3, 16, 16), num_classes=5, width=4)


@pytest.mark.parametrize("build", [lambda: _resnet("resnet18"), lambda: _resnet("resnet50"), _autoencoder])
def test_gradients_are_those_in_float64(build):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        network = build().to(dtype)
        images = IMAGES.to(dtype)
        outputs = network(images) if isinstance(network, ResNet) else network(images)[0]
        outputs.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None})
    for name, expected in gradients[1].items():
        if expected.ndim == 4:
            error = (gradients[0][name].double() - expected).norm() / expected.norm()
            assert error < 1e-2, f"{name}: {error}"
