"""The training of masked auto-encoders: its schedule, its loss in parts, its average, and its state."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from drifting.encoders.base import Optimization
from drifting.encoders.mae import MaskedAutoencoder, MaskedTraining, mae_loss, random_mask
from drifting.errors import InputError
from drifting.pretraining.loop import NetworkState
from drifting.pretraining.objectives import train_masked
from drifting.training.state import ExponentialAverage

SETTINGS = MaskedTraining(steps=4, batch_size=6, learning_rate=1e-2, warmup_steps=2)
IMAGES = torch.randn(24, 2, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 3


def _network(num_classes: int | None = 3) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder((2, 16, 16), width=6, depths=(1, 1, 1, 1), num_classes=num_classes)


def _batches(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(6 * number - 6, 6 * number) % 24
    return IMAGES[rows], LABELS[rows]


def _trained(
    settings: MaskedTraining, network: MaskedAutoencoder | None = None, batches: Any = _batches
) -> tuple[Any, list[float]]:
    training = train_masked(network or _network(), batches, settings, seed=5)
    losses = [float(step.loss) for step in training]
    return training.state, losses


def test_learning_rate_rises_and_stays():
    settings = Optimization(warmup_steps=4)
    assert [settings.factor(number, 10) for number in (1, 2, 4, 5, 10)] == [0.25, 0.5, 1, 1, 1]
    assert Optimization(warmup_steps=0).factor(1, 10) == 1
    # Else it rises over a fifth, and falls.
    assert Optimization().factor(10, 10) < 0.1


def test_unknown_optimizer_is_refused_without_a_configuration_too():
    with pytest.raises(InputError, match="optimizer is 'sgd', not adamw or muon"):
        NetworkState(torch.nn.Linear(2, 2), learning_rate=0.1, seed=0, settings=Optimization(optimizer="sgd"))


def test_classes_have_a_share_at_the_end_alone():
    settings = MaskedTraining(steps=20, classification_weight=0.1, classified_steps=8, classification_warmup=4)
    weights = [settings.weight_at(number) for number in range(1, 21)]
    assert weights == pytest.approx([0] * 12 + [0.025, 0.05, 0.075] + [0.1] * 5)
    assert {MaskedTraining(classification_weight=0.3).weight_at(number) for number in (1, 2000)} == {0.3}


def test_loss_of_a_step_is_that_of_its_definition():
    settings = dataclasses.replace(SETTINGS, steps=1, classification_weight=0.25)
    network = _network()
    mask = random_mask(6, network.grid, NetworkState(network, learning_rate=1.0, seed=5).rng)
    reconstruction, logits = network(IMAGES[:6], mask)
    error = mae_loss(reconstruction, network.patches(IMAGES[:6]), mask)
    expected = 0.75 * error + 0.25 * cross_entropy(logits, LABELS[:6])
    assert _trained(settings)[1] == pytest.approx([expected.item()], rel=1e-6)


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100])
def test_microbatches_change_nothing(size):
    settings = dataclasses.replace(SETTINGS, steps=1, classification_weight=0.5)
    (whole, losses), (parts, others) = _trained(settings), _trained(dataclasses.replace(settings, microbatch_size=size))
    assert others == pytest.approx(losses, rel=1e-4)
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(parts.model.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_network_ends_with_the_average_of_its_weights():
    plain, _ = _trained(SETTINGS)
    settings = dataclasses.replace(SETTINGS, ema_decay=0.3)
    training = train_masked(_network(), _batches, settings, seed=5)
    state = training.state
    average = ExponentialAverage(_network(), 0.3)
    for _ in training:
        average.update_parameters(state.model)
    found, last = state.model.state_dict(), plain.model.state_dict()
    for name, value in average.module.state_dict().items():
        assert torch.equal(found[name], value)
    # Training itself goes on from the weights, not from their average.
    assert any(not torch.equal(found[name], value) for name, value in last.items())


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_restored_training_goes_on_bit_for_bit(ema_decay, assert_same_tensors):
    settings = dataclasses.replace(SETTINGS, ema_decay=ema_decay, classification_weight=0.5, classified_steps=1)
    whole, losses = _trained(settings)
    half = train_masked(_network(), _batches, settings, seed=5)
    steps = iter(half)
    before = [float(next(steps).loss) for _ in range(2)]
    again = train_masked(_network(num_classes=3), _batches, settings, seed=0)
    again.state.restore({name: value.clone() for name, value in half.state.tensors().items()}, 2, "here")
    after = [float(step.loss) for step in again]
    assert before + after == losses
    assert_same_tensors(again.state.tensors(), whole.tensors())
    with pytest.raises(InputError, match=r"checkpoint is 'here', .*classify.weight is unknown"):
        train_masked(_network(num_classes=None), _batches, SETTINGS, seed=0).state.restore(half.state.tensors(), 2, "here")


def test_half_precision_computes_nearly_the_same():
    losses, others = (_trained(dataclasses.replace(SETTINGS, precision=name))[1] for name in ("float32", "bfloat16"))
    assert others != losses
    assert others == pytest.approx(losses, rel=0.05)


def test_bytes_are_images():
    pixels = torch.randint(256, (6, 2, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    settings = dataclasses.replace(SETTINGS, steps=1)
    of_bytes, of_floats = (
        _trained(settings, batches=lambda number, some=some: (some, None))[1] for some in (pixels, pixels.float() / 127.5 - 1)
    )
    assert of_bytes == of_floats


def test_labels_are_asked_for_where_they_are_learned():
    settings = dataclasses.replace(SETTINGS, classification_weight=0.5, classified_steps=2)

    def unlabeled(number):
        return IMAGES[:6], None

    with pytest.raises(InputError, match=r"classification_weight is 0\.5: pass one label for every image"):
        _trained(settings, batches=unlabeled)
    with pytest.raises(InputError, match=r"classification_weight is 0\.5, but the network has no classes: pass 0"):
        _trained(settings, _network(num_classes=None))
    assert len(_trained(SETTINGS, batches=unlabeled)[1]) == 4


BAD = {
    "steps": (0, "steps is 0: pass at least 1"),
    "batch_size": (-1, "batch_size is -1: pass at least 1"),
    "microbatch_size": (0, "microbatch_size is 0: pass at least 1"),
    "learning_rate": (0.0, "learning_rate is 0"),
    "precision": ("float16", "precision is 'float16', not float32 or bfloat16: did you mean bfloat16"),
    "ema_decay": (1.0, r"ema_decay is 1\.0: pass a number from 0 to below 1"),
    "classification_weight": (1.5, r"classification_weight is 1\.5: pass a number from 0 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_setting(name):
    value, message = BAD[name]
    with pytest.raises(InputError, match=f"encoder\\.{message}"):
        dataclasses.replace(SETTINGS, **{name: value}).check("encoder.")
