"""The loss by torch on a GPU starts no more operations than plain code. Counted on a CPU, with what it would choose on a GPU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drifting import drifting_loss
from drifting.fields import MeanShift, backends, pairwise, triton_drifts
from tests.oracle import drifting_oracle as oracle

# What gives another view of a tensor, or memory, and starts nothing on a device.
VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "transpose",
        "permute",
        "t",
        "expand",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "diagonal",
        "alias",
    ),
    *("detach", "unbind", "split_with_sizes", "as_strided", "empty", "new_empty", "empty_like"),
}


class _Started(TorchDispatchMode):
    """Count the operations that do anything."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*args, **(kwargs or {}))


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(pairwise, "is_slow_to_launch", lambda samples: True)


def draw(seed, *shapes) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    # In float64, which the compiled loops leave to torch, and whose products need no other precision.
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def plain_loss(samples: Tensor, positives: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return the loss of all groups by the paper's listing, batched."""
    generated, count = samples.detach(), samples.shape[1]
    distances = torch.cat([torch.cdist(generated, generated), torch.cdist(generated, positives)], 2)
    scale = distances.mean()
    unit = scale / generated.shape[2] ** 0.5
    distances = distances / scale
    distances.diagonal(dim1=1, dim2=2).add_(100)
    total = torch.zeros_like(generated)
    for temperature in temperatures:
        logits = -distances / temperature
        affinity = (logits.softmax(2) * logits.softmax(1)).clamp(min=1e-6).sqrt()
        negative, positive = affinity[..., :count], affinity[..., count:]
        drift = (positive * negative.sum(2, keepdim=True)) @ positives - (negative * positive.sum(2, keepdim=True)) @ generated
        drift = drift / unit
        total += drift / drift.square().mean().sqrt()
    return (samples / unit - (generated / unit + total)).square().mean()


def our_loss(samples: Tensor, positives: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    return drifting_loss(samples, positives, temperatures=temperatures).loss.mean()


def started(loss: Callable[..., Tensor], *arguments) -> int:
    """Return how many operations loss and gradient start."""
    with _Started() as operations:
        loss(*arguments).backward()
    return operations.count


# Two temperatures are those of the toys in the plane, three those of the release.
@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize(("width", "temperatures"), [(2, (0.1, 0.3)), (2, (0.02, 0.05, 0.2)), (64, (0.02, 0.05, 0.2))])
def test_small_problems_start_no_more_operations_than_plain_code(width, temperatures):
    samples, positives = draw(0, (4, 16, width), (4, 20, width))
    samples.requires_grad_()
    ours, plain = (started(loss, samples, positives, temperatures) for loss in (our_loss, plain_loss))
    assert 20 < ours <= plain


# Groups on the chip, and in tiles.
@pytest.mark.parametrize("shape", [(4, 16, 64), (1, 80, 2)])
@pytest.mark.parametrize("temperatures", [(0.05,), (0.02, 0.05, 0.2)])
def test_triton_starts_fewer_operations_than_plain_code(monkeypatch, shape, temperatures):
    pytest.importorskip("triton")
    launched = []
    monkeypatch.setattr(backends, "is_available", lambda samples: False)
    monkeypatch.setattr(triton_drifts, "_DEVICES", ("cpu",))
    monkeypatch.setattr(triton_drifts, "_agree", lambda device: True)
    monkeypatch.setattr(triton_drifts.TritonDrifts, "_launch", lambda self, kernel, *rest, **constants: launched.append(kernel))
    samples, positives = (values.float() for values in draw(0, shape, shape))
    samples.requires_grad_()
    ours, plain = (started(loss, samples, positives, temperatures) for loss in (our_loss, plain_loss))
    assert 3 <= len(launched) <= 7
    assert 20 < ours + len(launched) < plain


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize(("count", "width"), [(5, 2), (5, 12), (1, 12)])
def test_loss_at_once_is_that_of_the_oracle(floor, count, width):
    samples, weights = draw(1, (2, count, width), (2, 7, width), (2, 3, width)), draw(2, (2, count), (2, 7), (2, 3))
    named = zip(("generated_weights", "positive_weights", "unconditional_weights"), weights, strict=True)
    options = {name: value.abs() for name, value in named}
    generated = samples[0].clone().requires_grad_()
    report = drifting_loss(generated, *samples[1:], **options, field=MeanShift(floor))
    report.loss.sum().backward()
    expected = oracle.drifting_loss(*samples, **options, floor=floor)
    np.testing.assert_allclose(report.loss.detach(), expected.loss, rtol=1e-9)
    np.testing.assert_allclose(generated.grad, expected.grad, rtol=1e-8, atol=1e-9 * np.abs(expected.grad).max())


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_affinities_at_once_are_those_in_tiles():
    distances = draw(3, (3, 5, 9))[0].abs()
    distances[0, 2, 4] = distances[1, :, 3] = torch.inf
    temperatures = torch.tensor([1e-3, 0.1, 10.0], dtype=torch.float64)
    at_once = pairwise.affinities_at_once(distances, temperatures, 1e-6).unflatten(1, (3, 5))
    for index, groups, rows, tile in pairwise.affinity_tiles(distances, temperatures, 1e-6):
        torch.testing.assert_close(at_once[groups, index, rows], tile)
