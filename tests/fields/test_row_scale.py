"""A scale for every generated sample: the loss written out in float64, and what it does not depend on."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting import DriftingLoss, InputError, drifting_loss
from drifting.fields import DriftField, MeanShift
from drifting.presets import adjust
from tests.support.threads import on_peers
from tests.test_loss import SIZES, assert_close, draw, draw_weights, properties, with_gradient

OPTIONS = {"temperatures": (0.2, 0.7), "scale_per_row": True, "field": MeanShift(1e-6)}


class Other(DriftField):
    """A field that computes distances of its own."""

    def __call__(self, generated, positives, negatives, **options):
        raise AssertionError


def written_out(generated, positives, *, unconditional=None, detached=None, weights=None, independent=None):
    """Return the loss of each group, its gradient and the drift norms, one row after the other."""
    groups, rows, width = generated.shape
    repelling = generated if independent is None else independent
    siblings = repelling if detached is None else torch.cat([repelling, detached], 1)
    negatives = siblings if unconditional is None else torch.cat([siblings, unconditional], 1)
    targets, first = torch.cat([negatives, positives], 1), negatives.shape[1]
    weights = torch.ones(targets.shape[:2], dtype=torch.float64) if weights is None else weights
    scales, logits = generated.new_zeros(groups, rows), generated.new_zeros(groups, rows, targets.shape[1])
    for g in range(groups):
        for i in range(rows):
            counted = [j for j in range(targets.shape[1]) if j < siblings.shape[1] or j >= first]
            counted = [j for j in counted if independent is not None or j != i]
            distances = [(generated[g, i] - target).norm().clamp(min=1e-4) for target in targets[g]]
            above = sum(weights[g, j] * distances[j] for j in counted)
            scales[g, i] = above / sum(weights[g, j] for j in counted)
            for j, distance in enumerate(distances):
                logits[g, i, j] = -torch.inf if independent is None and i == j else -distance / scales[g, i]
    unit, total, norms = scales[..., None] / width**0.5, torch.zeros_like(generated), []
    for temperature in OPTIONS["temperatures"]:
        scaled = logits / temperature
        affinity = (scaled.softmax(2) * scaled.softmax(1)).nan_to_num().clamp(min=1e-6).sqrt() * weights[:, None]
        negative, positive = affinity[..., :first], affinity[..., first:]
        drift = negative.sum(2, keepdim=True) * (positive @ positives) - positive.sum(2, keepdim=True) * (negative @ negatives)
        norms.append((drift / unit).square().mean())
        total += drift / unit / norms[-1].clamp(min=1e-8).sqrt()
    return total.square().mean((1, 2)), -2 * total / unit / (rows * width), norms


@properties
@given(st.integers(0, 2**31), SIZES, st.integers(2, 5), SIZES, SIZES, SIZES, st.sampled_from([1, 3, 12]))
def test_loss_is_that_of_features_divided_by_the_scale_of_each_row(seed, g, n, p, m, e, d):
    generated, positives, unconditional, detached = draw(seed, (g, n, d), (g, p, d), (g, m, d), (g, e, d))
    given_weights = draw_weights(seed, (g, n), (g, m), (g, p))
    named, joined, others = {}, None, {}
    if seed % 2:
        others = {"unconditional": unconditional, "detached": detached}
        names = ("generated_weights", "unconditional_weights", "positive_weights")
        named = dict(zip(names, given_weights, strict=True))
        ours, further, real = given_weights
        joined = torch.cat([ours, torch.ones(g, e, dtype=torch.float64), further, real], 1)
    report, gradient = with_gradient(generated, positives, **others, **named, **OPTIONS)
    loss, expected, norms = written_out(generated, positives, weights=joined, **others)
    assert_close(report.loss.detach(), loss, 1e-8)
    assert_close(gradient, expected, 1e-8)
    assert_close(list(report.drift_norms.values()), norms, 1e-8)


def test_every_distance_to_an_independent_batch_counts():
    generated, positives, independent = draw(2, (2, 3, 4), (2, 5, 4), (2, 6, 4))
    report, gradient = with_gradient(generated, positives, generated_negatives=independent, **OPTIONS)
    loss, expected, _ = written_out(generated, positives, independent=independent)
    assert_close(report.loss.detach(), loss)
    assert_close(gradient, expected)


def test_group_can_have_any_unit():
    generated, positives = draw(3, (2, 4, 3), (2, 1, 3))
    factors = torch.tensor([1.0, 100.0])[:, None, None]
    report, gradient = with_gradient(generated, positives, **OPTIONS)
    other, scaled = with_gradient(factors * generated, factors * positives, **OPTIONS)
    assert_close(other.loss, report.loss, 1e-9)
    assert_close(factors * scaled, gradient, 1e-9)
    usual, changed = (drifting_loss(f * generated, f * positives, temperatures=(0.2,)).loss for f in (torch.ones(1), factors))
    assert (usual - changed).abs().max() > 0.1


def test_rows_may_be_split_over_processes():
    generated, positives, detached = draw(4, (1, 6, 3), (1, 5, 3), (1, 4, 3))
    expected, gradient = with_gradient(generated, positives, detached=detached, **OPTIONS)

    def part(peers):
        own = generated[:, 3 * peers.rank : 3 * peers.rank + 3]
        options = {"peers": peers, "population": generated, "detached": detached}
        return with_gradient(own, positives, **options, **OPTIONS)

    reports, gradients = zip(*on_peers(2, part), strict=True)
    assert_close(torch.cat(gradients, 1) / 2, gradient)
    assert_close(sum(report.loss for report in reports) / 2, expected.loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"field": Other()}, "scale_per_row is True, but field is Other, which needs one scale: pass MeanShift"),
        ({"normalize_features": False}, "scale_per_row is True, but normalize_features is False"),
    ],
)
def test_row_scale_that_means_nothing_is_refused(tiny_digits, options, words):
    samples = draw(5, (2, 3), (2, 3))
    with pytest.raises(InputError, match=words):
        DriftingLoss(scale_per_row=True, **options)(*samples)
    config = adjust(tiny_digits, field="mean-shift", scale_per_row=True)
    with pytest.raises(InputError, match=words):
        dataclasses.replace(config, loss=dataclasses.replace(config.loss, **options))
