"""`DriftingLoss`: features are added, groups averaged, locations kept apart, and parts of a batch make the whole."""

import sys

import pytest
import torch

from drifting import DriftingLoss, drifting_loss
from drifting.fields import MeanShift

SHAPES = {"low": (3, 4), "high": (1, 9)}  # locations and channels
TEMPERATURES = (0.1, 0.5)


def draw_features(seed, labels, count):
    rng = torch.Generator().manual_seed(seed)
    shapes = {name: (labels, count, locations, channels) for name, (locations, channels) in SHAPES.items()}
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}


def batch(labels=2):
    return draw_features(0, labels, 5), draw_features(1, labels, 6), draw_features(2, labels, 3)


def assert_close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def take(features, labels):
    return {name: values[labels] for name, values in features.items()}


def with_gradient(loss, generated, *rest, **options):
    generated = {name: values.detach().requires_grad_() for name, values in generated.items()}
    report = loss(generated, *rest, **options)
    report.loss.backward()
    return report, {name: values.grad for name, values in generated.items()}


@pytest.mark.parametrize("settings", [{}, {"normalize_drift": False}, {"normalize_features": False, "field": MeanShift(0.0)}])
def test_loss_is_the_sum_over_features_of_the_mean_over_labels_and_locations(settings):
    features = batch()
    negatives = draw_features(3, 2, 4)
    weights = {"generated": torch.rand(2, 4), "positive": torch.rand(2, 6), "unconditional": torch.rand(2, 3)}
    report = DriftingLoss(temperatures=TEMPERATURES, **settings)(*features, generated_negatives=negatives, weights=weights)
    total = 0.0
    for name, (locations, _) in SHAPES.items():
        groups = [(label, location) for label in range(2) for location in range(locations)]
        parts = [torch.stack([part[name][label, :, k] for label, k in groups]) for part in (*features, negatives)]
        of_groups = {f"{kind}_weights": torch.stack([values[label] for label, _ in groups]) for kind, values in weights.items()}
        options = {"temperatures": TEMPERATURES, "generated_negatives": parts[3], **of_groups, **settings}
        expected = drifting_loss(*parts[:3], **options)
        assert_close(report.features[name].loss, expected.loss)
        assert_close(report.features[name].drift_norms, expected.drift_norms)
        total = total + expected.loss.mean()
    assert_close(report.loss, total)
    assert report.loss.shape == ()


def test_locations_are_never_mixed():
    generated, positives, unconditional = batch()
    loss = DriftingLoss(temperatures=TEMPERATURES)
    before, gradient = with_gradient(loss, generated, positives, unconditional)
    moved = {name: values.clone() for name, values in generated.items()}
    moved["low"][1, :, 2] += 5
    after, moved_gradient = with_gradient(loss, moved, positives, unconditional, known=before.features)
    elsewhere = torch.ones(2, 3, dtype=torch.bool)
    elsewhere[1, 2] = False
    assert_close(after.features["low"].loss[elsewhere.flatten()], before.features["low"].loss[elsewhere.flatten()])
    assert_close(moved_gradient["low"].transpose(1, 2)[elsewhere], gradient["low"].transpose(1, 2)[elsewhere])
    assert_close(moved_gradient["high"], gradient["high"])
    assert (after.features["low"].loss - before.features["low"].loss)[5].abs() > 1e-3


def test_order_of_the_samples_of_one_location_moves_their_gradients_alone():
    generated, positives, unconditional = batch()
    loss = DriftingLoss(temperatures=TEMPERATURES)
    before, gradient = with_gradient(loss, generated, positives, unconditional)
    order = torch.tensor([4, 2, 0, 1, 3])
    moved = {name: values.clone() for name, values in generated.items()}
    moved["low"][:, :, 1] = moved["low"][:, order, 1]
    after, moved_gradient = with_gradient(loss, moved, positives, unconditional)
    gradient["low"][:, :, 1] = gradient["low"][:, order, 1]
    assert_close(after.loss, before.loss)
    assert_close(moved_gradient, gradient)


def test_microbatches_with_the_known_scale_and_drift_norms_equal_the_whole():
    features = batch(labels=4)
    weights = {"unconditional": torch.rand(4, 3).double(), "positive": torch.rand(4, 6).double()}
    loss = DriftingLoss(temperatures=TEMPERATURES)
    whole, gradient = with_gradient(loss, *features, weights=weights)
    parts, gradients = [], []
    for labels in (slice(0, 2), slice(2, 4)):
        of_part = {name: values[labels] for name, values in weights.items()}
        some = [take(part, labels) for part in features]
        report, part_gradient = with_gradient(loss, *some, weights=of_part, known=whole.features)
        parts.append(report.loss)
        gradients.append(part_gradient)
    assert_close(torch.stack(parts).mean(), whole.loss)
    for name, values in gradient.items():
        assert_close(torch.cat([part[name] for part in gradients]) / 2, values)


def test_reports_hold_every_temperature_and_statistics_on_request():
    generated, positives, _ = batch()
    loss = DriftingLoss(temperatures=TEMPERATURES)
    report = loss(generated, positives, statistics=True)
    assert report.features.keys() == SHAPES.keys()
    for feature in report.features.values():
        assert tuple(feature.drift_norms) == TEMPERATURES
        assert feature.statistics.positive_share.shape == (2,)
    assert loss(generated, positives).features["low"].statistics is None


def test_settings_reach_the_loss():
    generated, positives, _ = batch()
    plain, sharp = DriftingLoss(), DriftingLoss(field=MeanShift(0.5))
    assert (plain(generated, positives).loss - sharp(generated, positives).loss).abs() > 1e-3
    zero = DriftingLoss(field=lambda generated, *_, temperatures, **__: generated.new_zeros(len(temperatures), *generated.shape))
    assert zero(generated, positives).loss == 0


def test_a_second_call_of_another_shape_repeats_the_first():
    loss = DriftingLoss(temperatures=TEMPERATURES)
    first = loss(*batch(labels=3)[:2]).loss
    loss(*batch(labels=1)[:2])
    assert torch.equal(loss(*batch(labels=3)[:2]).loss, first)


def test_no_number_is_taken_to_the_device_or_read_from_it(monkeypatch):
    """Either waits for the device, which on a CPU no figure would show."""

    def refuse(*_, **__):
        raise AssertionError("waits for the device")

    for name in ("item", "tolist", "new_tensor", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "tensor", refuse)
    for module in ("_checks", "fields.mean_shift"):  # which reads weights on a CPU alone
        monkeypatch.setattr(sys.modules[f"drifting.{module}"], "check_weights", lambda weights: None)
    for known in (None, DriftingLoss(temperatures=TEMPERATURES)(*batch()).features):
        DriftingLoss(temperatures=TEMPERATURES)(*batch(), known=known, statistics=True, weights={"unconditional": torch.ones(2, 3)})
