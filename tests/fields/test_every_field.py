"""What every drift field promises: invariances, groups, split rows, weights, and no drift where both distributions are equal."""

import pytest
import torch

from drifting import DriftingLoss
from drifting.fields import EnergyDistance, KernelGradient, Lookahead, MaximumMeanDiscrepancy, MeanShift, Sinkhorn
from drifting.metrics import energy_distance
from tests.support.threads import on_peers

FIELDS = {
    "mean shift": MeanShift(1e-6),
    "gaussian": MeanShift(kernel="gaussian"),
    "matern32 by rows": MeanShift(kernel="matern32", normalization="rows"),
    "corrected": MeanShift(bias_correction=True),
    "more repulsion": MeanShift(repulsion=1.02),
    "balanced repulsion": MeanShift(balance=0.5),
    "energy distance": EnergyDistance(),
    "discrepancy": MaximumMeanDiscrepancy(),
    "discrepancy of laplace": MaximumMeanDiscrepancy("laplace"),
    "score": KernelGradient(),
    "score of matern52": KernelGradient("matern52"),
    "sinkhorn": Sinkhorn(iterations=12),
    "sinkhorn, exact": Sinkhorn(iterations=4, tolerance=0.0),
    "sinkhorn, unmasked": Sinkhorn(mask_self=False),
    "lookahead": Lookahead(),
    "sinkhorn ahead": Lookahead(Sinkhorn(iterations=5)),
    "two steps ahead": Lookahead(KernelGradient("laplace"), lookahead_steps=2),
    "shared moves": Lookahead(shared_moves=True),
}
pytestmark = pytest.mark.filterwarnings("ignore:the row sums of a Sinkhorn plan")
# A field that moves one set alone before it looks again is not antisymmetric, nor is one with more repulsion.
ANTISYMMETRIC = {name: field for name, field in FIELDS.items() if not isinstance(field, Lookahead) and "repulsion" not in name}
# Weights of the mean shift multiply affinities that are normalized without them.
WEIGHING = {name: field for name, field in FIELDS.items() if not isinstance(field, MeanShift | Lookahead)} | {
    "two steps ahead": FIELDS["two steps ahead"]
}


def draw(seed, *shapes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def temperatures(*values, like=torch.float64):
    return torch.tensor(values, dtype=like)


def assert_close(value, expected, tolerance=1e-9):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def problem(dimension=3, groups=2):
    """Return generated samples, positives, others that repel, and a weight for each target."""
    generated, positives, others = draw(0, (groups, 5, dimension), (groups, 6, dimension), (groups, 4, dimension))
    (weights,) = draw(1, (groups, 15))
    return generated, positives + 0.5, others, 0.1 + weights.abs()


@pytest.mark.parametrize("name", FIELDS)
def test_drift_follows_translation_rotation_permutation_and_scaling(name):
    field, (generated, positives, others, weights) = FIELDS[name], problem(12)
    shift, matrix = draw(2, (12,), (12, 12))
    rotation, rows, columns = torch.linalg.qr(matrix).Q, torch.randperm(5), torch.randperm(6)

    def drift(move, rows=slice(None), columns=slice(None), size=1.0):
        samples, real, further = move(generated)[:, rows], move(positives)[:, columns], move(others)
        of_each = torch.cat([weights[:, :5][:, rows], weights[:, 5:9], weights[:, 9:][:, columns]], 1)
        options = {"temperatures": size * temperatures(1.0, 3.0), "weights": of_each, "num_self": 5}
        return field(samples, real, torch.cat([samples, further], 1), **options)

    still = drift(lambda x: x)
    assert still.isfinite().all()
    assert still[1].abs().max() > 1e-3
    assert_close(drift(lambda x: x + 3 * shift), still, 1e-7)
    assert_close(drift(lambda x: x @ rotation), still @ rotation, 1e-7)
    assert_close(drift(lambda x: x, rows, columns), still[:, :, rows], 1e-7)
    assert_close(drift(lambda x: 7 * x, size=7.0), 7 * still, 1e-7)


@pytest.mark.parametrize("name", FIELDS)
def test_groups_and_temperatures_are_problems_of_their_own(name):
    field, (generated, positives, others, weights) = FIELDS[name], problem()
    negatives = torch.cat([generated, others], 1)
    whole = field(generated, positives, negatives, temperatures=temperatures(0.5, 2.0), weights=weights, num_self=5)
    chosen = [slice(0, 2)] if field == FIELDS["shared moves"] else [slice(0, 1), slice(1, 2)]
    for group in range(2):
        for which in chosen:
            parts = (value[group : group + 1] for value in (generated, positives, negatives))
            options = {"temperatures": temperatures(0.5, 2.0)[which], "weights": weights[group : group + 1], "num_self": 5}
            assert_close(field(*parts, **options)[:, 0], whole[which, group])


@pytest.mark.parametrize("name", FIELDS)
def test_rows_split_over_processes_have_the_drift_of_the_whole(name):
    field, (generated, positives, others, weights) = FIELDS[name], problem()
    generated = torch.cat([generated, others[:, :1]], 1)  # six rows
    weights = torch.cat([weights[:, :1], weights], 1)
    negatives = torch.cat([generated, others], 1)
    options = {"temperatures": temperatures(0.5, 2.0), "weights": weights}
    whole = field(generated, positives, negatives, num_self=6, **options)

    def part(peers):
        mine = generated[:, 2 * peers.rank : 2 * peers.rank + 2]
        return field(mine, positives, negatives, num_self=2, peers=peers, **options)

    assert_close(torch.cat(on_peers(3, part), 2), whole)
    independent = {"temperatures": temperatures(0.5, 2.0)}
    parts = on_peers(3, lambda peers: field(generated[:, 2 * peers.rank :][:, :2], positives, others, peers=peers, **independent))
    assert_close(torch.cat(parts, 2), field(generated, positives, others, **independent))


@pytest.mark.parametrize("name", ANTISYMMETRIC)
def test_swapping_both_sets_flips_the_sign_and_equal_sets_give_nothing(name):
    field, (generated, positives, others, weights) = FIELDS[name], problem()
    of_negatives, of_positives = weights[:, :4], weights[:, 4:10]
    options = {"temperatures": temperatures(0.5, 2.0)}
    forth = field(generated, positives, others, weights=torch.cat([of_negatives, of_positives], 1), **options)
    back = field(generated, others, positives, weights=torch.cat([of_positives, of_negatives], 1), **options)
    assert forth.abs().max() > 1e-3
    assert_close(forth, -back, 1e-12)
    assert_close(field(generated, positives, positives[:, torch.randperm(6)], **options), torch.zeros_like(forth), 1e-12)


@pytest.mark.parametrize("name", ANTISYMMETRIC)
def test_drift_is_zero_in_expectation_where_both_distributions_are_equal(name):
    generated, positives, negatives = draw(3, (1, 2, 2), (800, 4, 2), (800, 4, 2))
    drift = FIELDS[name](generated.expand(800, 2, 2).clone(), positives, negatives, temperatures=temperatures(0.8))[0]
    error = drift.std(0) / 800**0.5
    assert (drift.mean(0).abs() < 4 * error).all()
    # Away from equality the same measure sees the difference.
    moved = FIELDS[name](generated.expand(800, 2, 2).clone(), positives + 0.7, negatives, temperatures=temperatures(0.8))[0]
    assert (moved.mean(0).abs() > 4 * error).any()


@pytest.mark.parametrize("name", WEIGHING)
def test_whole_weights_are_repeated_samples(name):
    field, (generated, positives, others, _) = FIELDS[name], problem()
    counts = torch.tensor([2, 1, 3, 1, 0, 1, 2, 1, 1, 4])
    targets = torch.cat([others, positives], 1)
    options = {"temperatures": temperatures(0.5, 2.0)}
    weighted = field(generated, positives, others, weights=counts.double().expand(2, 10), **options)
    repeated = [
        samples.repeat_interleave(some, 1) for samples, some in zip(targets.split([4, 6], 1), counts.split([4, 6]), strict=True)
    ]
    assert_close(weighted, field(generated, repeated[1], repeated[0], **options))


@pytest.mark.parametrize("name", FIELDS)
def test_drift_is_finite_whatever_the_samples_and_the_temperature(name):
    field = FIELDS[name]
    generated, positives = draw(4, (1, 4, 12), (1, 3, 12), dtype=torch.float32)
    for samples, real in (
        (generated, positives),
        (torch.ones_like(generated), torch.ones_like(positives)),
        (generated[:, :1], positives),
    ):
        for temperature in (1e-8, 1.0, 1e8):
            options = {"temperatures": temperatures(temperature, like=torch.float32), "num_self": samples.shape[1]}
            drift = field(samples, real, samples, **options)
            assert drift.isfinite().all()
            assert field.at(samples[0], samples[0], real[0], temperature=temperature).isfinite().all()
            if samples is generated and hasattr(field, "statistics"):
                assert torch.stack(list(field.statistics(samples, real, samples, **options))).isfinite().all()


@pytest.mark.parametrize("name", FIELDS)
def test_targets_without_weight_are_not_seen_however_near_they_are(name):
    """Affinities are normalized over all targets, so those of the others are tiny beside them."""
    generated, positives = draw(4, (1, 8, 64), (1, 4, 64), dtype=torch.float32)
    generated, near = 0.05 * generated, torch.zeros(1, 4, 64)
    weights = torch.cat([torch.ones(1, 12), torch.zeros(1, 4)], 1)
    drift = FIELDS[name](
        generated,
        torch.cat([positives, near], 1),
        generated,
        temperatures=temperatures(0.06, 0.6, like=torch.float32),
        weights=weights,
        num_self=8,
    )
    assert drift.isfinite().all()


@pytest.mark.parametrize("name", FIELDS)
def test_a_single_sample_meets_further_negatives_alone(name):
    generated, positives, others = draw(5, (2, 1, 3), (2, 4, 3), (2, 5, 3))
    field, options = FIELDS[name], {"temperatures": temperatures(0.5, 2.0)}
    drift = field(generated, positives, torch.cat([generated, others], 1), num_self=1, **options)
    assert drift.isfinite().all()
    assert drift.abs().amax() > 1e-6


@pytest.mark.parametrize("name", FIELDS)
def test_a_single_sample_without_others_does_not_move(name):
    (generated, positives), field = draw(5, (2, 1, 3), (2, 4, 3)), FIELDS[name]
    floor = field.affinity_floor if isinstance(field, MeanShift) else 0
    drift = field(generated, positives, generated, temperatures=temperatures(0.5), num_self=1)
    assert drift.abs().max() <= 10 * floor**0.5


@pytest.mark.parametrize("name", FIELDS)
def test_shapes_are_known_without_data(name):
    samples = torch.empty(2, 6, 12, device="meta", requires_grad=True)
    report = DriftingLoss(field=FIELDS[name])(samples, samples.detach(), statistics=True)
    report.loss.backward()
    assert samples.grad.shape == samples.shape
    assert report.features["sample"].loss.shape == (2,)


@pytest.mark.parametrize("name", FIELDS)
def test_arguments_stay_as_they_are(name):
    generated, positives, others, weights = problem()
    before = [value.clone() for value in (generated, positives, others, weights)]
    FIELDS[name](generated, positives, others, temperatures=temperatures(0.5), weights=weights[:, :10])
    for value, expected in zip((generated, positives, others, weights), before, strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize(
    "name", [name for name, field in FIELDS.items() if "distance" in name or "disc" in name or "score" in name]
)
def test_drift_at_the_samples_is_theirs_if_others_repel(name):
    generated, positives, others, _ = (value[0] for value in problem())
    at = FIELDS[name].at(generated, others, positives, temperature=0.8)
    assert_close(at, FIELDS[name](generated[None], positives[None], others[None], temperatures=temperatures(0.8))[0, 0])


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("sinkhorn", "sinkhorn, exact", "sinkhorn ahead")])
def test_particles_that_follow_the_field_reach_the_data(name):
    """Two clusters from one; the masked Sinkhorn drift calls no lone sample back."""
    samples, noise = draw(6, (1, 30, 2), (1, 30, 2))
    real = 0.15 * noise + torch.tensor([1.0, -1.0]).repeat(15)[None, :, None] * torch.tensor([1.0, 0.0])
    samples = start = 0.3 * samples
    for step in range(40):
        drift = FIELDS[name](samples, real, samples, temperatures=temperatures(0.3, 1.0), num_self=30)
        sizes = drift.square().mean((1, 2, 3), keepdim=True).sqrt()
        samples = samples + 0.15 * (1 - step / 40) * (drift / sizes).sum(0)
    assert energy_distance(samples[0], real[0]) < 0.1 * energy_distance(start[0], real[0])
