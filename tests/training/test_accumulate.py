"""A step in microbatches is the whole step."""

import dataclasses

import pytest
import torch
from torch import nn

from drifting.generators.base import Generator
from drifting.generators.mlp import MLP
from drifting.loss import DriftingLoss
from drifting.training.step import Batch, drifting_step, microbatched_step
from tests.support.covering import pairwise

LABELS, GENERATED, NOISE, CODES = 3, 7, 4, 2
LOSS = DriftingLoss(temperatures=(0.2, 1.0))


class Watched(Generator):
    """A perceptron that takes style codes, and remembers how many samples it was asked for and whether a graph was made."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = MLP(noise_dim=NOISE, sample_shape=(6,), width=9, depth=2, num_classes=5, guided=True)
        self.styles = nn.Embedding(3, NOISE)
        self.noise_shape, self.sample_shape, self.num_classes, self.guided = (NOISE,), (6,), 5, True
        self.calls: list[tuple[int, bool]] = []

    def forward(self, noise, labels=None, guidance_scale=None, style_indices=None):
        self.calls.append((len(noise), torch.is_grad_enabled()))
        return self.inner(noise + self.styles(style_indices).sum(1), labels, guidance_scale)


def _encode(samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return three features of 1, 3 and 2 locations."""
    return {"all": samples[:, None], "parts": samples.unflatten(1, (3, 2)).tanh(), "halves": samples.unflatten(1, (2, 3)).square()}


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _real(count: int, seed: int) -> dict[str, torch.Tensor]:
    features = _encode(_random(LABELS * count, 6, seed=seed))
    return {name: value.unflatten(0, (LABELS, count)) for name, value in features.items()}


def _codes(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, (LABELS, count, CODES), generator=torch.Generator().manual_seed(seed))


PLAIN = Batch(
    noise=_random(LABELS, GENERATED, NOISE, seed=1),
    style_indices=_codes(GENERATED, seed=2),
    labels=torch.tensor([3, 0, 4]),
    positives=_real(8, seed=3),
)
GUIDED = dataclasses.replace(
    PLAIN,
    guidance_scale=torch.tensor([1.0, 1.7, 3.1]),
    unconditional=_real(5, seed=4),
    unconditional_weight=torch.tensor([0.0, 0.8, 2.5]),
)
INDEPENDENT = {"independent_noise": _random(LABELS, 6, NOISE, seed=5), "independent_style_indices": _codes(6, seed=6)}
DETACHED = {"detached_noise": _random(LABELS, 5, NOISE, seed=7), "detached_style_indices": _codes(5, seed=8)}
BATCHES = {
    "plain": PLAIN,
    "guided": GUIDED,
    "independent": dataclasses.replace(PLAIN, **INDEPENDENT),
    "detached": dataclasses.replace(GUIDED, **DETACHED),
    "learned temperature": dataclasses.replace(GUIDED, temperature_factor=torch.tensor(0.7), learns_temperature=True),
    "all": dataclasses.replace(GUIDED, **INDEPENDENT),
}


def _gradients(generator: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in generator.named_parameters() if weight.grad is not None}


@pytest.fixture
def make():
    return lambda: Watched().double()


@pytest.mark.parametrize(
    *pairwise(
        kind=list(BATCHES),
        size=(1, 4, 7, 10, 21, 100),
        normalize=(False, True),
        clip={"free": None, "clipped": 0.5},
        rows=(False, True),
    )
)
def test_gradient_and_report_are_those_of_the_whole_step(make, kind, size, normalize, clip, rows):
    options = {"normalize_features": normalize, "normalize_drift": normalize, "scale_per_row": rows and normalize}
    loss = DriftingLoss(temperatures=(0.2, 1.0), drift_clip=clip, **options)
    whole, parted = make(), make()
    expected = drifting_step(whole, _encode, loss, BATCHES[kind], statistics=True)
    expected.loss.backward()
    report, _ = microbatched_step(parted, _encode, loss, BATCHES[kind], size=size, statistics=True)
    gradients, others = _gradients(whole), _gradients(parted)
    assert gradients.keys() == others.keys()
    assert max(float(value.abs().max()) for value in gradients.values()) > 1e-3
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(report.loss, expected.loss.detach(), rtol=1e-9, atol=0)
    for name, feature in expected.features.items():
        torch.testing.assert_close(report.features[name].scale, feature.scale, rtol=1e-9, atol=0)
        torch.testing.assert_close(report.features[name].drift_norms, feature.drift_norms, rtol=1e-9, atol=0)
        torch.testing.assert_close(report.features[name].statistics, feature.statistics)
        torch.testing.assert_close(report.features[name].temperature_slope, feature.temperature_slope, rtol=1e-9, atol=1e-12)


def test_parts_that_are_each_a_step_of_their_own_have_another_gradient(make):
    """What the test above would not be told apart from, if scale and drift were those of a part."""
    whole, parted = make(), make()
    drifting_step(whole, _encode, LOSS, PLAIN).loss.backward()
    for index in range(GENERATED):
        part = slice(index, index + 1)
        one = dataclasses.replace(PLAIN, noise=PLAIN.noise[:, part], style_indices=PLAIN.style_indices[:, part])
        (drifting_step(parted, _encode, LOSS, one).loss / GENERATED).backward()
    name = "inner.output.weight"
    assert not torch.allclose(_gradients(whole)[name], _gradients(parted)[name], rtol=0.1)


def test_gradient_is_added_to_what_is_there(make):
    once, twice = make(), make()
    microbatched_step(once, _encode, LOSS, PLAIN, size=4)
    for _ in range(2):
        microbatched_step(twice, _encode, LOSS, PLAIN, size=4)
    for name, value in _gradients(once).items():
        torch.testing.assert_close(_gradients(twice)[name], 2 * value)


@pytest.mark.parametrize(("size", "passes"), [(1, [1] * 21), (8, [8, 8, 5]), (30, [21])])
def test_no_pass_is_larger_than_a_microbatch_and_only_the_last_have_a_graph(make, size, passes):
    generator = make()
    microbatched_step(generator, _encode, LOSS, BATCHES["all"], size=size)
    with_graph = [count for count, graph in generator.calls if graph]
    without = [count for count, graph in generator.calls if not graph]
    assert with_graph == passes
    assert without[: len(passes)] == passes
    assert sum(without[len(passes) :]) == LABELS * 6
    assert max(without) <= size


@pytest.mark.parametrize(("kind", "further"), [("plain", 0), ("all", 6), ("detached", 5)])
def test_bytes_of_features_and_their_gradients_are_reported(make, kind, further):
    _, stored = microbatched_step(make(), _encode, LOSS, BATCHES[kind], size=4)
    assert stored == LABELS * (2 * GENERATED + further) * (6 + 6 + 6) * 8


def test_report_holds_no_graph(make):
    report, _ = microbatched_step(make(), _encode, LOSS, PLAIN, size=4)
    assert not report.loss.requires_grad
    assert not any(feature.loss.requires_grad for feature in report.features.values())


def test_weights_get_their_gradient_under_autocast_too():
    """Autocast keeps what it casts; of the pass without graph, in older releases of torch, nothing may be used again."""
    whole, parted, batch = Watched(), Watched(), dataclasses.replace(PLAIN, noise=PLAIN.noise.float())
    batch = dataclasses.replace(batch, positives={name: value.float() for name, value in batch.positives.items()})
    with torch.autocast("cpu", torch.bfloat16):
        drifting_step(whole, _encode, LOSS, batch).loss.backward()
        microbatched_step(parted, _encode, LOSS, batch, size=4)
    gradients, others = _gradients(whole), _gradients(parted)
    assert gradients.keys() == others.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, rtol=0.1, atol=0.05 * float(value.abs().max()))
