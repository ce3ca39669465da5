import math

import numpy as np
import pytest
import torch
from torch import nn

from drifting.encoders.resnet import ResNet, ResNetFeatures
from drifting.encoders.simclr import SimCLR, SimCLRFeatures, nt_xent
from drifting.errors import InputError
from drifting.evaluation.extractors import Classifier


def _pair(count=5, dim=4, seed=0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.randn(2, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return first, second


def _model(**kwargs) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Classifier((3, 8, 8), 2, width=4), features=128, projection=6, **kwargs)


def _views(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.rand(2, count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return first, second


def oracle(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Return the loss by loops, in float64."""
    views = [vector / np.sqrt(sum(vector**2)) for vector in (*first, *second)]
    losses = []
    for i, view in enumerate(views):
        partner = views[(i + len(first)) % len(views)]
        others = [sum(view * other) / temperature for k, other in enumerate(views) if k != i]
        shift = max(others)
        losses.append(shift + math.log(sum(math.exp(other - shift) for other in others)) - sum(view * partner) / temperature)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("temperature", [0.001, 0.1, 0.5, 100.0])
def test_loss_is_that_of_the_loops(count, temperature):
    first, second = _pair(count)
    expected = oracle(first.numpy(), second.numpy(), temperature)
    assert float(nt_xent(first, second, temperature=temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(nt_xent(first.float(), second.float(), temperature=temperature)) == pytest.approx(expected, rel=1e-4)


def test_loss_is_symmetric_and_knows_directions_alone():
    first, second = _pair()
    loss = nt_xent(first, second)
    torch.testing.assert_close(nt_xent(second, first), loss)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nt_xent(first[order], second[order]), loss)
    torch.testing.assert_close(nt_xent(3 * first, 0.1 * second), loss)
    turn = torch.linalg.qr(_pair(4)[0])[0]
    torch.testing.assert_close(nt_xent(first @ turn, second @ turn), loss)
    assert abs(float(nt_xent(first, second[order]) - loss)) > 1e-3


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_aligned_and_spread_pairs_have_the_least_loss(temperature):
    # A simplex: every pair at one place, all places as far apart as they can be.
    simplex = torch.eye(5, dtype=torch.float64) - 1 / 5
    least = float(nt_xent(simplex, simplex, temperature=temperature))
    closed = math.log(math.exp(1 / temperature) + 8 * math.exp(-0.25 / temperature)) - 1 / temperature
    assert least == pytest.approx(closed, rel=1e-12)
    for seed in range(20):
        first, second = _pair(5, 5, seed)
        assert float(nt_xent(simplex + 0.01 * first, simplex + 0.01 * second, temperature=temperature)) > least
        assert float(nt_xent(first, first, temperature=temperature)) > least


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_collapse_is_a_plateau(count, temperature):
    same = torch.ones(count, 3, dtype=torch.float64).requires_grad_()
    loss = nt_xent(same, same.detach(), temperature=temperature)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2 * count - 1), rel=1e-12)
    assert float(same.grad.abs().max()) < 1e-12


def test_gradient_is_that_of_finite_differences():
    first, second = (part.requires_grad_() for part in _pair(4, 3))
    nt_xent(first, second, temperature=0.3).backward()
    for part, other, order in [(first, second, 1), (second, first, -1)]:
        for row in range(4):
            for column in range(3):
                step = torch.zeros(4, 3, dtype=torch.float64)
                step[row, column] = 1e-5
                ends = [[part.detach() + sign * step, other.detach()][::order] for sign in (1, -1)]
                above, below = (oracle(end[0].numpy(), end[1].numpy(), 0.3) for end in ends)
                assert float(part.grad[row, column]) == pytest.approx((above - below) / 2e-5, rel=1e-5, abs=1e-8)


def test_half_precision_is_compared_in_float32():
    first, second = _pair(16, 8, dtype=torch.bfloat16)
    expected = oracle(first.double().numpy(), second.double().numpy(), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(first, second, temperature=0.05)
        assert _model()(*_views()).dtype == torch.float32
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_model_compares_projections_of_the_trunk():
    model, (first, second) = _model(temperature=0.2).eval(), _views()
    assert torch.equal(model.embed(first), model.trunk.embed(first))
    layer, norm, _, output = model.project
    with torch.no_grad():
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        sides = [
            torch.relu(norm(model.trunk.embed(side) @ layer.weight.T)) @ output.weight.T + output.bias for side in (first, second)
        ]
        torch.testing.assert_close(model(first, second), nt_xent(*sides, temperature=0.2))


def test_both_views_are_normalized_as_one_batch():
    model, (first, second) = _model(), _views()
    model(first, second)
    together, expected = model.trunk.norm.running_mean, _model()
    expected.trunk.embed(torch.cat([first, second]))
    torch.testing.assert_close(together, expected.trunk.norm.running_mean)
    assert int(model.trunk.norm.num_batches_tracked) == 1


def test_training_pulls_views_together_and_reaches_every_weight():
    model, (first, _) = _model(), _views()
    second = first + 0.1 * _views()[1]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = model(first, second).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(first, second)
        loss.backward()
        optimizer.step()
    assert loss.item() < before - 0.3
    # The classifier's own output is no part of the features.
    still = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == ["trunk.output.weight", "trunk.output.bias"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nt_xent(torch.ones(1, 3), torch.ones(1, 3)), r"\(1, 3\) and \(1, 3\)"),
        (lambda: nt_xent(torch.ones(4, 3), torch.ones(2, 3)), "two views of each"),
        (lambda: _model()(_views(4)[0], _views(2)[0]), "two views of each"),
        (lambda: nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=0.0), "temperature is 0"),
        (lambda: _model(temperature=-1.0), "temperature is -1"),
        (lambda: SimCLR(nn.Linear(3, 3), features=3), "trunk is a Linear"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_features_are_those_of_the_trunk():
    torch.manual_seed(0)
    trunk = ResNet("resnet18", (3, 16, 16), num_classes=None, width=4, small_stem=True)
    network = SimCLR(trunk, features=trunk.embed(torch.zeros(1, 3, 16, 16)).shape[1])
    names, (images, _) = ("stage4_mean", "stage2"), torch.rand(2, 3, 3, 16, 16) * 2 - 1
    found, expected = SimCLRFeatures(network, names)(images), ResNetFeatures(trunk, names)(images)
    assert list(found) == list(names)
    for name in names:
        assert torch.equal(found[name], expected[name])
    assert not any(weight.requires_grad for weight in trunk.parameters())


def test_features_need_a_resnet_as_trunk():
    with pytest.raises(InputError, match="network has a Classifier as its trunk: pass a SimCLR over a ResNet"):
        SimCLRFeatures(_model())
