"""The one loop of pre-training: its batches, in memory or read ahead, and its state, from which it goes on bit for bit."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from drifting.encoders import AutoencoderConfig, EncoderConfig, MAEConfig, ResNetConfig, SimCLRConfig
from drifting.evaluation import Classifier
from drifting.pretraining.loop import Batches, HeldRows, NetworkTraining, batches_of, read_ahead
from drifting.pretraining.objectives import OBJECTIVES, Augmentation, train_network, train_supervised

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
}


def _encoder(name: str) -> Callable[[Batches], NetworkTraining]:
    def start(batches: Batches) -> NetworkTraining:
        torch.manual_seed(0)
        settings = ENCODERS[name]
        network = settings.build_network((3, 16, 16), num_classes=3, read=lambda origin: {})
        return train_network(network, settings, batches, seed=5)

    return start


def _classifier(batches: Batches) -> NetworkTraining:
    torch.manual_seed(0)
    network = Classifier((3, 16, 16), 3, width=4)
    varied = Augmentation(label_smoothing=0.1)
    return train_supervised(network, batches, steps=STEPS, learning_rate=1e-2, seed=5, augmentation=varied)


TRAININGS = {name: _encoder(name) for name in OBJECTIVES} | {"classifier": _classifier}


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
