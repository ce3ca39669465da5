"""Which changes of real images a feature encoder sees."""

import pytest
import torch

from drifting.encoders.base import identity
from drifting.encoders.response import responses


def draw(channels=3, count=12):
    return torch.rand((count, channels, 6, 6), generator=torch.Generator().manual_seed(0)) * 2 - 1


def histogram(images):
    return {"sorted": images.flatten(2).sort(2).values.flatten(1)[:, None]}


def gray(images):
    return {"gray": images.mean(1).flatten(1)[:, None]}


def test_pixels_see_every_change():
    found = responses(identity, draw())
    assert found.keys() == {"response/shuffled/sample", "response/recolored/sample"}
    # Shuffled noise is as far from itself as from other noise.
    assert all(value == pytest.approx(1, rel=0.1) for value in found.values())


@pytest.mark.parametrize(("encoder", "blind", "seen"), [(histogram, "shuffled", "recolored"), (gray, "recolored", "shuffled")])
def test_encoder_is_blind_to_what_it_averages_over(encoder, blind, seen):
    found = {name.split("/")[1]: value for name, value in responses(encoder, draw()).items()}
    assert found[blind] < 1e-6
    assert found[seen] > 0.1


def test_changes_that_images_do_not_show_are_left_out():
    assert set(responses(identity, draw(channels=1))) == {"response/shuffled/sample"}
    alike = draw(channels=1).repeat(1, 3, 1, 1)
    assert set(responses(identity, alike)) == {"response/shuffled/sample"}
    assert set(responses(identity, draw(), colors=False)) == {"response/shuffled/sample"}
    flat = torch.arange(12.0)[:, None, None, None].expand(12, 3, 6, 6)
    assert responses(identity, flat) == {}


def test_feature_that_is_the_same_for_all_images_is_left_out():
    def encoder(images):
        return {"constant": torch.ones(len(images), 1, 4), **identity(images)}

    assert set(responses(encoder, draw())) == {"response/shuffled/sample", "response/recolored/sample"}


def test_responses_are_the_same_every_time_and_draw_no_random_number():
    before = torch.get_rng_state()
    assert responses(identity, draw()) == responses(identity, draw())
    assert torch.equal(torch.get_rng_state(), before)
