"""Options of the drifting loss that are off by default: detached samples and the clip of drifts, against the float64 oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting import DriftingLoss, InputError, drifting_loss
from drifting.fields import MeanShift
from tests.oracle import drifting_oracle as oracle
from tests.test_loss import SIZES, assert_close, assert_is_that_of_the_oracle, draw, draw_weights, properties, with_gradient

WEIGHTS = ("generated_weights", "unconditional_weights", "positive_weights")


class Needing(MeanShift):
    """A field that is of no use without an independent batch."""

    needs_independent_negatives = True


@properties
@given(st.integers(0, 2**31), SIZES, SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 3, 12]))
def test_detached_samples_repel_as_the_oracle_says(seed, g, n, p, m, e, d):
    generated, positives, unconditional, detached = draw(seed, (g, n, d), (g, p, d), (g, m, d), (g, e, d))
    others = (unconditional,) if seed % 3 else ()
    weights = dict(zip(WEIGHTS, draw_weights(seed, (g, n), (g, m), (g, p)), strict=True)) if others else {}
    options = {**weights, "temperatures": (0.1, 0.5), "detached": detached}
    report, gradient = with_gradient(generated, positives, *others, **options, field=MeanShift(1e-6))
    assert_is_that_of_the_oracle(report, gradient, oracle.drifting_loss(generated, positives, *others, **options))


def test_detached_samples_are_the_targets_of_a_larger_batch_without_its_rows():
    """Written out: softmax over rows and columns of the distances to [generated | detached | positives], self left out."""
    generated, detached, positives = draw(3, (5, 3), (4, 3), (6, 3))
    report, gradient = with_gradient(
        generated, positives, detached=detached, temperatures=(0.4,), field=MeanShift(0.0), normalize_drift=False
    )
    targets = torch.cat([generated, detached, positives])
    distances = torch.cdist(generated, targets, compute_mode="donot_use_mm_for_euclid_dist")
    scale = distances.clamp(min=1e-4).mean()
    logits = -distances / (0.4 * scale)
    logits[torch.arange(5), torch.arange(5)] = -torch.inf
    affinity = (logits.softmax(1) * logits.softmax(0)).sqrt()
    negative, positive = affinity[:, :9], affinity[:, 9:]
    drift = negative.sum(1, keepdim=True) * (positive @ positives) - positive.sum(1, keepdim=True) * (negative @ targets[:9])
    unit = scale / 3**0.5
    assert_close(report.scale, scale)
    assert_close(report.loss.detach(), (drift / unit).square().mean()[None])
    assert_close(gradient, -2 * drift / unit.square() / 15)


def test_detached_samples_get_no_gradient_and_count_in_the_statistics():
    generated, positives, detached = (samples.requires_grad_() for samples in draw(4, (2, 4, 3), (2, 5, 3), (2, 6, 3)))
    options = {"temperatures": (5.0,), "statistics": True}
    report = drifting_loss(generated, positives, detached=detached, **options)
    report.loss.sum().backward()
    assert detached.grad is None
    assert generated.grad.any()
    # Of a wide kernel every negative but the sample itself is a neighbor.
    assert float(report.statistics.negative_neighbors) == pytest.approx(9, abs=0.3)


def test_one_population_and_named_features_take_detached_samples_too():
    generated, positives, detached = draw(5, (4, 3), (5, 3), (6, 3))
    loss = DriftingLoss(temperatures=(0.2,))
    expected = drifting_loss(generated[None], positives[None], detached=detached[None], temperatures=(0.2,)).loss.mean()
    assert_close(loss(generated, positives, detached=detached).loss, expected)
    named = [{"map": samples[None, :, None]} for samples in (generated, positives, detached)]
    assert_close(loss(*named[:2], detached=named[2]).loss, expected)
    with pytest.raises(InputError, match="features are named"):
        loss(*named[:2], detached={"other": named[2]["map"]})
    with pytest.raises(InputError, match="labels go with generated and positives only"):
        loss(generated, positives, labels=(torch.zeros(4), torch.zeros(5)), detached=detached)


@properties
@given(st.integers(0, 2**31), SIZES, SIZES, st.sampled_from([1, 3, 12]), st.sampled_from([0.1, 1.0, 3.0]))
def test_clipped_drifts_are_those_of_the_oracle(seed, n, p, d, clip):
    samples = draw(seed, (2, n, d), (2, p, d))
    options = {"temperatures": (0.1, 0.5), "drift_clip": clip}
    report, gradient = with_gradient(*samples, **options)
    assert_is_that_of_the_oracle(report, gradient, oracle.drifting_loss(*samples, **options))


@pytest.mark.parametrize("normalize", [True, False])
def test_clip_shortens_long_drifts_alone_and_keeps_their_direction(normalize):
    samples = draw(6, (3, 16, 4), (3, 17, 4))
    options = {"temperatures": (0.1, 0.4), "normalize_features": normalize}
    free, gradient = with_gradient(*samples, **options)
    unit = free.scale / 2 if normalize else torch.ones(())
    sizes = gradient.norm(dim=2) / 2 * (16 * 4 * unit / 2)
    middle = float(sizes.median())
    clipped, shorter = with_gradient(*samples, **options, drift_clip=middle)
    kept = sizes <= middle
    assert 20 < int(kept.sum()) < 28
    assert_close(shorter[kept], gradient[kept])
    assert_close(shorter[~kept] * (sizes / middle)[~kept][:, None], gradient[~kept])
    assert clipped.drift_norms == free.drift_norms
    far, same = with_gradient(*samples, **options, drift_clip=1e6)
    assert torch.equal(same, gradient)
    assert torch.equal(far.loss, free.loss)


def test_clip_of_a_drift_of_zero_is_zero():
    samples = torch.ones(1, 3, 2)
    report, gradient = with_gradient(samples, samples, drift_clip=0.5)
    assert not gradient.any()
    assert np.isfinite(report.loss.detach().numpy()).all()


@pytest.mark.parametrize("clip", [0, -1.0, float("nan"), float("inf")])
def test_clip_that_cannot_shorten_is_refused(clip):
    with pytest.raises(InputError, match=f"drift_clip is {clip}: pass a number above 0"):
        DriftingLoss(drift_clip=clip)
    with pytest.raises(InputError, match="drift_clip"):
        drifting_loss(*draw(0, (2, 3), (2, 3)), drift_clip=clip)


@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), torch.ones(2)])
def test_a_factor_of_temperatures_that_is_no_number_above_0_is_refused(factor):
    samples = torch.randn(1, 4, 2)
    with pytest.raises(InputError, match=r"temperature_factor (is|has)"):
        DriftingLoss()(samples, samples, temperature_factor=factor)


def test_a_factor_of_temperatures_may_be_a_parameter():
    samples = torch.randn(1, 4, 2)
    plain = DriftingLoss()(samples, samples, temperature_factor=2.0)
    learned = DriftingLoss()(samples, samples, temperature_factor=torch.nn.Parameter(torch.tensor([2.0])), learn_temperature=True)
    assert torch.equal(learned.loss, plain.loss)
    assert not learned.features["sample"].temperature_slope.requires_grad


def test_field_that_needs_an_independent_batch_is_refused_without_one():
    generated, positives, others = draw(7, (4, 3), (5, 3), (4, 3))
    with pytest.raises(InputError, match="field is Needing, which needs a second generated batch: pass independent_negatives"):
        drifting_loss(generated, positives, field=Needing())
    expected = drifting_loss(generated, positives, field=MeanShift(), generated_negatives=others)
    assert_close(drifting_loss(generated, positives, field=Needing(), generated_negatives=others).loss, expected.loss)
