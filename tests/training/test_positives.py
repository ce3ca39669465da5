import dataclasses

import pytest
import torch

from drifting import runs
from drifting.checkpoint import checkpoints, load_tensors
from drifting.data import BankConfig
from drifting.data.pixels import to_signed
from drifting.encoders import PixelsConfig
from drifting.encoders.base import identity
from drifting.errors import InputError
from drifting.runs.train import build_encoder, build_positives, resolve
from drifting.training.loop import train
from drifting.training.positives import FeatureCache, Positives, Stateful, encode_sets
from drifting.training.state import TrainingState

BANK = BankConfig(capacity_per_class=6, unconditional_capacity=4, push_per_step=5)
FEATURES = ("code", "pixels", "norm_x", "stage2_mean")


@pytest.fixture
def config(tiny_images):
    encoder = dataclasses.replace(tiny_images.encoder, features=FEATURES)
    return resolve(dataclasses.replace(tiny_images, encoder=encoder))


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _unlabeled(config):
    data = dataclasses.replace(config.data, conditional=False, image_shape=None)
    return resolve(dataclasses.replace(config, data=data, schedule=dataclasses.replace(config.schedule, guidance_scale=1.0)))


def _positives(config) -> Positives:
    return build_positives(config, build_encoder(config, config.build_network()))


def _trained(config, steps: int, state: dict | None = None, done: int = 0) -> dict[str, torch.Tensor]:
    """Train from a state to a step and return the new state, with that of the positives."""
    encoder = build_encoder(config, config.build_network())
    positives = build_positives(config, encoder)
    training = TrainingState(config.build_generator(), config.schedule, config.seed)
    if state is not None:
        training.restore({name: value for name, value in state.items() if "positives." not in name}, done, "here")
        positives.restore({name.removeprefix("positives."): value for name, value in state.items() if "positives." in name}, "here")
    for _ in train(training, positives, encoder, config.loss.build(), dataclasses.replace(config.schedule, steps=steps)):
        pass
    tensors = {**training.tensors(), **{f"positives.{name}": value for name, value in positives.tensors().items()}}
    return {name: value.clone() for name, value in tensors.items()}


def test_sets_are_encoded_each_on_its_own():
    samples = torch.randn(3, 5, 1, 4, 4)
    features = encode_sets(identity, samples)
    assert torch.equal(features["sample"], samples.flatten(2)[:, :, None])


@pytest.mark.parametrize("unconditional", [False, True])
def test_features_are_those_of_the_samples_that_a_source_draws(config, unconditional):
    if unconditional:
        config = _unlabeled(config)
    config = dataclasses.replace(config, encoder=PixelsConfig())
    labels = None if unconditional else torch.tensor([2, 0])
    positives, source = _positives(config), config.data.source(config.seed)
    assert positives.num_classes == source.num_classes
    drawn = positives.draw(labels, 4, _rng())
    assert drawn.keys() == {"sample"}
    assert torch.equal(drawn["sample"], source.draw(labels, 4, _rng()).flatten(2)[:, :, None])


@pytest.mark.parametrize("bank", [None, BANK])
def test_cached_features_are_of_the_same_samples_as_those_encoded_again(config, bank):
    config = dataclasses.replace(config, bank=bank)
    cached, anew = (_positives(dataclasses.replace(config, cache_features=cache)) for cache in (True, False))
    for seed in range(3):
        first, second = (positives.draw(torch.tensor([1, 0, 2]), 7, _rng(seed)) for positives in (cached, anew))
        assert tuple(first) == tuple(second) == FEATURES
        assert torch.equal(first["pixels"], second["pixels"])
        for name in FEATURES:  # a product of another number of rows may round otherwise
            torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)
            assert not first[name].requires_grad


@pytest.mark.parametrize("bank", [None, BANK])
def test_run_on_cached_features_equals_one_that_encodes_again_bit_for_bit(config, bank, monkeypatch, assert_same_tensors):
    encoder = dataclasses.replace(config.encoder, features=("pixels", "norm_x"))
    guided = dataclasses.replace(config.schedule, guidance_scale=1.12)
    config = dataclasses.replace(config, bank=bank, encoder=encoder, schedule=guided)
    made = []
    monkeypatch.setattr(FeatureCache, "lookup", lambda self, rows, lookup=FeatureCache.lookup: made.append(1) or lookup(self, rows))
    cached = _trained(config, 6)
    assert len(made) == 12  # positives, and samples of any label
    anew = _trained(dataclasses.replace(config, cache_features=False), 6)
    assert len(made) == 12
    training = [{name: value for name, value in state.items() if "positives." not in name} for state in (cached, anew)]
    assert_same_tensors(*training)


def test_pixels_are_not_cached(config, monkeypatch):
    monkeypatch.setattr(FeatureCache, "__init__", None)
    positives = _positives(dataclasses.replace(config, encoder=PixelsConfig()))
    assert positives.draw(torch.tensor([0]), 2, _rng())["sample"].shape == (1, 2, 1, 64)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("encoder", ["autoencoder", "pixels"])
@pytest.mark.parametrize("unconditional", [False, True])
def test_n_and_n_steps_with_a_bank_equal_2n_bit_for_bit(config, cache, encoder, unconditional, assert_same_tensors):
    config = dataclasses.replace(config, bank=BANK, cache_features=cache)
    if encoder == "pixels":
        config = dataclasses.replace(config, encoder=PixelsConfig())
    if unconditional:
        config = _unlabeled(config)
    halves = _trained(config, 6, _trained(config, 3), done=3)
    whole = _trained(config, 6)
    assert {name for name in whole if name.startswith("positives.")} == {
        "positives.position",
        *(
            f"positives.{ring}.{part}"
            for ring in ("classes", "unconditional")
            for part in ("samples", "pushed", "turns", "numbers")
        ),
    }
    assert_same_tensors(halves, whole)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("cache", [True, False])
def test_bank_is_in_the_checkpoints_and_a_resumed_run_equals_the_whole_one(config, cache, tmp_path, assert_same_tensors):
    config = dataclasses.replace(config, bank=BANK, cache_features=cache, checkpoint_every=3)
    longer = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=6))
    shorter = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=3))
    whole = runs.train(longer, tmp_path / "whole").folder
    runs.train(shorter, tmp_path / "halves")
    halves = runs.train(longer, tmp_path / "halves", resume=True).folder
    states = [load_tensors(checkpoints(folder / "checkpoints")[-1] / "state.safetensors") for folder in (whole, halves)]
    held = states[0]["positives.classes.samples"]
    assert (held.shape, held.dtype) == (((3, 6), torch.long) if cache else ((3, 6, 1, 8, 8), torch.float32))
    assert_same_tensors(*states)
    assert_same_tensors(*(load_tensors(folder / "generator.safetensors") for folder in (whole, halves)))


def test_bank_holds_only_what_it_was_given(config):
    positives = _positives(dataclasses.replace(config, encoder=PixelsConfig(), bank=BANK))
    train_set = config.data.load("train")
    drawn = positives.draw(torch.tensor([0, 1, 2]), 20, _rng())["sample"].flatten(2)
    for label in range(3):
        mine = {tuple(image) for image in to_signed(train_set.images[train_set.labels == label]).flatten(1).tolist()}
        found = {tuple(image) for image in drawn[label].tolist()}
        assert found <= mine
        assert len(found) == BANK.capacity_per_class


def test_whole_data_set_has_no_state(config):
    positives = _positives(config)
    assert positives.tensors() == {}
    positives.restore({}, "here")
    with pytest.raises(InputError, match="'position' of real samples, but this run has no such state"):
        positives.restore({"position": torch.tensor(3)}, "here")
    assert not isinstance(config.data.source(config.seed), Stateful)


def test_state_of_no_bank_is_refused(config):
    positives = _positives(dataclasses.replace(config, bank=BANK))
    assert isinstance(positives._source, Stateful)
    with pytest.raises(InputError, match=r"checkpoint is 'here', .*position is missing"):
        positives.restore({}, "here")


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_sets_are_encoded_in_parts_without_changing_them(size):
    samples, sizes = torch.randn(3, 4, 6, generator=_rng()), []

    def encode(part):
        sizes.append(len(part))
        return {"a": part[:, None], "b": part.unflatten(1, (3, 2)) ** 2}

    parts, whole = encode_sets(encode, samples, size), encode_sets(encode, samples)
    assert max(sizes[:-1]) == min(size, 12)
    assert sizes[-1] == 12
    assert parts.keys() == whole.keys() == {"a", "b"}
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_microbatch_bounds_what_is_encoded_of_real_samples(config):
    schedule = dataclasses.replace(config.schedule, microbatch_size=5)
    encoder, sizes = build_encoder(config, config.build_network()), []

    def watched(samples):
        sizes.append(len(samples))
        return encoder(samples)

    positives = build_positives(dataclasses.replace(config, schedule=schedule, cache_features=False), watched)
    drawn = positives.draw(torch.tensor([0, 2]), 8, _rng())
    assert sizes == [5, 5, 5, 1]
    assert drawn["code"].shape == (2, 8, 1, 8)
