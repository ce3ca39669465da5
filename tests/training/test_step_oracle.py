"""One whole step of training of the release's small models against an oracle: bank, guidance, every feature and every gradient."""

import copy
import os
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from drifting.data.bank import MemoryBank
from drifting.data.sources import BankSource
from drifting.encoders.base import compose, identity
from drifting.encoders.mae import MaskedAutoencoder
from drifting.hub import load_encoder, load_generator
from drifting.loss import DriftingLoss, FeatureLoss
from drifting.training import loop
from drifting.training.positives import Positives
from drifting.training.schedule import Schedule
from drifting.training.state import TrainingState
from drifting.training.step import Batch
from tests.oracle import step_oracle as oracle

REFERENCE = os.environ.get("DRIFTING_REFERENCE")

pytestmark = pytest.mark.skipif(REFERENCE is None, reason="DRIFTING_REFERENCE names no folder of small models")

CAPACITY, UNCONDITIONAL_CAPACITY, PER_CLASS = 8, 40, 12
TEMPERATURES = (0.02, 0.05, 0.2)
# Of 32 channels normalized in 32 groups: the same for all samples, so that their drift is rounding. In float32 it adds a
# hundredth to the loss here, and nothing to the gradient.
CONSTANT = {"layer1_mean", "layer1_std"}
# With 4 others to each sample and 4 unconditional ones, the weight (alpha - 1) 4/4 of the library is exact in float32 too.
SCHEDULE = Schedule(
    steps=1,
    labels_per_step=2,
    generated=5,
    positives=6,
    guidance_exponent=1.0,
    unconditional=4,
    learning_rate=1e-4,
    max_grad_norm=None,
)


class WatchedBank(MemoryBank):
    """A bank that keeps what went in and came out."""

    def __init__(self, *sizes, **options) -> None:
        super().__init__(*sizes, **options)
        self.pushed, self.drawn = [], {}

    def push(self, samples, labels=None, numbers=None):
        self.pushed.append((samples, labels))
        super().push(samples, labels, numbers)

    def draw(self, *arguments):
        self.drawn["positives"] = super().draw(*arguments)
        return self.drawn["positives"]

    def draw_unconditional(self, *arguments):
        self.drawn["unconditional"] = super().draw_unconditional(*arguments)
        return self.drawn["unconditional"]


class Taken(NamedTuple):
    """A step that was taken: the networks as they were before it, what was drawn, and what came of it."""

    networks: tuple[torch.nn.Module, MaskedAutoencoder]
    batch: Batch
    bank: WatchedBank
    report: FeatureLoss
    gradients: dict[str, torch.Tensor]


def real_samples(generator):
    """Return samples of every class around a mean of its own, exact in float32, and their labels."""
    rng = torch.Generator().manual_seed(0)
    classes = generator.num_classes
    centers = torch.randn(classes, 1, *generator.sample_shape, generator=rng, dtype=torch.float32)
    spread = torch.randn(classes, PER_CLASS, *generator.sample_shape, generator=rng, dtype=torch.float32)
    return (0.5 * centers + 0.5 * spread).flatten(0, 1), torch.arange(classes).repeat_interleave(PER_CLASS)


def take_step(case, dtype, monkeypatch, schedule) -> Taken:
    """Take the first step of a training in a precision, as `train` does it."""
    generator = load_generator(f"{REFERENCE}/generator_{case}").to(dtype)
    features = load_encoder(f"{REFERENCE}/mae_{case}").to(dtype)
    before = copy.deepcopy(generator), features.autoencoder
    bank = WatchedBank(
        generator.num_classes,
        capacity_per_class=CAPACITY,
        unconditional_capacity=UNCONDITIONAL_CAPACITY,
        sample_shape=generator.sample_shape,
        dtype=dtype,
    )
    samples, labels = real_samples(generator)
    source = BankSource(samples.to(dtype), labels, bank, push_per_step=20, seed=0)
    encoder = compose({"": features, "global": identity})
    state, batches, draw = TrainingState(generator, schedule, seed=3), [], loop.draw_batch

    def watched(*arguments):
        batches.append(draw(*arguments))
        return batches[-1]

    monkeypatch.setattr(loop, "draw_batch", watched)
    parts = Positives(source, encoder), encoder, DriftingLoss(temperatures=TEMPERATURES)
    taken = next(loop.train(state, *parts, schedule))
    gradients = {name: weight.grad for name, weight in generator.named_parameters()}
    return Taken(before, batches[0], bank, taken.report, gradients)


def expected_of(taken):
    """Return what the oracle makes of the same noise, labels, codes, guidance scales and real samples."""
    generator, autoencoder = (network.double() for network in taken.networks)
    drawn = {name: samples.double() for name, samples in taken.bank.drawn.items()}
    return oracle.step(generator, autoencoder, taken.batch, **drawn, temperatures=TEMPERATURES)


def errors_of(taken, expected):
    """Return the relative error of every gradient (to its largest entry), and of every feature's loss, scale and drift norms."""
    assert taken.gradients.keys() == expected.gradients.keys()
    assert taken.report.features.keys() == expected.losses.keys()
    errors = {}
    for name, true in expected.gradients.items():
        assert true.any(), name
        errors[f"gradient of {name}"] = float((taken.gradients[name] - true).abs().max() / true.abs().max())
    for name in expected.losses.keys() - CONSTANT:
        report = taken.report.features[name]
        found = {"loss": report.loss.detach().mean(), "scale": report.scale, **report.drift_norms}
        true = (expected.losses[name], expected.scales[name], *expected.drift_norms[name])
        for (part, value), known in zip(found.items(), true, strict=True):
            errors[f"{part} of {name}"] = abs(float(value) - known) / max(abs(known), 1e-8)
    return errors


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("case", "microbatch_size"), [("latent", None), ("pixel", 4)])
def test_a_step_in_float64_is_that_of_the_oracle(case, microbatch_size, monkeypatch):
    taken = take_step(case, torch.float64, monkeypatch, replace(SCHEDULE, microbatch_size=microbatch_size))
    expected = expected_of(taken)
    loss = sum(expected.losses.values())
    errors = errors_of(taken, expected) | {"loss": abs(float(taken.report.loss.detach()) - loss) / loss}
    assert {name: error for name, error in errors.items() if not error < 1e-9} == {}


@pytest.fixture(scope="module", params=["latent", "pixel"])
def taken(request):
    """A step in float32."""
    with pytest.MonkeyPatch.context() as patch:
        return take_step(request.param, torch.float32, patch, SCHEDULE)


def test_a_step_in_float32_is_that_of_the_oracle(taken):
    errors = errors_of(taken, expected_of(taken))
    assert {name: error for name, error in errors.items() if not error < 1e-4} == {}


def test_real_samples_of_the_step_are_those_that_the_bank_should_hold(taken):
    bank = oracle.OracleBank(taken.bank.num_classes, CAPACITY, UNCONDITIONAL_CAPACITY)
    for samples, labels in taken.bank.pushed:
        bank.push(samples, labels)
    positives, unconditional = taken.bank.drawn["positives"], taken.bank.drawn["unconditional"]
    assert len(positives) == len(unconditional) == len(taken.batch.labels) == 2
    assert all(bank.can_give(some, label) for some, label in zip(positives, taken.batch.labels, strict=True))
    assert not bank.can_give(positives[0], taken.batch.labels[1])
    assert all(bank.can_give(some) for some in unconditional)
    # Without these, a weight that is wrong would not be noticed.
    assert (taken.batch.guidance_scale > 1.1).all()
    assert all(taken.report.features[name].scale < 1e-3 for name in CONSTANT)
