"""What every generator must do, whatever its network."""

from collections.abc import Callable

import pytest
import torch

from drifting.generators.base import Generator
from drifting.generators.decoder_mlp import DecoderMLP
from drifting.generators.mlp import MLP

Maker = Callable[[int | None], Generator]


def _mlp(num_classes: int | None) -> Generator:
    return MLP(noise_dim=5, sample_shape=(1, 2, 3), width=7, depth=3, num_classes=num_classes)


def _decoder_mlp(num_classes: int | None) -> Generator:
    sizes = {"noise_dim": 5, "width": 7, "depth": 3, "code_dim": 6, "decoder_width": 4}
    return DecoderMLP(sample_shape=(3, 8, 8), num_classes=num_classes, **sizes)


@pytest.fixture(params=[_mlp, _decoder_mlp])
def make(request) -> Maker:
    torch.manual_seed(0)
    return request.param


def _noise(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


def test_labels_act_on_their_own_samples_only(make):
    network = make(3)
    first = network(_noise(), torch.tensor([0, 0, 0, 0, 0, 0]))
    mixed = network(_noise(), torch.tensor([0, 1, 0, 2, 0, 0]))
    changed = (first - mixed).flatten(1).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, True, False, True, False, False]


def test_samples_do_not_see_each_other(make):
    network, noise = make(None), _noise()
    torch.testing.assert_close(network(noise)[2:4], network(noise[2:4]))


def test_guidance_scale_is_accepted(make):
    network = make(None)
    assert torch.equal(network(_noise(), None, torch.ones(6)), network(_noise()))
