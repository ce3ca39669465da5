"""Training in bfloat16: what is rounded, and what is not."""

import dataclasses

import pytest
import torch
from torch import nn

from drifting.errors import InputError
from drifting.loss import DriftingLoss
from drifting.presets import adjust
from drifting.runs.assemble import build_encoder
from drifting.training.precision import computed_in
from drifting.training.step import Batch, drifting_step

VALUES = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


def test_networks_compute_in_bfloat16_and_return_float32():
    linear = _linear()
    rounded = computed_in("bfloat16", linear, "cpu")(VALUES)
    expected = nn.functional.linear(VALUES.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16())
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, expected.float())
    assert not torch.equal(rounded, linear(VALUES))
    named = computed_in("bfloat16", lambda values: {"a": linear(values)}, torch.device("cpu"))(VALUES)
    assert torch.equal(named["a"], rounded)


def test_float32_is_the_function_itself():
    linear = _linear()
    assert computed_in("float32", linear, "cpu") is linear


def test_loss_of_a_step_sees_float32_and_weights_get_gradients_in_float32():
    seen = []

    class Watching(DriftingLoss):
        def forward(self, generated, *args, **kwargs):
            seen.extend((value.dtype, torch.is_autocast_enabled("cpu")) for value in generated.values())
            return super().forward(generated, *args, **kwargs)

    gradients = []
    for precision in ("float32", "bfloat16"):
        linear, trained = nn.Linear(8, 8), _linear()
        linear.load_state_dict(_linear().state_dict())
        encoder = computed_in(precision, lambda samples, linear=linear: {"a": linear(samples)[:, None]}, "cpu")
        generator = computed_in(precision, lambda noise, labels, scale, trained=trained: trained(noise), "cpu")
        batch = Batch(noise=VALUES[None, :32], positives={"a": VALUES[None, 32:, None]})
        drifting_step(generator, encoder, Watching(temperatures=(0.5,)), batch).loss.backward()
        gradients.append(trained.weight.grad)
    assert set(seen) == {(torch.float32, False)}
    assert gradients[1].dtype == torch.float32
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < difference < 0.05


def test_preset_takes_it_for_generator_and_encoder(tiny_images):
    config = adjust(tiny_images, precision="bfloat16")
    assert config == dataclasses.replace(tiny_images, schedule=dataclasses.replace(tiny_images.schedule, precision="bfloat16"))
    assert build_encoder(config)(torch.ones(1, 1, 8, 8)).keys() == build_encoder(tiny_images)(torch.ones(1, 1, 8, 8)).keys()
    with pytest.raises(InputError, match="precision is 'float16': pass float32 or bfloat16"):
        adjust(tiny_images, precision="float16")
