"""A step that is split over peers, by groups or by the samples of a population, is the undivided step."""

import pytest
import torch

from drifting import DriftingLoss, InputError, drifting_loss
from drifting.fields.base import Peers
from drifting.fields.mean_shift import MeanShift
from tests.oracle import drifting_oracle as oracle
from tests.support.covering import pairwise
from tests.support.threads import ThreadPeers, on_peers

OPTIONS = {
    "default": {},
    "no floor": {"field": MeanShift(0.0), "temperatures": (0.05, 0.3)},
    "sharp": {"field": MeanShift(0.0), "temperatures": (2e-3, 1.0)},
    "one temperature": {"temperatures": (0.1,)},
    "features as they are": {"normalize_features": False, "field": MeanShift(0.0), "temperatures": (0.2, 2.0)},
    "drift as it is": {"normalize_drift": False, "temperatures": (0.1, 0.5)},
    "nothing normalized": {"normalize_features": False, "normalize_drift": False, "temperatures": (0.2, 2.0)},
}
PARTS = ("generated", "positives", "unconditional", "generated_negatives")
EXTRAS = [(), ("unconditional",), ("weights", "unconditional"), ("generated_negatives", "weights")]


def draw(seed, *shapes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def problem(extras, groups=6, samples=6, dimension=5, dtype=torch.float64):
    """Return the arguments of `drifting_loss` by name; what is not among the extras is left out."""
    counts = {"generated": samples, "positives": 7, "unconditional": 3, "generated_negatives": 4}
    tensors = draw(0, *[(groups, count, dimension) for count in counts.values()], dtype=dtype)
    of_sets = dict(zip(counts, tensors, strict=True))
    chosen = {name: of_sets[name] for name in counts if name in {"generated", "positives", *extras}}
    repelling = counts["generated_negatives" if "generated_negatives" in extras else "generated"]
    weighted = {"generated": repelling, "positive": 7, **({"unconditional": 3} if "unconditional" in extras else {})}
    if "weights" in extras:
        weights = draw(1, *[(groups, count) for count in weighted.values()], dtype=dtype)
        chosen |= {f"{name}_weights": 0.1 + values.abs() for name, values in zip(weighted, weights, strict=True)}
    return chosen


def with_gradient(arguments, **options):
    arguments = {**arguments, "generated": arguments["generated"].detach().clone().requires_grad_()}
    report = drifting_loss(**arguments, **options)
    report.loss.mean().backward()
    return report, arguments["generated"].grad


def by_groups(arguments, peers):
    return {name: values.chunk(peers.size)[peers.rank] for name, values in arguments.items()}


def by_samples(arguments, peers):
    mine = arguments["generated"].chunk(peers.size, 1)[peers.rank]
    return {**arguments, "generated": mine, "population": arguments["generated"]}


AXES = {by_groups: 0, by_samples: 1}


def assert_close(value, expected, tolerance=1e-12):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def assert_is_the_whole(parts, whole, axis, tolerance=1e-12):
    """Compare (report, gradient) of every peer with those of the whole."""
    reports, gradients = zip(*parts, strict=True)
    expected, gradient = whole
    loss = torch.cat([report.loss for report in reports]) if axis == 0 else sum(report.loss for report in reports) / len(reports)
    assert_close(loss, expected.loss, tolerance)
    assert_close(torch.cat(gradients, axis) / len(parts), gradient, tolerance)
    for report in reports:
        assert_close(report.scale, expected.scale, tolerance)
        assert_close(report.drift_norms, expected.drift_norms, tolerance)
        assert_close(report.statistics, expected.statistics, tolerance)


@pytest.mark.parametrize(*pairwise(options=OPTIONS, extras=EXTRAS, size=(1, 2, 3), split=(by_groups, by_samples)))
def test_a_split_step_is_the_undivided_one(split, size, extras, options):
    arguments = problem(extras)
    whole = with_gradient(arguments, statistics=True, **options)
    parts = on_peers(size, lambda peers: with_gradient(split(arguments, peers), peers=peers, statistics=True, **options))
    assert_is_the_whole(parts, whole, AXES[split])


@pytest.mark.parametrize(*pairwise(extras=EXTRAS, size=(2, 3), floor=(0.0, 1e-6), split=(by_groups, by_samples)))
def test_a_split_step_is_that_of_the_oracle(split, floor, size, extras):
    axis = AXES[split]
    arguments = problem(extras, groups=6 if axis == 0 else 1)
    expected = oracle.drifting_loss(**arguments, floor=floor)
    parts = on_peers(size, lambda peers: with_gradient(split(arguments, peers), peers=peers, field=MeanShift(floor)))
    gradient = torch.cat([part for _, part in parts], axis) * len(arguments["generated"]) / size
    assert_close(gradient, torch.tensor(expected.grad), 1e-9)
    assert_close(torch.stack([report.loss.mean() for report, _ in parts]).mean(), torch.tensor(expected.loss.mean()), 1e-9)
    for report, _ in parts:
        assert_close(float(report.scale), expected.scale, 1e-9)
        assert_close([float(norm) for norm in report.drift_norms.values()], expected.drift_norms, 1e-9)


@pytest.mark.parametrize("dimension", [2, 32])
@pytest.mark.parametrize("split", [by_groups, by_samples])
def test_float32_and_half_precision_are_split_too(split, dimension):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        arguments = problem(("unconditional",), dimension=dimension, dtype=dtype)
        whole = with_gradient(arguments, statistics=True)
        parts = on_peers(2, lambda peers, whole=arguments: with_gradient(split(whole, peers), peers=peers, statistics=True))
        assert_is_the_whole(parts, whole, AXES[split], tolerance)


@pytest.mark.parametrize("split", [by_groups, by_samples])
def test_extreme_temperatures_stay_finite_and_equal(split):
    arguments = problem(("unconditional",))
    options = {"temperatures": (1e-8, 1e8), "field": MeanShift(0.0), "statistics": True}
    whole = with_gradient(arguments, **options)
    parts = on_peers(3, lambda peers: with_gradient(split(arguments, peers), peers=peers, **options))
    # Logits of 1e8 leave eight digits.
    assert_is_the_whole(parts, whole, AXES[split], 1e-6)
    assert all(gradient.isfinite().all() for _, gradient in parts)


def test_one_sample_on_each_peer_sees_the_others_and_not_itself():
    arguments = problem((), groups=2, samples=3)
    whole = with_gradient(arguments, field=MeanShift(0.0), statistics=True)
    options = {"field": MeanShift(0.0), "statistics": True}
    parts = on_peers(3, lambda peers: with_gradient(by_samples(arguments, peers), peers=peers, **options))
    assert_is_the_whole(parts, whole, 1)
    alone = with_gradient({**arguments, "generated": arguments["generated"][:, :1]}, field=MeanShift(0.0))
    assert (alone[1] - 3 * whole[1][:, :1]).abs().max() > 1e-2


def test_what_each_peer_computes_of_its_own_is_not_the_whole():
    arguments = problem(())
    whole, gradient = with_gradient(arguments)
    for part in range(2):
        own, own_gradient = with_gradient({name: values.chunk(2)[part] for name, values in arguments.items()})
        assert (own.scale - whole.scale).abs() > 1e-3
        assert (own_gradient / 2 - gradient.chunk(2)[part]).abs().max() > 1e-4


def test_known_scale_and_drift_norms_need_no_peer():
    arguments = problem(("unconditional",))
    whole, gradient = with_gradient(arguments)
    known = {"scale": whole.scale, "drift_norms": whole.drift_norms}

    def work(peers):
        return *with_gradient(by_groups(arguments, peers), peers=peers, **known), peers.calls

    for rank, (report, part, calls) in enumerate(on_peers(2, work)):
        assert calls == 0
        assert (report.scale, report.drift_norms) == (whole.scale, whole.drift_norms)
        assert_close(part / 2, gradient.chunk(2)[rank])


FEATURES = {"low": (3, 4), "high": (1, 9)}  # locations and channels


def features(seed, labels, count):
    shapes = [(labels, count, *shape) for shape in FEATURES.values()]
    return dict(zip(FEATURES, draw(seed, *shapes), strict=True))


def of_module(generated, *rest, **options):
    generated = {name: values.detach().clone().requires_grad_() for name, values in generated.items()}
    report = DriftingLoss(temperatures=(0.1, 0.5))(generated, *rest, **options)
    report.loss.backward()
    return report, {name: values.grad for name, values in generated.items()}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("independent", [False, True])
def test_the_module_passes_peers_and_population_to_every_feature(joint, independent):
    *sets, others = (features(seed, 4, count) for seed, count in enumerate((6, 5, 3, 8)))
    negatives = others if independent else None
    shapes = {"unconditional": (4, 3), "generated": (4, 8 if independent else 6)}
    weights = {name: values.abs() for name, values in zip(shapes, draw(4, *shapes.values()), strict=True)}
    whole, gradient = of_module(*sets, generated_negatives=negatives, weights=weights, statistics=True)
    axis = 1 if joint else 0

    def part(values, rank, axis=0):
        return {name: value.chunk(2, axis)[rank] for name, value in values.items()}

    def work(peers):
        generated, rest, other, of_part = part(sets[0], peers.rank, axis), sets[1:], negatives, weights
        if not joint:
            rest, of_part = [part(values, peers.rank) for values in rest], part(weights, peers.rank)
            other = None if other is None else part(other, peers.rank)
        options = {"generated_negatives": other, "weights": of_part, "statistics": True, "peers": peers}
        return of_module(generated, *rest, population=sets[0] if joint else None, **options)

    parts = on_peers(2, work)
    assert_close(torch.stack([report.loss for report, _ in parts]).mean(), whole.loss)
    for name, values in gradient.items():
        assert_close(torch.cat([part[name] for _, part in parts], axis) / 2, values)
        for report, _ in parts:
            assert_close(report.features[name].scale, whole.features[name].scale)
            assert_close(report.features[name].statistics, whole.features[name].statistics)


def test_another_field_is_given_peers_only_where_rows_are_split():
    calls = []

    class Watching(MeanShift):
        def __call__(self, *samples, **rest):
            calls.append((samples, rest))
            return super().__call__(*samples, **rest)

    arguments = problem(("unconditional",))
    for split in (by_groups, by_samples):
        on_peers(2, lambda peers, split=split: with_gradient(split(arguments, peers), peers=peers, field=Watching()))
    *whole, (samples, rest), _ = calls
    assert len(whole) == 2
    assert all("peers" not in seen for _, seen in whole)
    assert rest["peers"].size == 2
    assert rest["num_self"] == 3
    assert torch.equal(samples[2], torch.cat([arguments["generated"], arguments["unconditional"]], 1))
    assert rest["distances"].shape == (6, 3, 16)


def test_a_population_that_does_not_fit_is_refused():
    arguments = problem(())
    with pytest.raises(InputError, match=r"population is given without peers: pass the processes over which its samples are split"):
        drifting_loss(**arguments, population=arguments["generated"])
    message = r"population has shape \(6, 6, 5\): pass \(6, 12, 5\), the samples of 2 processes"
    with pytest.raises(InputError, match=message):
        on_peers(2, lambda peers: drifting_loss(**arguments, population=arguments["generated"], peers=peers))
    sets = features(0, 2, 4), features(1, 2, 4)
    with pytest.raises(InputError, match=r"features are named \['low'\] and \['high', 'low'\]"):
        DriftingLoss()(*sets, population={"low": sets[0]["low"]}, peers=ThreadPeers(0, [None], None))


def test_threads_are_peers():
    assert isinstance(ThreadPeers(0, [None], None), Peers)
