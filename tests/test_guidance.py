"""Guidance at training time: the weight, the density that it reaches, and the law of the guidance scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting import InputError, drifting_loss
from drifting.fields import MeanShift
from drifting.guidance import check_guidance_law, check_guidance_scale, draw_guidance_scale, unconditional_weight
from tests.support.two_components import two_components, upper_shares

properties = settings(max_examples=25, deadline=None)


def cumulative(scale, exponent, highest):
    """Return the share of the density alpha^-k on [1, highest] that lies below `scale`, by its antiderivative."""
    if exponent == 1:
        return scale.log() / torch.tensor(highest).log()
    return (1 - scale ** (1 - exponent)) / (1 - highest ** (1 - exponent))


@properties
@given(st.lists(st.floats(1.0, 8.0), min_size=1, max_size=4), st.integers(1, 200), st.integers(1, 100))
def test_weights_of_all_unconditional_negatives_add_up_to_the_guidance_times_the_repelling_samples(scales, n, m):
    weight = unconditional_weight(torch.tensor(scales), n, m)
    torch.testing.assert_close(weight * m, (torch.tensor(scales) - 1) * (n - 1))


def test_no_guidance_is_weight_zero():
    assert unconditional_weight(torch.ones(3), 64, 16).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5, 4.0])
def test_equilibrium_is_the_guided_mixture(guidance_scale):
    # With a flat kernel the drift compares means: it vanishes where p = (q + (alpha - 1) u) / alpha, up to O(1 / n), for a
    # generated sample as a negative is normalized over one row fewer.
    n, m, label, everything = 300, 16, 2.0, -1.0
    wanted = guidance_scale * label - (guidance_scale - 1) * everything
    weight = unconditional_weight(torch.tensor(guidance_scale, dtype=torch.float64), n, m)
    weights = torch.cat([torch.ones(n), weight.expand(m), torch.ones(8)])[None]

    def mean_drift(mean):
        generated, others, positives = (torch.full((1, k, 1), at).double() for k, at in ((n, mean), (m, everything), (8, label)))
        negatives = torch.cat([generated, others], 1)
        options = {"temperatures": torch.tensor([1e8], dtype=torch.float64), "weights": weights, "num_self": n}
        return float(MeanShift()(generated, positives, negatives, **options).mean())

    assert abs(mean_drift(wanted)) < 5 / n * mean_drift(wanted - 1)
    assert mean_drift(wanted - 1) > 0 > mean_drift(wanted + 1)


@pytest.mark.parametrize(("factor", "share"), [(0, 0.70), (1, 0.80), (2, 0.90)])
def test_free_particles_take_the_shares_of_the_guided_density(factor, share):
    """At scale 1.5 the density 1.5 p(.|c) - 0.5 p has shares .8 and .2, where the classes have .7 and .3, and all together .5.

    That is so for the weight of `unconditional_weight` alone: without unconditional samples the classes keep their own shares,
    and twice the weight is guidance scale 2.
    """
    n, m, steps = 256, 64, 200
    rng = torch.Generator().manual_seed(0)
    weights = factor * unconditional_weight(torch.full((2,), 1.5), n, m)[:, None].expand(2, m)
    particles, shares = two_components([0.5, 0.5], n, rng), []
    for _ in range(steps):
        particles.requires_grad_()
        loss = drifting_loss(
            particles,
            two_components([0.7, 0.3], n, rng),
            two_components([0.5, 0.5], m, rng),
            unconditional_weights=weights,
            temperatures=(1.0,),
            field=MeanShift(0.0),
            normalize_features=False,
            normalize_drift=False,
        ).loss.sum()
        # The gradient is -2 V / n: a move by the drift V.
        particles = (particles - n / 2 * torch.autograd.grad(loss, particles)[0]).detach()
        shares.append(upper_shares(particles))
    reached = torch.stack(shares[steps // 2 :]).mean(0)
    assert reached.tolist() == pytest.approx([share, 1 - share], abs=0.03)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0, 5.0])
@pytest.mark.parametrize("highest", [4.0, 2.0])
def test_guidance_scale_follows_its_density(exponent, highest):
    count = 20_000
    drawn = draw_guidance_scale(count, exponent=exponent, highest=highest, rng=torch.Generator().manual_seed(0))
    assert drawn.min() >= 1
    assert drawn.max() <= highest + 1e-5
    ranks = (torch.arange(count) + 0.5) / count
    distance = (cumulative(drawn.sort().values.double(), exponent, highest) - ranks).abs().max()
    assert distance < 1.95 / count**0.5  # Kolmogorov and Smirnov's distance, at one in a thousand


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_unguided_prob_is_exactly_one(share):
    drawn = draw_guidance_scale(20_000, exponent=1.0, unguided_prob=share, rng=torch.Generator().manual_seed(1))
    assert float((drawn == 1).double().mean()) == pytest.approx(share, abs=0.015)


def test_unguided_labels_leave_the_law_of_the_others_as_it_is():
    count = 20_000
    drawn = draw_guidance_scale(count, exponent=3.0, unguided_prob=0.5, rng=torch.Generator().manual_seed(2))
    guided = drawn[drawn > 1].sort().values.double()
    ranks = (torch.arange(len(guided)) + 0.5) / len(guided)
    assert (cumulative(guided, 3.0, 4.0) - ranks).abs().max() < 1.95 / len(guided) ** 0.5


def test_draw_is_decided_by_the_generator_of_randomness():
    first, second = (
        draw_guidance_scale(8, exponent=3.0, unguided_prob=0.2, rng=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert draw_guidance_scale(8, exponent=3.0).shape == (8,)


def test_guidance_without_unconditional_samples_is_refused():
    with pytest.raises(InputError, match="num_unconditional is 0"):
        unconditional_weight(torch.ones(1), 64, 0)


def test_empty_interval_of_guidance_scales_is_refused():
    with pytest.raises(InputError, match=r"highest is 1\.0"):
        draw_guidance_scale(4, exponent=3.0, highest=1.0)


@pytest.mark.parametrize("scale", [0.999, 0.0, -1.0, float("nan")])
def test_guidance_scale_below_1_has_no_weight(scale):
    with pytest.raises(InputError, match=r"guidance_scale is .*: pass a number from 1 \(no guidance\) up"):
        unconditional_weight(torch.tensor([2.0, scale]), 64, 16)


@pytest.mark.parametrize("scale", [0.999, 0.0, -1.0, 10**39, float("nan"), float("inf")])
def test_guidance_scale_is_finite_and_from_1(scale):
    with pytest.raises(InputError, match=f"guidance_scale is {scale}: pass a number from 1"):
        check_guidance_scale(scale)
    check_guidance_scale(1.0)
    check_guidance_scale(7.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("exponent", value) for value in (-0.5, 101.0, float("nan"), float("inf"))),
        *(("highest", value) for value in (1.0, 0.5, 10**39, float("nan"), float("inf"))),
        *(("unguided_prob", value) for value in (-0.1, 1.1, float("nan"))),
    ],
)
def test_law_that_draws_nothing_is_refused(name, value):
    numbers = {"exponent": 3.0, "highest": 4.0, "unguided_prob": 0.5, name: value}
    for refuse in (check_guidance_law, lambda **law: draw_guidance_scale(4, **law)):
        with pytest.raises(InputError, match=f"{name} is {value}"):
            refuse(**numbers)


@pytest.mark.parametrize("numbers", [{"exponent": 100.0, "highest": 1e30}, {"exponent": 0.0, "highest": 1e30}])
def test_ends_of_the_law_stay_finite(numbers):
    drawn = draw_guidance_scale(1000, **numbers, rng=torch.Generator().manual_seed(0))
    assert bool(drawn.isfinite().all())
    assert drawn.min() >= 1


def test_no_scales_have_no_weights():
    assert unconditional_weight(torch.empty(0), 64, 16).shape == (0,)
