"""What one batch says about a training: noise against signal, and the spread of the samples."""

import pytest
import torch

from drifting import DriftingLoss, drifting_loss
from drifting.fields import MeanShift
from drifting.fields.base import Problem
from drifting.fields.batch import Scaling, batch_statistics
from tests.support.threads import on_peers

TEMPERATURES = (0.05, 0.3)
FIELD = MeanShift(0.0)
SCALING = Scaling(TEMPERATURES, True, 1e-3, 1e-4)


def draw(seed, *shape, shift=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def measured(generated, positives, field=FIELD):
    return batch_statistics(field, SCALING, Problem(generated, [generated], positives, None, generated.shape[1]))


# Where positives are few, the parts are a quarter of the batch, and the power law is continued further.
@pytest.mark.parametrize(("count", "real", "error"), [(64, 64, 0.15), (32, 96, 0.15), (96, 32, 0.4)])
def test_noise_floor_is_the_drift_norm_of_real_samples_at_the_size_of_the_batch(count, real, error):
    floors, norms = [], []
    for seed in range(8):
        generated, positives = draw(2 * seed, 6, count, 8), draw(2 * seed + 1, 6, real, 8)
        floors.append(measured(generated, positives).noise_floor)
        report = drifting_loss(generated, positives, temperatures=TEMPERATURES, field=FIELD)
        norms.append(torch.stack(list(report.drift_norms.values())))
    ratio = torch.stack(floors).log().mean(0) - torch.stack(norms).log().mean(0)
    assert ratio.exp().tolist() == pytest.approx([1, 1], rel=error)


def test_noise_floor_does_not_depend_on_the_samples():
    positives = draw(0, 3, 16, 4)
    near, far = (measured(draw(1, 3, 16, 4, shift=shift), positives) for shift in (0.0, 50.0))
    torch.testing.assert_close(near.noise_floor, far.noise_floor)


def test_halves_of_a_batch_have_halves_of_every_set_of_negatives():
    generated, positives = draw(1, 3, 8, 4), draw(2, 3, 8, 4)
    detached, others = draw(3, 3, 6, 4, shift=1), draw(4, 3, 4, 4, shift=-1)
    weights = draw(5, 3, 8 + 6 + 4 + 8).abs()
    apart = Problem(generated, [generated, detached, others], positives, weights, 8, num_unconditional=4)
    joined = Problem(generated, [generated, torch.cat([detached, others], 1)], positives, weights, 8, num_unconditional=4)
    expected, found = (batch_statistics(FIELD, SCALING, problem) for problem in (apart, joined))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_halves_of_a_batch_agree_where_there_is_signal_and_not_where_there_is_noise():
    noise = torch.stack([measured(draw(2 * seed, 8, 32, 4), draw(2 * seed + 1, 8, 32, 4)).half_cosine for seed in range(20)])
    assert noise.mean(0).abs().max() < 0.1
    assert measured(draw(0, 4, 32, 4, shift=3.0), draw(1, 4, 32, 4)).half_cosine[1] > 0.95


def test_equal_halves_have_a_cosine_of_one_and_opposite_ones_of_minus_one():
    # The generated samples repel from an independent batch that is the same in both halves.
    moved, repelling, real = draw(0, 2, 8, 3), draw(1, 2, 4, 3).repeat(1, 2, 1), draw(2, 2, 4, 3).repeat(1, 2, 1)
    same = batch_statistics(FIELD, SCALING, Problem(moved, [repelling], real))
    torch.testing.assert_close(same.half_cosine, torch.ones(2).double())
    swapped = torch.cat([real[:, :4], repelling[:, :4]], 1), torch.cat([repelling[:, :4], real[:, :4]], 1)
    opposite = batch_statistics(FIELD, SCALING, Problem(moved, [swapped[0]], swapped[1]))
    torch.testing.assert_close(opposite.half_cosine, -torch.ones(2).double())


def test_spread_is_that_of_the_samples_relative_to_the_positives():
    positives = draw(0, 3, 10, 4)
    scale = torch.tensor([1.0, 0.5, 0.0]).double()[:, None, None]
    found = measured(positives * scale, positives)
    assert float(found.diversity) == pytest.approx(0.5)
    assert float(found.least_diversity) == pytest.approx(0.0, abs=1e-6)
    far = measured(positives + 1e4, positives)
    assert float(far.diversity) == pytest.approx(1)
    among = torch.cdist(positives, positives).sum((1, 2)) / 90
    assert float(far.remoteness) == pytest.approx(float((torch.full((3,), 2e4).double() / among).mean()), rel=1e-3)
    assert (float(found.generated_count), float(found.positive_count)) == (10, 10)


@pytest.mark.parametrize("strokes", [0.0, 0.01])
def test_spread_leaves_out_groups_whose_positives_are_all_alike(strokes):
    # As in a corner of digits, which is black in every image or in nearly every one, but not in every sample.
    varied, black = draw(0, 2, 10, 4), -1 + strokes * draw(2, 1, 10, 4)
    found = measured(torch.cat([0.5 * varied, black + 0.01 * draw(1, 1, 10, 4)]), torch.cat([varied, black]))
    expected = measured(0.5 * varied, varied)
    assert float(found.diversity) == float(found.least_diversity) == pytest.approx(0.5)
    assert float(found.remoteness) == pytest.approx(float(expected.remoteness))
    constant = measured(torch.full_like(black, -1), torch.full_like(black, -1))
    assert (float(constant.diversity), float(constant.least_diversity), float(constant.remoteness)) == (0, 0, 0)


def test_cosine_of_drifts_whose_squares_underflow_is_one_of_a_cosine():
    generated, positives = draw(0, 2, 8, 8).float() * 1e-3, draw(1, 2, 8, 8).float()
    scaling = Scaling((0.012,), True, 1e-3, 1e-4)
    found = batch_statistics(FIELD, scaling, Problem(generated, [generated], positives, None, 8))
    assert found.half_cosine.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize(("count", "real"), [(3, 8), (8, 3)])
def test_groups_that_cannot_be_halved_say_nothing_but_how_many_they_are(count, real):
    *others, generated_count, positive_count = measured(draw(0, 2, count, 3), draw(1, 2, real, 3))
    assert (float(generated_count), float(positive_count)) == (count, real)
    assert all(value.isnan().all() for value in others)


def test_samples_with_scales_of_their_own_have_no_noise_but_a_spread():
    generated, positives = draw(0, 2, 8, 3), draw(1, 2, 8, 3)
    found = DriftingLoss(temperatures=TEMPERATURES, field=FIELD, scale_per_row=True)(generated, positives, statistics=True)
    batch, expected = found.features["sample"].batch, measured(generated, positives)
    assert batch.noise_floor.isnan().all()
    assert batch.half_cosine.isnan().all()
    torch.testing.assert_close(batch[2:], expected[2:])


def test_guidance_and_weights_belong_to_the_signal():
    # Unconditional samples balance the drift of samples that are not distributed like the positives.
    generated, positives, others = draw(0, 2, 16, 3, shift=2.0), draw(1, 2, 16, 3), draw(2, 2, 8, 3)
    weights = torch.cat([torch.ones(2, 16), torch.full((2, 8), 3.0), torch.ones(2, 16)], 1).double()
    with_them = batch_statistics(FIELD, SCALING, Problem(generated, [generated, others], positives, weights, 16))
    weightless = torch.cat([torch.ones(2, 16), torch.zeros(2, 8), torch.ones(2, 16)], 1).double()
    without = batch_statistics(FIELD, SCALING, Problem(generated, [generated, others], positives, weightless, 16))
    assert not torch.allclose(with_them.half_cosine, without.half_cosine)
    torch.testing.assert_close(with_them.noise_floor, without.noise_floor)


def test_loss_reports_the_batch_on_request():
    generated, positives = {"a": draw(0, 2, 8, 3)}, {"a": draw(1, 2, 8, 3)}
    loss = DriftingLoss(temperatures=TEMPERATURES, field=FIELD)
    report = loss(generated, positives, statistics=True).features["a"]
    torch.testing.assert_close(report.batch, measured(generated["a"], positives["a"]))
    only_field = loss(generated, positives, statistics="field").features["a"]
    assert only_field.batch is None
    assert only_field.statistics is not None
    assert loss(generated, positives).features["a"].batch is None


def test_field_without_statistics_has_those_of_the_batch():
    def field(generated, positives, negatives, **options):
        return (positives.mean(1, keepdim=True) - generated).expand(len(options["temperatures"]), -1, -1, -1)

    report = drifting_loss(draw(0, 8, 3, shift=1.0), draw(1, 8, 3), temperatures=(0.1,), field=field, statistics=True)
    assert report.statistics is None
    assert report.batch.half_cosine[0] > 0.5


def test_peers_report_the_batch_of_all():
    generated, positives = draw(0, 4, 12, 3), draw(1, 4, 12, 3)
    options = {"temperatures": TEMPERATURES, "statistics": True}
    whole = drifting_loss(generated, positives, **options).batch

    def by_samples(peers):
        mine = generated.chunk(peers.size, 1)[peers.rank]
        return drifting_loss(mine, positives, population=generated, peers=peers, **options).batch

    def by_groups(peers):
        mine, real = (samples.chunk(peers.size)[peers.rank] for samples in (generated, positives))
        return drifting_loss(mine, real, peers=peers, **options).batch

    for part in on_peers(2, by_samples):
        torch.testing.assert_close(part, whole)
    first, second = on_peers(2, by_groups)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first.diversity, whole.diversity)


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    measured(draw(0, 2, 8, 3), draw(1, 2, 8, 3))
    drifting_loss(draw(0, 8, 3), draw(1, 8, 3), statistics=True)
    assert torch.equal(torch.get_rng_state(), before)
