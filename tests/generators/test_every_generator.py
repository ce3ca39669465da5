"""What every generator must do, whatever its network."""

from collections.abc import Callable

import pytest
import torch

from drifting.generators.base import Generator
from drifting.generators.dit import DiT, DiTSize
from drifting.generators.mlp import MLP, DecoderMLP
from drifting.generators.unet import UNet, UNetSize
from tests.support.networks import randomized

Maker = Callable[[int | None], Generator]


def _mlp(num_classes: int | None) -> Generator:
    return MLP(noise_dim=5, sample_shape=(1, 2, 3), width=7, depth=3, num_classes=num_classes)


def _decoder_mlp(num_classes: int | None) -> Generator:
    sizes = {"noise_dim": 5, "width": 7, "depth": 3, "code_dim": 6, "decoder_width": 4}
    return DecoderMLP(sample_shape=(3, 8, 8), num_classes=num_classes, **sizes)


def _dit(num_classes: int | None) -> Generator:
    size = DiTSize(patch=4, width=8, depth=2, heads=2, cond_dim=6, num_context_tokens=2, num_styles=3, style_classes=4)
    return randomized(DiT(sample_shape=(3, 8, 8), size=size, num_classes=num_classes))


def _unet(num_classes: int | None) -> Generator:
    size = UNetSize(patch=2, widths=(8, 8), blocks=1, heads=2, cond_dim=6, num_styles=3, style_classes=4)
    return randomized(UNet(sample_shape=(3, 8, 8), size=size, num_classes=num_classes))


@pytest.fixture(params=[_mlp, _decoder_mlp, _dit, _unet])
def make(request) -> Maker:
    torch.manual_seed(0)
    return request.param


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(network: Generator, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *network.noise_shape, generator=_rng())


def _styles(network: Generator, part: slice = slice(None)) -> dict[str, torch.Tensor]:
    """Return the style codes of six samples as an argument, for a generator that takes them."""
    codes = network.draw_style_indices(6, _rng())
    return {} if codes is None else {"style_indices": codes[part]}


def test_labels_act_on_their_own_samples_only(make):
    network = make(3)
    noise, styles = _noise(network), _styles(network)
    first = network(noise, torch.tensor([0, 0, 0, 0, 0, 0]), **styles)
    mixed = network(noise, torch.tensor([0, 1, 0, 2, 0, 0]), **styles)
    changed = (first - mixed).flatten(1).abs().amax(1) > 1e-5
    assert changed.tolist() == [False, True, False, True, False, False]


def test_samples_do_not_see_each_other(make):
    network = make(None)
    noise, part = _noise(network), slice(2, 4)
    torch.testing.assert_close(network(noise, **_styles(network))[part], network(noise[part], **_styles(network, part)))


def test_guidance_scale_is_accepted(make):
    network = make(None)
    noise, styles = _noise(network), _styles(network)
    assert torch.equal(network(noise, None, torch.ones(6), **styles), network(noise, **styles))


def test_samples_have_the_shape_that_is_announced(make):
    network = make(None)
    assert network(_noise(network), **_styles(network)).shape == (6, *network.sample_shape)


def test_style_indices_are_drawn_from_the_stream_they_are_given(make):
    network = make(None)
    codes = network.draw_style_indices(500, _rng())
    if network.num_styles == 0:
        assert codes is None
        return
    assert codes.shape == (500, network.num_styles)
    assert torch.equal(codes.unique(), torch.arange(network.style_classes))
    assert torch.equal(codes, network.draw_style_indices(500, _rng()))
    assert not torch.equal(codes, network.draw_style_indices(500, _rng(2)))
