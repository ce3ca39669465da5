"""A step on some labels at a time is the whole step."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from drifting.fields import MeanShift
from drifting.generators.mlp import MLP
from drifting.loss import DriftingLoss
from drifting.training import loop
from drifting.training.schedule import Schedule
from drifting.training.step import Batch, drifting_step, label_batched_step
from tests.support.covering import pairwise
from tests.support.threads import on_peers

LABELS, GENERATED, NOISE = 6, 5, 4


def generator():
    torch.manual_seed(0)
    return MLP(noise_dim=NOISE, sample_shape=(6,), width=9, depth=2, num_classes=7, guided=True).double()


def encode(samples):
    """Return two features of 1 and 3 locations."""
    return {"all": samples[:, None], "parts": samples.unflatten(1, (3, 2)).tanh()}


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def real(count, seed):
    return {name: value.unflatten(0, (LABELS, count)) for name, value in encode(random(LABELS * count, 6, seed=seed)).items()}


PLAIN = Batch(noise=random(LABELS, GENERATED, NOISE, seed=1), labels=torch.tensor([3, 0, 4, 6, 1, 2]), positives=real(8, seed=3))
GUIDED = dataclasses.replace(
    PLAIN,
    guidance_scale=torch.tensor([1.0, 2.5, 4.0, 1.5, 1.0, 3.0], dtype=torch.float64),
    unconditional=real(3, seed=4),
    unconditional_weight=torch.tensor([0.0, 2.0, 4.0, 0.7, 0.0, 2.7], dtype=torch.float64),
)
BATCHES = {
    "plain": PLAIN,
    "guided": GUIDED,
    "unweighted": dataclasses.replace(GUIDED, unconditional_weight=None),
    "independent": dataclasses.replace(GUIDED, independent_noise=random(LABELS, 4, NOISE, seed=5)),
    "detached": dataclasses.replace(GUIDED, detached_noise=random(LABELS, 3, NOISE, seed=6)),
    "learned temperature": dataclasses.replace(GUIDED, temperature_factor=torch.tensor(0.7), learns_temperature=True),
}
LOSSES = {
    "usual": {},
    "own units": {"normalize_features": False, "temperatures": (0.5, 2.0)},
    "raw drift": {"normalize_drift": False},
    "clipped": {"drift_clip": 0.5},
    "scales of rows": {"scale_per_row": True},
    "no floor": {"field": MeanShift(0.0), "temperatures": (0.2,)},
}


def in_parts(batch, count):
    size = LABELS // count
    return [lambda start=start: batch.of(slice(start, start + size)) for start in range(0, LABELS, size)]


def gradients(network):
    return [weight.grad for weight in network.parameters() if weight.grad is not None]


@pytest.mark.parametrize(*pairwise(options=LOSSES, batch=BATCHES, count=(1, 2, 3, 6)))
def test_parts_make_the_whole_step(count, batch, options):
    loss, whole, network = DriftingLoss(**options), generator(), generator()
    expected = drifting_step(whole, encode, loss, batch, statistics=True)
    expected.loss.backward()
    found = label_batched_step(network, encode, loss, in_parts(batch, count), statistics=True)
    torch.testing.assert_close(gradients(network), gradients(whole), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.loss, expected.loss.detach(), rtol=1e-11, atol=0)
    for name, report in expected.features.items():
        one = found.features[name]
        torch.testing.assert_close(one.statistics, report.statistics, rtol=1e-9, atol=0)
        torch.testing.assert_close(
            (one.loss, one.scale, one.drift_norms), (report.loss.detach(), report.scale, report.drift_norms), rtol=1e-11, atol=1e-14
        )
        torch.testing.assert_close(one.temperature_slope, report.temperature_slope, rtol=1e-11, atol=1e-14)


def test_no_more_than_one_part_is_asked_for_at_a_time_and_graphs_end_with_it():
    alive, most, network = [0], [0], generator()

    def counted(samples):
        features = encode(samples)
        if samples.requires_grad:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            samples.register_hook(lambda gradient: alive.__setitem__(0, alive[0] - 1) or gradient)
        return features

    label_batched_step(network, counted, DriftingLoss(), in_parts(PLAIN, 3))
    assert (alive, most) == ([0], [1])


def test_statistics_come_where_they_are_asked_for_alone():
    assert label_batched_step(generator(), encode, DriftingLoss(), in_parts(GUIDED, 2)).features["all"].statistics is None


def test_weights_in_single_precision_lose_no_digits_of_the_scale():
    single = dataclasses.replace(GUIDED, unconditional_weight=GUIDED.unconditional_weight.float())
    expected = drifting_step(generator(), encode, DriftingLoss(), single).features["all"].scale
    found = label_batched_step(generator(), encode, DriftingLoss(), in_parts(single, 2)).features["all"].scale
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1] * 6), (2, [2] * 3), (4, [3, 3]), (5, [3, 3]), (6, None), (64, None), (None, None)]
)
def test_labels_are_taken_in_equal_parts_of_no_more_than_asked_for(most, sizes, monkeypatch):
    seen = []

    def note(generator, encoder, loss, parts, **options):
        seen.extend(len(part().labels) for part in parts)
        return label_batched_step(generator, encoder, loss, parts, **options)

    monkeypatch.setattr(loop, "label_batched_step", note)
    whole, network = generator(), generator()
    drifting_step(whole, encode, DriftingLoss(), PLAIN).loss.backward()
    schedule = Schedule(
        steps=1, labels_per_step=LABELS, generated=GENERATED, positives=8, learning_rate=1.0, labels_per_microbatch=most
    )
    loop._add_gradients((network, encode, DriftingLoss()), PLAIN, schedule, nullcontext, {})
    assert seen == (sizes or [])
    torch.testing.assert_close(gradients(network), gradients(whole), rtol=1e-10, atol=1e-13)


def test_gradients_are_averaged_over_processes_with_the_last_part_alone():
    entered, network = [], generator()

    class Held:
        def __enter__(self):
            entered.append("held")

        def __exit__(self, *error):
            pass

    label_batched_step(network, encode, DriftingLoss(), in_parts(PLAIN, 3), no_sync=Held)
    assert entered == ["held", "held"]


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_labels_may_be_split_over_processes_too(batch):
    whole, networks = generator(), [generator(), generator()]
    expected = drifting_step(whole, encode, DriftingLoss(), batch, statistics=True)
    expected.loss.backward()

    networks = [generator(), generator()]  # whose weights are drawn from a stream that threads would share

    def step(peers):
        network, own = networks[peers.rank], batch.of(slice(3 * peers.rank, 3 * peers.rank + 3))
        parts = [lambda index=index: own.of(slice(index, index + 1)) for index in range(3)]
        return label_batched_step(network, encode, DriftingLoss(), parts, statistics=True, processes=peers), gradients(network)

    (first, second), found = zip(*on_peers(2, step), strict=True)
    torch.testing.assert_close(
        [(one + other) / 2 for one, other in zip(*found, strict=True)], gradients(whole), rtol=1e-10, atol=1e-13
    )
    for report in (first, second):
        slopes = [each.features["all"].temperature_slope for each in (report, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(report.features["all"].statistics, expected.features["all"].statistics, rtol=1e-9, atol=0)
    assert float(first.loss + second.loss) / 2 == pytest.approx(float(expected.loss.detach()), rel=1e-11)
