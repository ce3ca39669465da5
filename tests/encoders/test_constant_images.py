"""A generator that starts at zero makes constant images, whose gradient some encoders with group normalization blow up to 1e14."""

import pytest
import torch

import drifting

PRESETS = {name: (3, 32, 32) for name in ("cifar10-resnet18", "cifar10-resnet50", "cifar10-multiscale", "cifar10-simclr")}


@pytest.mark.parametrize("name", [*PRESETS, "mnist-encoder"])
def test_gradient_of_constant_images_is_that_of_ordinary_ones(name):
    encoder, shape = drifting.preset(name).encoder, PRESETS.get(name, (1, 28, 28))
    torch.manual_seed(0)
    encode = encoder.build_features(encoder.build_network(shape, num_classes=10, read=lambda _: {}))
    positives = {feature: values.transpose(0, 1).detach() for feature, values in encode(torch.randn(4, *shape)).items()}

    def gradient(images: torch.Tensor) -> float:
        images.requires_grad_()
        drifting.DriftingLoss()({key: value.transpose(0, 1) for key, value in encode(images).items()}, positives).loss.backward()
        return float(images.grad.norm())

    assert 0 < gradient(torch.zeros(4, *shape)) < 100 * gradient(torch.randn(4, *shape))
