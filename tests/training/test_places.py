"""A share of the places of every feature drifts in a step, drawn anew in every step."""

import dataclasses

import pytest
import torch

from drifting.config import RunConfig
from drifting.encoders import TilesConfig
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.loss import DriftingLoss, DriftLoss
from drifting.presets import adjust
from drifting.runs.train import build_encoder, build_positives, resolve
from drifting.training import loop
from drifting.training.loop import train
from drifting.training.positives import LazyFeatures, Places
from drifting.training.state import TrainingState


@pytest.fixture
def tiny_tiles(tiny_images) -> RunConfig:
    """Nine overlapping tiles of 4 x 4 pixels, and the image."""
    config = resolve(dataclasses.replace(tiny_images, encoder=TilesConfig(tiles=4, tile_stride=2)))
    return adjust(config, steps=6, labels_per_step=2, place_share=0.4)


def begun(config: RunConfig) -> tuple[TrainingState, list]:
    state, encoder = TrainingState(config.build_generator(), config.schedule, config.seed), build_encoder(config)
    return state, [build_positives(config, encoder), encoder, config.loss.build(), config.schedule]


def weights_after(config: RunConfig) -> dict[str, torch.Tensor]:
    state, parts = begun(config)
    list(train(state, *parts))
    return state.generator.state_dict()


def features(*sets: int) -> dict[str, torch.Tensor]:
    """Return features whose values are the numbers of their places."""
    return {"sample": torch.zeros(*sets, 1, 3), "tiles": torch.arange(10.0)[:, None].expand(*sets, 10, 3)}


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.3, 3), (0.5, 5), (0.99, 10)])
def test_a_share_of_the_places_is_kept_and_at_least_one(share, kept):
    chosen = Places(share, 0).of(features(2, 4))
    assert {name: tuple(value.shape) for name, value in chosen.items()} == {"sample": (2, 4, 1, 3), "tiles": (2, 4, kept, 3)}
    assert len(chosen["tiles"][0, 0, :, 0].unique()) == kept


def test_generated_and_real_samples_have_the_same_places():
    places = Places(0.3, 7)
    generated, real = places.encoder(features)(5), places.of(features(2, 4))
    assert torch.equal(generated["tiles"][0], real["tiles"][1, 2])


def test_all_places_are_drawn_about_equally_often_and_features_apart():
    drawn = torch.cat([Places(0.3, seed).of(features(1))["tiles"][0, :, 0] for seed in range(2000)]).long()
    # Each of 10 places is in 3 of 10 draws: 600 in the mean, with a standard deviation of 20.
    assert (drawn.bincount(minlength=10) - 600).abs().max() < 100
    same = {"a": features(1)["tiles"], "b": features(1)["tiles"]}
    assert any(not torch.equal(*Places(0.3, seed).of(same).values()) for seed in range(5))


def test_features_that_are_not_computed_yet_stay_so():
    computed = []

    def encode(drawn):
        computed.append(len(drawn))
        return features(*drawn.shape)

    chosen = Places(0.3, 7).of(LazyFeatures(torch.zeros(3, 4), encode))
    part = chosen.of(slice(1, 3))
    assert computed == []
    assert torch.equal(part["tiles"], Places(0.3, 7).of(features(2, 4))["tiles"])
    assert computed == [2]


def test_the_loss_of_all_places_is_the_mean_of_those_of_each():
    def random(count, seed):
        return torch.randn(2, count, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    # With the scale and the drift norms of the whole batch, groups are independent of each other.
    loss, generated, real = DriftingLoss(field=MeanShift(0.0)), {"tiles": random(4, 0).requires_grad_()}, {"tiles": random(6, 1)}
    whole = loss(generated, real)
    (expected,) = torch.autograd.grad(whole.loss, [generated["tiles"]])
    known: dict[str, DriftLoss] = whole.features
    # The seeds of one draw of each place.
    seeds = {int(Places(0.2, seed).of({"tiles": torch.arange(5.0)[:, None]})["tiles"][0, 0]): seed for seed in range(100)}
    assert len(seeds) == 5
    parts = [loss(Places(0.2, seed).of(generated), Places(0.2, seed).of(real), known=known).loss for seed in seeds.values()]
    (found,) = torch.autograd.grad(torch.stack(parts).mean(), [generated["tiles"]])
    torch.testing.assert_close(torch.stack(parts).mean(), whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("guided", [{}, {"guidance_scale": 1.5, "unconditional": 4}], ids=["plain", "guided"])
def test_n_and_n_steps_equal_2n_bit_for_bit_and_differ_from_those_of_all_places(tiny_tiles, guided, assert_same_tensors):
    config = adjust(tiny_tiles, **guided)
    first, parts = begun(config)
    for step in train(first, *parts):
        if step.number == 3:
            break
    resumed, parts = begun(config)
    resumed.restore({name: value.clone() for name, value in first.tensors().items()}, 3, "here")
    list(train(resumed, *parts))
    whole = weights_after(config)
    assert_same_tensors(resumed.generator.state_dict(), whole)
    every = weights_after(adjust(config, place_share=1.0))
    assert any(not torch.equal(value, whole[name]) for name, value in every.items())


@pytest.mark.parametrize("parts", [{"microbatch_size": 3}, {"labels_per_microbatch": 1}])
def test_a_step_in_parts_has_the_places_of_the_whole_step(tiny_tiles, parts):
    config = adjust(tiny_tiles, steps=2, generated=4, max_grad_norm=None)
    whole, found = weights_after(config), weights_after(adjust(config, **parts))
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_places_are_drawn_anew_in_every_step_and_for_every_seed(tiny_tiles, monkeypatch):
    seeds = []

    def noted(share, seed):
        seeds.append(seed)
        return Places(share, seed)

    monkeypatch.setattr(loop, "Places", noted)
    for seed in (0, 1):
        weights_after(dataclasses.replace(tiny_tiles, seed=seed))
    assert len(set(seeds)) == 12


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_is_above_0_and_up_to_1(tiny_tiles, share):
    with pytest.raises(InputError, match=rf"place_share is {share}: pass the share of places in a step, above 0 and up to 1"):
        adjust(tiny_tiles, place_share=share)
