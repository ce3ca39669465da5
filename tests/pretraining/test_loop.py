"""The one loop of pre-training: its batches, in memory or read ahead, and its state, from which it goes on bit for bit."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from drifting.encoders import AutoencoderConfig, EncoderConfig, MAEConfig, ResNetConfig, SimCLRConfig
from drifting.evaluation import Classifier
from drifting.pretraining.loop import Batches, HeldRows, NetworkTraining, batches_of, read_ahead
from drifting.pretraining.objectives import Augmentation, train_network, train_supervised

STEPS, BATCH_SIZE = 6, 4
IMAGES = torch.randint(256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.arange(10) % 3
SIZES = {"steps": STEPS, "batch_size": BATCH_SIZE}
MASKED = {"width": 10, "depths": (1, 1, 1, 1), "classification_weight": 0.5, "ema_decay": 0.5, "microbatch_size": 3, **SIZES}
ENCODERS: dict[str, EncoderConfig] = {
    "reconstruction": AutoencoderConfig(code_dim=4, width=4, noise=0.1, **SIZES),
    "classes": ResNetConfig(width=4, **SIZES),
    "views": SimCLRConfig(width=4, **SIZES),
    "masked": MAEConfig(**MASKED),
    "classes by Muon": ResNetConfig(width=4, optimizer="muon", **SIZES),
    "views in bfloat16": SimCLRConfig(width=4, precision="bfloat16", **SIZES),
}


def _start(settings: EncoderConfig) -> Callable[[Batches], NetworkTraining]:
    def start(batches: Batches) -> NetworkTraining:
        torch.manual_seed(0)
        network = settings.build_network((3, 16, 16), num_classes=3, read=lambda origin: {})
        return train_network(network, settings, batches, seed=5)

    return start


def _classifier(batches: Batches) -> NetworkTraining:
    torch.manual_seed(0)
    network = Classifier((3, 16, 16), 3, width=4)
    varied = Augmentation(label_smoothing=0.1)
    return train_supervised(network, batches, steps=STEPS, learning_rate=1e-2, seed=5, augmentation=varied)


TRAININGS = {name: _start(settings) for name, settings in ENCODERS.items()} | {"classifier": _classifier}


def _batches() -> Batches:
    return batches_of(HeldRows(IMAGES, LABELS), BATCH_SIZE, seed=7)


@pytest.mark.parametrize("name", TRAININGS)
def test_resumed_training_takes_the_same_steps_as_one_in_one_go(name, assert_same_tensors):
    whole = TRAININGS[name](_batches())
    losses = [float(step.loss) for step in whole]
    half = TRAININGS[name](_batches())
    steps = iter(half)
    before = [float(next(steps).loss) for _ in range(STEPS // 2)]
    kept = {name: value.clone() for name, value in half.state.tensors().items()}
    again = TRAININGS[name](_batches())
    again.state.restore(kept, STEPS // 2, "here")
    assert before + [float(step.loss) for step in again] == losses
    assert len(set(losses)) == STEPS
    assert_same_tensors(again.state.tensors(), whole.state.tensors())


@pytest.mark.parametrize("name", TRAININGS)
def test_reading_ahead_changes_nothing(name, assert_same_tensors):
    plain = TRAININGS[name](_batches())
    losses = [float(step.loss) for step in plain]
    with ThreadPoolExecutor(1) as thread:
        ahead = TRAININGS[name](read_ahead(_batches(), STEPS, thread))
        assert [float(step.loss) for step in ahead] == losses
    assert_same_tensors(ahead.state.tensors(), plain.state.tensors())


def test_nothing_is_read_beyond_the_last_step():
    read: list[int] = []
    with ThreadPoolExecutor(1) as thread:
        batches = read_ahead(lambda number: read.append(number) or (IMAGES, None), 4, thread)
        for number in (2, 3, 4):
            batches(number)
    assert read == [2, 3, 4]


def test_muon_moves_a_convolution_equally_far_in_all_directions():
    training = TRAININGS["classes by Muon"](_batches())
    weight = training.state.model.get_parameter("layer1.0.conv1.weight")
    before = weight.detach().clone()
    next(iter(training))
    rate = training.state.optimizer.param_groups[0]["lr"]
    moved = (weight.detach() - (1 - 0.01 * rate) * before).flatten(1)
    lengths = torch.linalg.svdvals(moved) / (0.2 * rate * max(moved.shape) ** 0.5)
    assert 0.7 < float(lengths.min()) <= float(lengths.max()) < 1.3


@pytest.mark.parametrize("name", ["classes", "views"])
def test_networks_compute_in_bfloat16_and_keep_weights_and_loss_in_float32(name):
    losses = {}
    for precision in ("float32", "bfloat16"):
        settings = dataclasses.replace(ENCODERS[name], precision=precision)
        training = _start(settings)(_batches())
        first = next(iter(training))
        losses[precision] = float(first.loss)
        assert first.loss.dtype == torch.float32
        assert {weight.dtype for weight in training.state.model.parameters()} == {torch.float32}
    assert losses["float32"] != losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
