"""The fields beyond the paper against plain formulas in float64: gradients by autograd, centroids and moves by loops."""

import math

import numpy as np
import pytest
import torch

from drifting import InputError, drifting_loss
from drifting.fields import EnergyDistance, KernelGradient, Lookahead, MaximumMeanDiscrepancy, MeanShift
from drifting.fields.backends import open_drifts
from drifting.fields.base import Problem
from tests.oracle import drifting_oracle as oracle
from tests.support.covering import pairwise as covering

KERNELS = {
    "laplace": lambda u: (-u).exp(),
    "gaussian": lambda u: (-u.square() / 2).exp(),
    "matern32": lambda u: (1 + math.sqrt(3) * u) * (-math.sqrt(3) * u).exp(),
    "matern52": lambda u: (1 + math.sqrt(5) * u + 5 * u.square() / 3) * (-math.sqrt(5) * u).exp(),
}


def draw(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def assert_close(value, expected, tolerance=1e-9):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def ascent(potential, generated, positives, negatives, weights):
    """Return the gradient of a potential of the positives minus that of the negatives, at each generated sample.

    `negatives[i]` are those of sample i. A potential takes the distances of one sample to a set, and the weights of the set.
    """
    drift = []
    for index, sample in enumerate(generated):
        x = sample.clone().requires_grad_()
        real, repelling = (torch.stack([(x - y).norm() for y in some]) for some in (positives, negatives[index]))
        value = potential(real, weights[1]) - potential(repelling, weights[0][index])
        drift.append(torch.autograd.grad(value, x)[0])
    return torch.stack(drift)


def mean_of(kernel, temperature):
    return lambda distances, weights: temperature**2 * (weights * kernel(distances / temperature)).sum() / weights.sum()


def log_sum_of(kernel, temperature):
    return lambda distances, weights: temperature**2 * (weights * kernel(distances / temperature)).sum().log()


def minus_distance(temperature):
    return lambda distances, weights: -temperature * (weights * distances).sum() / weights.sum()


CASES = {
    "energy distance": (EnergyDistance(), minus_distance),
    **{f"discrepancy {name}": (MaximumMeanDiscrepancy(name), lambda t, k=k: mean_of(k, t)) for name, k in KERNELS.items()},
    **{f"score {name}": (KernelGradient(name), lambda t, k=k: log_sum_of(k, t)) for name, k in KERNELS.items()},
}


@pytest.mark.parametrize(*covering(case=CASES, dimension=(2, 12), weighted=(False, True), masked=(False, True)))
def test_drift_is_the_gradient_of_its_potential(case, dimension, weighted, masked):
    field, potential = case
    generated, positives, others = draw(0, (2, 4, dimension), (2, 5, dimension), (2, 3, dimension))
    negatives = torch.cat([generated, others], 1) if masked else others
    count = negatives.shape[1]
    (weights,) = draw(1, (2, count + 5))
    weights = weights.abs() if weighted else torch.ones_like(weights)
    temperatures = torch.tensor([0.6, 3.0], dtype=torch.float64)
    options = {"weights": weights if weighted else None, "num_self": 4 if masked else 0}
    drift = field(generated, positives, negatives, temperatures=temperatures, **options)
    for index, temperature in enumerate(temperatures.tolist()):
        for group in range(2):
            kept = [[j for j in range(count) if not (masked and i == j)] for i in range(4)]
            repelling = [negatives[group, some] for some in kept]
            of_each = ([weights[group, some] for some in kept], weights[group, count:])
            expected = ascent(potential(temperature), generated[group], positives[group], repelling, of_each)
            assert_close(drift[index, group], expected, 1e-8)


def test_energy_distance_is_the_discrepancy_of_a_wide_laplace_kernel():
    generated, positives, negatives = draw(2, (1, 4, 3), (1, 5, 3), (1, 6, 3))
    wide = MaximumMeanDiscrepancy("laplace")(generated, positives, negatives, temperatures=torch.tensor([1e6], dtype=torch.float64))
    far = EnergyDistance()(generated, positives, negatives, temperatures=torch.tensor([1e6], dtype=torch.float64))
    assert_close(wide, far, 1e-4)


def test_far_samples_of_float32_keep_their_digits():
    generated, positives, negatives = draw(3, (1, 6, 2), (1, 7, 2), (1, 5, 2))
    for field in (EnergyDistance(), MaximumMeanDiscrepancy("laplace"), KernelGradient()):
        temperatures = torch.tensor([0.5], dtype=torch.float64)
        expected = field(generated, positives, negatives, temperatures=temperatures)
        moved = [(samples + 1000).float() for samples in (generated, positives, negatives)]
        drift = field(*moved, temperatures=temperatures.float())
        assert (drift - expected).abs().max() < 1e-3 * expected.abs().max()


def test_score_far_from_all_data_still_points_there():
    generated, positives, negatives = draw(4, (1, 3, 2), (1, 4, 2), (1, 4, 2))
    generated = (generated + 100).float()
    drift = KernelGradient()(generated, positives.float(), negatives.float() + 100, temperatures=torch.tensor([0.5]))
    assert (drift < -50).all()
    assert (
        MaximumMeanDiscrepancy()(generated, positives.float(), generated + 300, temperatures=torch.tensor([0.5])).abs().max()
        < 1e-20
    )


def drift_of(generated, targets, split, temperature, masked, weights, *, corrected=False, repulsion=1.0):
    """Return S+ S- ((c+ - x) + r (x - c-)) of one group, with centroids that may be corrected, every sum by its definition."""
    affinity = oracle.affinities(oracle.pairwise(generated, targets), temperature, num_self=masked)
    drift = []
    for x, row in zip(generated, affinity, strict=True):
        weighed = [value * weight for value, weight in zip(row, weights, strict=True)]
        sides = []
        for part, samples in ((weighed[:split], targets[:split]), (weighed[split:], targets[split:])):
            mass = math.fsum(part)
            share = np.array(part) / mass
            centroid = (share[:, None] * samples).sum(0)
            spread = (share**2).sum()
            sides.append((mass, (1 - spread) * centroid + (share[:, None] ** 2 * samples).sum(0) if corrected else centroid))
        (away_mass, away), (toward_mass, toward) = sides
        drift.append(toward_mass * away_mass * ((toward - x) + repulsion * (x - away)))
    return np.stack(drift)


@pytest.mark.parametrize("options", [{"bias_correction": True}, {"repulsion": 1.3}, {"repulsion": 0.8, "bias_correction": True}])
@pytest.mark.parametrize(("masked", "weighted", "dimension"), [(0, False, 2), (4, True, 2), (4, False, 12), (0, True, 12)])
def test_options_of_the_mean_shift_are_those_of_the_definition(masked, weighted, dimension, options):
    generated, positives, others = draw(5, (2, 4, dimension), (2, 5, dimension), (2, 3, dimension))
    negatives = torch.cat([generated, others], 1) if masked else others
    (weights,) = draw(6, (2, negatives.shape[1] + 5))
    weights = weights.abs() if weighted else torch.ones_like(weights)
    given = {"weights": weights if weighted else None, "num_self": masked}
    temperatures = torch.tensor([0.5, 2.0], dtype=torch.float64)
    drift = MeanShift(**options)(generated, positives, negatives, temperatures=temperatures, **given)
    targets = torch.cat([negatives, positives], 1).numpy()
    for index, temperature in enumerate(temperatures.tolist()):
        for group in range(2):
            problem = (generated[group].numpy(), targets[group], negatives.shape[1], temperature, masked, weights[group].tolist())
            expected = drift_of(*problem, corrected="bias_correction" in options, repulsion=options.get("repulsion", 1.0))
            assert_close(drift[index, group], torch.tensor(expected))


def test_balanced_repulsion_grows_with_the_diversity_that_each_group_lacks():
    generated, positives = draw(17, (3, 6, 5), (3, 8, 5))
    generated *= torch.tensor([0.9, 0.1, 4.0], dtype=torch.float64)[:, None, None]
    options = {"temperatures": torch.tensor([0.5, 2.0], dtype=torch.float64), "num_self": 6}
    drift = MeanShift(repulsion=1.02, balance=0.5)(generated, positives, generated, **options)

    def mean_distance(samples):
        return np.mean([math.dist(x, y) for i, x in enumerate(samples) for j, y in enumerate(samples) if i != j])

    repulsions = []
    for group in range(3):
        missing = 1 - mean_distance(generated[group].tolist()) / mean_distance(positives[group].tolist())
        repulsions.append(1.02 + min(max(0.5 * missing, -0.1), 0.1))
        part = slice(group, group + 1)
        expected = MeanShift(repulsion=repulsions[-1])(generated[part], positives[part], generated[part], **options)
        assert_close(drift[:, part], expected)
        at = {"generated": generated[group], "positives": positives[group], "temperature": 0.7}
        balanced, fixed = MeanShift(repulsion=1.02, balance=0.5), MeanShift(repulsion=repulsions[-1])
        assert_close(balanced.at(generated[group] + 1, **at), fixed.at(generated[group] + 1, **at))
    assert 1.02 < repulsions[0] < repulsions[1] == 1.12
    assert repulsions[2] == 0.92
    # Far too diverse samples are left alone rather than attracted to each other.
    part, least = slice(2, 3), 1e-6
    found = MeanShift(repulsion=0.05, balance=1.0)(generated[part], positives[part], generated[part], **options)
    assert_close(found, MeanShift(repulsion=least)(generated[part], positives[part], generated[part], **options), 1e-5)


def test_repulsion_is_fixed_where_there_is_no_diversity_to_measure():
    generated, positives = draw(18, (1, 4, 3), (1, 4, 3))
    options = {"temperatures": torch.tensor([0.5], dtype=torch.float64)}
    few, alike = (generated[:, :3], positives), (generated, positives[:, :1].expand(1, 4, 3))
    for samples, real in (few, alike):
        own = {**options, "num_self": samples.shape[1]}
        assert_close(MeanShift(balance=1.0)(samples, real, samples, **own), MeanShift()(samples, real, samples, **own))


def test_corrected_centroid_of_few_samples_is_less_biased():
    """A row softmax over the positives of one point: the centroid of 4 samples against that of a million."""
    x = torch.zeros(1, 1, 1, dtype=torch.float64)
    far = torch.full((1, 1, 1), -2.0, dtype=torch.float64)  # one negative, whose centroid is itself
    (many,) = draw(7, (1, 200_000, 1))
    options = {"temperatures": torch.tensor([1.0], dtype=torch.float64)}

    def centroid(positives, bias_correction):
        field = MeanShift(kernel="gaussian", normalization="rows", bias_correction=bias_correction)
        count = len(positives)
        drift = field(x.expand(count, 1, 1).clone(), positives, far.expand(count, 1, 1), **options)[0]
        kernel = (-(positives**2) / 2).exp().sum(1, keepdim=True)
        mass = kernel * math.exp(-2) / (kernel + math.exp(-2)) ** 2
        return drift / mass + far

    groups = many.reshape(-1, 4, 1) + 0.7
    truth = centroid(many + 0.7, False).item()
    plain, corrected = (centroid(groups, chosen).mean().item() - truth for chosen in (False, True))
    assert abs(corrected) < 0.5 * abs(plain)


def moves(field, generated, positives, others, temperatures, steps):
    """Return the drifts of the moves of one group, which the drifts of these temperatures share, by separate calls."""
    samples, total = generated, 0
    for _ in range(steps + 1):
        negatives = torch.cat([samples, others])[None]
        drifts = field(samples[None], positives[None], negatives, temperatures=temperatures, num_self=len(samples))[:, 0]
        samples, total = samples + drifts.sum(0), total + drifts
    return total


@pytest.mark.parametrize("shared", [False, True], ids=["own moves", "shared moves"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("field", [MeanShift(), KernelGradient()], ids=["mean shift", "score"])
def test_lookahead_adds_the_drifts_of_the_next_moves(field, steps, shared):
    generated, positives, others = draw(8, (2, 4, 3), (2, 5, 3), (2, 3, 3))
    negatives = torch.cat([generated, others], 1)
    temperatures = torch.tensor([0.5, 2.0], dtype=torch.float64)
    ahead = Lookahead(field, lookahead_steps=steps, shared_moves=shared)
    drift = ahead(generated, positives, negatives, temperatures=temperatures, num_self=4)
    for group in range(2):
        problem = (field, generated[group], positives[group], others[group])
        apart = [moves(*problem, temperature[None], steps)[0] for temperature in temperatures]
        assert_close(drift[:, group], moves(*problem, temperatures, steps) if shared else torch.stack(apart))


@pytest.mark.parametrize("shared", [False, True], ids=["own moves", "shared moves"])
@pytest.mark.parametrize("field", [MeanShift(affinity_floor=0.0), MeanShift(kernel="gaussian")], ids=["compiled", "torch"])
@pytest.mark.parametrize("num_self", [4, 0])
def test_lookahead_of_the_fastest_backend_is_that_of_the_field(field, num_self, shared):
    generated, positives, others = draw(11, (2, 4, 70), (2, 5, 70), (2, 3, 70))
    repelling = [generated, others] if num_self else [others]
    ahead = Lookahead(field, lookahead_steps=2, shared_moves=shared)
    temperatures, factors = torch.tensor([1.0, 4.0]), torch.tensor([0.5, 2.0])
    problem = Problem(generated.float(), [part.float() for part in repelling], positives.float(), num_self=num_self)
    drifts = open_drifts(ahead, problem, smallest=0.0)
    sizes = drifts.root_mean_squares(temperatures)
    options = {"temperatures": temperatures.double(), "num_self": num_self}
    expected = ahead(generated, positives, torch.cat(repelling, 1), **options)
    torch.testing.assert_close(drifts.total(factors), (expected * factors.double()[:, None, None, None]).sum(0).float())
    torch.testing.assert_close(sizes.float(), expected.square().mean((1, 2, 3)).sqrt().float())


@pytest.mark.parametrize("shared", [False, True], ids=["own moves", "shared moves"])
def test_weight_of_a_lookahead_multiplies_the_drifts_of_its_moves(shared):
    generated, positives = draw(15, (2, 4, 3), (2, 5, 3))
    options = {"temperatures": torch.tensor([0.5, 2.0], dtype=torch.float64), "num_self": 4}
    at = {"generated": generated[0], "positives": positives[0], "temperature": 0.7}

    def both(weight):
        field = Lookahead(lookahead_steps=2, weight=weight, shared_moves=shared)
        return field(generated, positives, generated, **options), field.at(generated[0] + 1, **at)

    first = MeanShift()(generated, positives, generated, **options), MeanShift().at(generated[0] + 1, **at)
    for none, part, whole in zip(first, both(0.25), both(1.0), strict=True):
        assert_close(part, none + 0.25 * (whole - none))
        assert (whole - none).abs().max() > 0.01


@pytest.mark.parametrize("shared", [False, True], ids=["own moves", "shared moves"])
def test_lookahead_spreads_samples_of_the_right_distribution(shared):
    """Where both sets have one distribution, the mean shift has no mean; its next drifts, and more repulsion, point outward."""
    generated, positives = draw(16, (100, 32, 32), (100, 32, 32))
    temperatures = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def outward(field):
        drift = field(generated, positives, generated, temperatures=temperatures, num_self=32)
        of_groups = (drift * generated).sum(3).mean(2) / drift.square().mean((1, 2, 3)).sqrt()[:, None]
        return (of_groups.mean(1) / (of_groups.std(1) / len(of_groups[0]) ** 0.5)).tolist()

    assert all(abs(errors) < 4 for errors in outward(MeanShift()))
    assert all(abs(errors) < 4 for errors in outward(MeanShift(balance=1.0)))
    assert all(errors > 4 for errors in outward(MeanShift(repulsion=1.1)))
    weak, strong = (outward(Lookahead(weight=weight, shared_moves=shared)) for weight in (0.25, 1.0))
    assert all(4 < less < more for less, more in zip(weak, strong, strict=True))


def test_lookahead_keeps_an_independent_batch_where_it_is():
    generated, positives, others = draw(9, (1, 4, 3), (1, 5, 3), (1, 6, 3))
    options = {"temperatures": torch.tensor([0.7], dtype=torch.float64)}
    first = MeanShift()(generated, positives, others, **options)[0]
    second = MeanShift()(generated + first, positives, others, **options)[0]
    assert_close(Lookahead()(generated, positives, others, **options)[0], first + second)
    at = Lookahead().at(generated[0], others[0], positives[0], temperature=0.7)
    assert at.shape == (4, 3)
    assert (at - Lookahead().field.at(generated[0], others[0], positives[0], temperature=0.7)).abs().max() > 1e-3


def test_lookahead_has_what_its_field_has():
    class Bare(MeanShift):
        statistics = at = property(lambda self: (_ for _ in ()).throw(AttributeError))

    assert getattr(Lookahead(Bare()), "at", None) is None
    assert getattr(Lookahead(Bare()), "statistics", None) is None
    generated, positives = draw(10, (1, 4, 3), (1, 5, 3))
    options = {"statistics": True, "temperatures": (0.5,), "normalize_features": False}
    ours = drifting_loss(generated, positives, field=Lookahead(KernelGradient()), **options).statistics
    torch.testing.assert_close(ours, drifting_loss(generated, positives, field=KernelGradient(), **options).statistics)


def test_spread_of_a_score_kernel_counts_its_neighbors():
    generated, positives, negatives = draw(11, (1, 3, 2), (1, 6, 2), (1, 4, 2))
    for field in (KernelGradient(), MaximumMeanDiscrepancy("laplace")):
        flat = field.statistics(generated, positives, negatives, temperatures=torch.tensor([1e6, 1e-4], dtype=torch.float64))
        assert_close(flat.positive_neighbors, torch.tensor([6.0, 1.0], dtype=torch.float64), 1e-6)
        assert_close(flat.negative_neighbors, torch.tensor([4.0, 1.0], dtype=torch.float64), 1e-6)
        assert flat.positive_share[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Lookahead(lookahead_steps=0), "lookahead_steps is 0: pass at least 1"),
        (lambda: MeanShift(repulsion=0.0), "repulsion is 0.0: pass a number above 0"),
        (lambda: MeanShift(affinity_floor=-1.0), "affinity_floor is -1.0: pass 0 or a number above 0, such as 1e-06"),
        (lambda: MeanShift(affinity_floor=math.nan), "affinity_floor is nan: pass 0 or a number above 0"),
        (lambda: Lookahead(lookahead_steps=1.5), "lookahead_steps is 1.5: pass a whole number"),
        (lambda: Lookahead(lookahead_steps=2.0), "lookahead_steps is 2.0: pass a whole number"),
        (lambda: Lookahead(lookahead_steps="2"), "lookahead_steps is '2': pass a whole number"),
        (lambda: Lookahead(field="mean-shift"), "field is 'mean-shift': pass a drift field, such as MeanShift()"),
        (lambda: MeanShift(balance=-1.0), "balance is -1.0: pass 0 or a number above 0, such as 1"),
        (lambda: MeanShift(balance=math.inf), "balance is inf: pass 0 or a number above 0"),
        (lambda: Lookahead(weight=0.0), "weight is 0.0: pass a number above 0"),
        (lambda: Lookahead(weight=math.nan), "weight is nan: pass a number above 0"),
        (lambda: KernelGradient("gaussien"), "kernel is 'gaussien', not .*: did you mean gaussian"),
        (lambda: MaximumMeanDiscrepancy("matern"), "kernel is 'matern', not .*: did you mean matern32"),
    ],
)
def test_value_that_does_not_fit_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize("field", [EnergyDistance(), MaximumMeanDiscrepancy(), KernelGradient("laplace")])
def test_rows_may_have_scales_of_their_own(field):
    """The loss of each group then does not depend on its unit."""
    generated, positives = draw(12, (2, 5, 3), (2, 4, 3))
    factors = torch.tensor([1.0, 100.0], dtype=torch.float64)[:, None, None]
    options = {"field": field, "temperatures": (0.3, 1.0), "scale_per_row": True}
    usual = drifting_loss(generated, positives, **options)
    other = drifting_loss(factors * generated, factors * positives, **options)
    assert_close(other.loss, usual.loss, 1e-7)
    assert_close(list(other.drift_norms.values()), list(usual.drift_norms.values()), 1e-7)
