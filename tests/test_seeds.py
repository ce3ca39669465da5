import dataclasses
import itertools

import pytest
import torch

from drifting import presets
from drifting._torch import initial_weights, stream_seed
from drifting.config import ClassifierConfig, EncoderRunConfig
from drifting.data import ImagesData
from drifting.data.bank import MemoryBank
from drifting.data.sources import BankSource, InMemorySource, reference_samples, shuffled_indices
from drifting.encoders import AutoencoderConfig, MAEConfig
from drifting.encoders.mae import random_mask
from drifting.pretraining.loop import HeldRows, NetworkState, batches_of
from drifting.training.state import TrainingState

IMAGES = ImagesData(name="x", image_shape=(3, 16, 16), num_classes=3)
PURPOSES = ("generator", "encoder", "classifier", "projection", "training", "encoder training", "encoder batches", "memory bank")


def test_streams_of_purposes_and_seeds_have_known_values_and_differ():
    assert stream_seed(0, "generator") == 2076276050402766384
    found = [stream_seed(seed, purpose) for seed, purpose in itertools.product([-1, 0, 1, 11, 2**64], PURPOSES)]
    assert all(0 <= seed < 2**63 for seed in found)
    # A stream of the CPU counts its seeds modulo 2^32.
    assert len({seed % 2**32 for seed in found}) == len(found)


def test_initial_weights_leave_the_global_stream_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with initial_weights(0, "generator"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with initial_weights(0, "encoder"):
        assert not torch.equal(torch.rand(3), first)
    with initial_weights(0, "generator"):
        assert torch.equal(torch.rand(3), first)


def _first_weights(network) -> torch.Tensor:
    return next(weight.detach().flatten()[:300] for weight in network.parameters() if weight.ndim > 1)


def test_networks_of_a_run_and_their_extractor_start_from_different_numbers():
    run = dataclasses.replace(presets.preset("mnist-encoder"), data=IMAGES)
    configs = [dataclasses.replace(run, encoder=AutoencoderConfig()), ClassifierConfig(preset="x", data=IMAGES, seed=run.seed)]
    networks = [run.build_generator(), *(config.build_network() for config in configs)]
    correlations = torch.corrcoef(torch.stack([_first_weights(network) for network in networks])) - torch.eye(3)
    assert float(correlations.abs().max()) < 5 / 300**0.5


def test_first_mask_of_a_masked_autoencoder_knows_nothing_of_its_weights():
    """With one stream for both, the mask hid where the weights of the first layer were negative."""
    config = EncoderRunConfig(preset="x", data=ImagesData(name="x", image_shape=(3, 64, 64)), encoder=MAEConfig(width=16, patch=2))
    network = config.build_network()
    state = NetworkState(network, learning_rate=1.0, seed=config.seed)
    mask = random_mask(200, (32, 32), state.rng)[:, :, ::2, ::2].flatten()
    for weight in network.parameters():
        if weight.ndim > 1:
            weights = weight.detach().flatten()[: len(mask)]
            signs, hidden = (weights > 0).double(), mask[: len(weights)].double()
            expected = signs.mean() * hidden.mean() + (1 - signs.mean()) * (1 - hidden.mean())
            assert abs(float((signs == hidden).double().mean() - expected)) < 5 * (0.25 / len(weights)) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 10**6])
def test_streams_of_a_run_are_all_different(monkeypatch, seed):
    """All seeds of torch's streams that a run, its encoder and its pictures use."""
    used = []
    monkeypatch.setattr("drifting.data.sources.stream_seed", lambda *arguments: used.append(stream_seed(*arguments)) or used[-1])
    weights = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda value: used.append(value) or weights(value))
    run = dataclasses.replace(presets.preset("mnist-encoder"), data=IMAGES, seed=seed)
    generator, network = run.build_generator(), run.build_network()
    used += [TrainingState(generator, run.schedule, seed).rng.initial_seed()]
    used += [NetworkState(network, learning_rate=1.0, seed=seed).rng.initial_seed()]
    for number in (0, 1, 10**6):
        reference_samples(InMemorySource(torch.zeros(3, 2)), 2, number)
    assert len(used) == 7
    assert len({value % 2**32 for value in (*used, 0, 1, seed, 2**31 + seed)}) == len({0, 1, seed}) + len(used) + 1


def test_order_of_an_encoder_is_not_that_of_the_bank():
    bank = BankSource(torch.arange(1000.0), None, MemoryBank(None, sample_shape=()), push_per_step=1000, seed=0)
    bank.draw(None, 1, torch.Generator())
    pushed = bank.bank.rings["unconditional"].samples[0]
    order = batches_of(HeldRows(torch.arange(1000)), 1000, 0)(1)[0]
    assert sorted(order.tolist()) == sorted(pushed.tolist())
    # Neither is made by the stream of a sample's noise, whose key is the seed itself.
    plain = shuffled_indices(1000, 0, 1000, 0)
    assert len({tuple(found.tolist()) for found in (pushed, order, plain)}) == 3
