import pytest
import torch
from torch import nn

from drifting.encoders import AutoencoderConfig, LearnedConfig, MAEConfig, ResNetConfig, SimCLRConfig
from drifting.encoders.base import Frozen, Identity, compose, identity
from drifting.errors import InputError


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def _state(module: nn.Module) -> dict:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_gradients_flow_through_a_frozen_network_whose_weights_stay():
    encoder = Frozen(_network())
    before = _state(encoder)
    samples = torch.randn(5, 3, requires_grad=True)
    encoder(samples).square().sum().backward()
    assert float(samples.grad.abs().min()) > 0
    assert [value.grad for value in encoder.parameters()] == [None] * 6
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_frozen_stays_in_evaluation_mode():
    encoder = Frozen(_network())
    around = nn.ModuleList([encoder])
    assert encoder.train() is encoder
    around.train()
    assert around.training
    assert not any(part.training for part in encoder.modules())
    samples = torch.randn(5, 3)
    assert torch.equal(encoder(samples), encoder(samples))
    assert torch.allclose(encoder(samples)[:2], encoder(samples[:2]))


def test_composed_names_carry_their_prefix():
    samples = torch.randn(4, 2, 3)
    features = compose({"": identity, "double": lambda x: identity(2 * x)})(samples)
    assert list(features) == ["sample", "double.sample"]
    assert torch.equal(features["sample"], samples.flatten(1)[:, None])
    assert torch.equal(features["double.sample"], 2 * features["sample"])


def test_encoders_may_be_composed_of_composed_ones():
    inner = compose({"a": identity})
    assert list(compose({"b": inner, "": inner})(torch.zeros(1, 2))) == ["b.a.sample", "a.sample"]


def test_double_names_are_refused():
    encoder = compose({"": lambda x: {"a.sample": x[:, None]}, "a": identity})
    with pytest.raises(InputError, match=r"feature 'a\.sample' twice"):
        encoder(torch.zeros(1, 2))


def test_no_encoder_is_refused():
    with pytest.raises(InputError, match="encoders is empty"):
        compose({})


def test_identity_flattens_each_sample():
    samples = torch.randn(3, 2, 4)
    assert torch.equal(Identity()(samples)["sample"], samples.reshape(3, 1, 8))


NAN, INF = float("nan"), float("inf")
WRONG = [
    *((MAEConfig, "betas", value) for value in ((2.0, 2.0), (0.9, NAN), (-0.1, 0.9), (0.9,))),
    *((MAEConfig, "weight_decay", value) for value in (-1.0, NAN, INF)),
    *((MAEConfig, "max_grad_norm", value) for value in (0.0, -1.0, NAN)),
    *((MAEConfig, "classified_steps", value) for value in (0, -3)),
    *((MAEConfig, name, -1) for name in ("warmup_steps", "classification_warmup")),
    *((AutoencoderConfig, "noise", value) for value in (-1.0, NAN, INF)),
    *((SimCLRConfig, name, value) for name, value in (("temperature", 0.0), ("crop", 1.0), ("gray", 2.0))),
    *((ResNetConfig, name, value) for name, value in (("arch", "vgg"), ("flip", -1.0), ("cut_mix", 2.0))),
    (LearnedConfig, "temperature", NAN),
]


@pytest.mark.parametrize(("config", "name", "value"), WRONG)
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_setting_that_cannot_work_is_refused_by_its_whole_name(config, name, value, prefix):
    with pytest.raises(InputError) as caught:
        config(**{name: value}).check(prefix)
    shown = f"'{value}'" if isinstance(value, str) else value
    assert str(caught.value).startswith(f"{prefix}{name} is {shown}: pass ")
