"""`DriftingLoss` on plain tensors and on labeled batches, and weights that no set of samples can have."""

import importlib
import re

import pytest
import torch

from drifting import DriftingLoss, drifting_loss
from drifting.errors import InputError
from drifting.fields import EnergyDistance, MeanShift, mean_shift

TEMPERATURES = (0.1, 0.5)
LOSS = DriftingLoss(temperatures=TEMPERATURES)


def _samples(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("groups", [(), (3,)])
def test_plain_tensors_are_taken_as_mean_shift_takes_them(groups):
    sets = [_samples(*groups, count, 4, seed=seed) for seed, count in enumerate((5, 6, 3))]
    weights = {"positive": _samples(*groups, 6).square(), "unconditional": _samples(*groups, 3).square()}
    report = LOSS(*sets, weights=weights)
    maps = [{"layer": value.view(-1, value.shape[-2], 1, 4)} for value in sets]
    expected = LOSS(*maps, weights={name: value.view(-1, value.shape[-1]) for name, value in weights.items()})
    assert list(report.features) == ["sample"]
    assert torch.equal(report.loss, expected.loss)
    alone = drifting_loss(
        *sets, temperatures=TEMPERATURES, positive_weights=weights["positive"], unconditional_weights=weights["unconditional"]
    )
    assert torch.equal(alone.loss.mean(), report.loss)
    assert torch.equal(LOSS({"layer": sets[0]}, {"layer": sets[1]}, {"layer": sets[2]}, weights=weights).loss, report.loss)


@pytest.mark.parametrize("field", [MeanShift(), EnergyDistance()])
def test_weights_that_need_a_gradient_get_none(field):
    samples, weights = (torch.randn(1, 4, 2), torch.randn(1, 3, 2)), torch.tensor([1.0, 2.0, 3.0])
    loss = DriftingLoss(field=field)
    report = loss(*samples, weights={"positive": weights.clone().requires_grad_()})
    assert torch.equal(report.loss, loss(*samples, weights={"positive": weights}).loss)
    values = report.features["sample"]
    assert not any(value.requires_grad for value in (report.loss, values.scale, *values.drift_norms.values()))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], (torch.zeros(4),), ([0, 0], [1, 1]), torch.zeros(4).numpy()])
def test_labels_that_are_no_tensors_are_refused(labels):
    with pytest.raises(InputError, match=r"labels is a .*: pass a tensor"):
        LOSS(_samples(4, 2), _samples(4, 2), labels=labels)


def test_a_batch_without_samples_is_refused():
    with pytest.raises(InputError, match="labels is empty"):
        LOSS(_samples(0, 2), _samples(4, 2), labels=(torch.zeros(0), torch.zeros(4)))


def _oracle(generated, positives, labels, positive_labels):
    """Follow the definition class by class: one scale and one drift norm over all pairs and all samples of all classes."""
    classes = [(generated[labels == label], positives[positive_labels == label]) for label in labels.unique()]
    distances = [torch.cdist(x, torch.cat([x, y])).clamp(min=1e-4).flatten() for x, y in classes]
    scale = torch.cat(distances).mean()
    unit, total = scale / generated.shape[1] ** 0.5, 0
    for temperature in TEMPERATURES:
        options = {"temperature": float(temperature * scale), "affinity_floor": 1e-6}
        drift = torch.cat([mean_shift(x, y, **options) for x, y in classes]) / unit
        total = total + drift / drift.square().mean().sqrt()
    return total.square().mean(), total


@pytest.mark.parametrize("counts", [(4, 4, 4), (2, 7, 5), (6, 1, 5), (3, 6, 3)])
def test_labeled_batch_is_the_loss_of_its_classes(counts):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([2, 5, 9]).repeat_interleave(torch.tensor(counts))[order]
    positive_labels = torch.tensor([5, 2, 9, 9, 2, 5, 9, 7, 2, 5, 5, 2, 9, 9])
    generated, positives = _samples(12, 4).requires_grad_(), _samples(14, 4, seed=1)
    report = LOSS(generated, positives, labels=(labels, positive_labels))
    expected, drift = _oracle(generated.detach(), positives, labels, positive_labels)
    torch.testing.assert_close(report.loss, expected, rtol=1e-10, atol=0)
    report.loss.backward()
    by_class = labels.argsort(stable=True)
    scale = report.features["sample"].scale
    torch.testing.assert_close(generated.grad[by_class], -2 * drift / drift.numel() * 4**0.5 / scale, rtol=1e-9, atol=1e-12)


def test_classes_of_equal_counts_are_groups():
    generated, positives = _samples(3, 4, 2, 5), _samples(3, 6, 2, 5, seed=1)
    labels, positive_labels = torch.arange(3).repeat_interleave(4), torch.arange(3).repeat_interleave(6)
    flat = ({"layer": generated.flatten(0, 1)}, {"layer": positives.flatten(0, 1)})
    report = LOSS(*flat, labels=(labels, positive_labels))
    assert torch.equal(report.loss, LOSS({"layer": generated}, {"layer": positives}).loss)
    one = LOSS(generated[0, :, 0], positives[0, :4, 0], labels=torch.zeros(4))
    assert torch.equal(one.loss, LOSS(generated[0, :, 0], positives[0, :4, 0]).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": (torch.tensor([0, 0, 1]), torch.tensor([0, 2, 0]))},
            "labels has class 1, but the positives",
        ),
        ({"labels": torch.zeros(4)}, "generated samples have labels of shape (4,) for features 'sample' of shape (3, 1, 2)"),
        ({"labels": (torch.zeros(3), torch.zeros(3, 1))}, "positive samples have labels of shape (3, 1)"),
        ({"labels": torch.zeros(3), "weights": {"positive": torch.ones(3)}}, "labels go with generated and positives only"),
        ({"labels": torch.zeros(3), "statistics": True}, "labels go with generated and positives only"),
    ],
)
def test_labels_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        LOSS(_samples(3, 2), _samples(3, 2), **options)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: mean_shift(x, x, temperature=0.1, positive_weights=w),
        lambda x, w: mean_shift(x, x, temperature=0.1, negative_weights=w),
        lambda x, w: drifting_loss(x, x, generated_weights=w),
        lambda x, w: drifting_loss(x, x, positive_weights=w),
        lambda x, w: drifting_loss(x, x, x, unconditional_weights=w),
        lambda x, w: LOSS(x, x, weights={"generated": w}),
        lambda x, w: MeanShift()(
            x[None], x[None], x[None], temperatures=torch.ones(1, dtype=x.dtype), weights=torch.cat([w, w])[None]
        ),
        lambda x, w: MeanShift().statistics(
            x[None], x[None], x[None], temperatures=torch.ones(1, dtype=x.dtype), weights=torch.cat([w, w])[None]
        ),
    ],
)
def test_weights_that_no_sample_can_have_are_refused(call, wrong):
    weights = torch.ones(3, dtype=torch.float64)
    call(_samples(3, 2), weights)
    weights[1] = wrong
    with pytest.raises(InputError, match=re.escape(f"weights has {wrong:g}: pass numbers from 0 on")):
        call(_samples(3, 2), weights)


def test_negative_weights_that_are_not_read_are_seen_in_the_result(monkeypatch):
    """As on a device, where to read them would be to wait."""
    for module in ("_checks", "fields.mean_shift"):
        monkeypatch.setattr(importlib.import_module(f"drifting.{module}"), "check_weights", lambda weights: None)
    weights = torch.tensor([1.0, -1.0, 1.0])
    assert drifting_loss(_samples(3, 2).float(), _samples(3, 2, seed=1).float(), positive_weights=weights).loss.isnan().all()


def test_compiled_step_runs_the_loss_as_it_is():
    def step(generated, positives):
        return LOSS(2 * generated, 2 * positives).loss

    generated, positives = _samples(5, 3), _samples(6, 3, seed=1)
    assert torch.equal(torch.compile(step, backend="eager")(generated, positives), step(generated, positives))
    assert torch.equal(torch.compile(LOSS, backend="eager")(generated, positives).loss, LOSS(generated, positives).loss)
    for loss in (LOSS, drifting_loss):
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
            torch.compile(lambda x, y, loss=loss: loss(2 * x, 2 * y).loss, backend="eager", fullgraph=True)(generated, positives)
