"""What the transformer and the U-Net share: labels, guidance scales and style indices, memory savings and precision."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from drifting.generators.base import Generator
from drifting.generators.dit import DiT, DiTSize
from drifting.generators.unet import UNet, UNetSize
from tests.support.networks import conditional_inputs, randomized

Maker = Callable[..., Generator]
SHAPE = (3, 8, 16)


def _dit(**settings) -> Generator:
    size = DiTSize(patch=4, width=16, depth=2, heads=2, cond_dim=12, num_context_tokens=3, num_styles=2, style_classes=4)
    return randomized(DiT(sample_shape=SHAPE, size=size, num_classes=3, **settings))


def _unet(**settings) -> Generator:
    size = UNetSize(patch=4, widths=(8, 12), blocks=2, heads=2, cond_dim=10, head_width=4, num_styles=2, style_classes=4)
    return randomized(UNet(sample_shape=SHAPE, size=size, num_classes=3, **settings))


@pytest.fixture(params=[_dit, _unet])
def make(request) -> Maker:
    def seeded(**settings) -> Generator:
        torch.manual_seed(0)
        return request.param(**settings)

    return seeded


@pytest.mark.parametrize("name", ["noise", "labels", "guidance_scale", "style_indices"])
def test_every_input_acts_on_its_own_sample_only(make, name):
    network, inputs = make(), conditional_inputs(SHAPE)
    changed = {**inputs, name: inputs[name].clone()}
    changed[name][1] = {"noise": 0.5, "labels": 2, "guidance_scale": 4.0, "style_indices": 3 - inputs["style_indices"][1]}[name]
    differs = (network(**changed) - network(**inputs)).flatten(1).abs().amax(1)
    assert (differs > 1e-3).tolist() == [False, True, False, False]
    assert float(differs[[0, 2, 3]].detach().max()) < 1e-5


def test_missing_guidance_scale_is_one_and_missing_style_indices_are_drawn(make):
    network, inputs = make(), conditional_inputs(SHAPE)
    inputs["guidance_scale"] = torch.ones(4)
    assert torch.equal(network(**inputs), network(**{**inputs, "guidance_scale": None}))
    inputs["style_indices"] = None
    torch.manual_seed(5)
    first, other = network(**inputs), network(**inputs)
    torch.manual_seed(5)
    assert torch.equal(network(**inputs), first)
    assert not torch.allclose(first, other)


def test_unguided_network_ignores_the_scale(make):
    network, inputs = make(guided=False), conditional_inputs(SHAPE)
    assert (network.guided, make().guided) == (False, True)
    assert torch.equal(network(**inputs), network(**{**inputs, "guidance_scale": None}))


def test_bounded_samples_are_the_others_through_tanh(make):
    plain, bounded = make(bounded=False, output_std=9.0), make(bounded=True, output_std=9.0)
    inputs = conditional_inputs(SHAPE)
    torch.testing.assert_close(bounded(**inputs), plain(**inputs).tanh())
    assert float(plain(**inputs).detach().abs().max()) > 1


def test_checkpointing_changes_no_gradient(make):
    gradients = []
    for gradient_checkpointing in (False, True):
        network = make(gradient_checkpointing=gradient_checkpointing).double()
        network(**conditional_inputs(SHAPE, torch.float64)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[0])
    tolerance = 1e-12 if isinstance(network, UNet) else 0.0
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=tolerance, atol=tolerance)


def test_double_precision_agrees_with_single(make):
    network = make()
    single = network(**conditional_inputs(SHAPE))
    double = network.double()(**conditional_inputs(SHAPE, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


def test_autocast_keeps_what_must_be_kept_in_float32(make):
    network, inputs, seen = make(), conditional_inputs(SHAPE), {}
    for name, module in network.named_modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda module, given, out, name=name: seen.__setitem__(name, out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = network(**inputs)
        half.square().sum().backward()
    kept = ("norm", "modulation", "condition", "head.output" if isinstance(network, UNet) else "output")
    wanted = [name for name in seen if any(part in name for part in kept[:3]) or name == kept[3]]
    assert [name for name, kind in seen.items() if kind == torch.float32] == wanted
    assert half.dtype == torch.float32
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())
    torch.testing.assert_close(half, network(**inputs), rtol=0.1, atol=0.1)
