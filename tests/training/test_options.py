"""Options of a training that are off by default: what they change, that they resume exactly, and what is refused."""

import dataclasses
import json

import pytest
import torch

from drifting import runs
from drifting.config import RunConfig
from drifting.distributed import Processes
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.presets import adjust
from drifting.runs.train import build_encoder, build_positives
from drifting.training.loop import check_shares, draw_batch, train
from drifting.training.state import TrainingState

OPTIONS = {
    "detached samples": {"detached_samples": 5},
    "detached samples of an independent batch": {"detached_samples": 5, "independent_negatives": True},
    "sobol points": {"schedule.noise": "sobol"},
    "sobol points that repel": {"schedule.noise": "sobol", "detached_samples": 5, "independent_negatives": True},
    "clip": {"drift_clip": 0.5},
    "scales of rows": {"field": "mean-shift", "scale_per_row": True, "normalize_features": True},
    "annealed temperatures": {"temperature_factors": (3.0, 0.5)},
    "learned temperature": {"temperature_learning_rate": 0.05},
    "learned temperature with muon": {"temperature_learning_rate": 0.05, "optimizer": "muon"},
}


class Needing(MeanShift):
    """A field that is of no use without an independent batch."""

    needs_independent_negatives = True


def begun(config: RunConfig) -> tuple[TrainingState, list]:
    """Return a fresh state and what else `train` takes."""
    state, encoder = TrainingState(config.build_generator(), config.schedule, config.seed), build_encoder(config)
    return state, [build_positives(config, encoder), encoder, config.loss.build(), config.schedule]


def trained(config: RunConfig, *, stop: int | None = None) -> TrainingState:
    state, parts = begun(config)
    for step in train(state, *parts):
        if step.number == stop:
            break
    return state


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["tiny_toy", "tiny_digits"])
def test_n_and_n_steps_equal_2n_bit_for_bit_and_differ_from_the_usual_training(kind, options, request, assert_same_tensors):
    usual = request.getfixturevalue(kind)
    config = adjust(usual, **options)
    first = trained(config, stop=3)
    resumed, parts = begun(config)
    resumed.restore({name: value.clone() for name, value in first.tensors().items()}, 3, "here")
    assert len(list(train(resumed, *parts))) == 3
    whole = trained(config)
    assert_same_tensors(resumed.tensors(), whole.tensors())
    weights = trained(adjust(usual, normalize_features=config.loss.normalize_features)).generator.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in whole.generator.state_dict().items())


@pytest.mark.parametrize(("independent", "names"), [(False, ("noise", "detached_noise")), (True, ("noise", "independent_noise"))])
def test_detached_samples_have_noise_and_codes_of_their_own(tiny_digits, independent, names):
    config = adjust(tiny_digits, labels_per_step=7, detached_samples=5, independent_negatives=independent)
    state, (positives, *_, schedule) = begun(config)
    state.generator.num_styles, state.generator.style_classes = 3, 5
    batch = draw_batch(state, positives, schedule)
    noise = {name: value.shape[1] for name, value in vars(batch).items() if name.endswith("noise") and value is not None}
    assert noise == dict(zip(names, (4, 9 if independent else 5), strict=True))
    codes = batch.independent_style_indices if independent else batch.detached_style_indices
    assert codes.shape == (7, 9 if independent else 5, 3)
    assert not torch.equal(batch.noise[:, :4], getattr(batch, names[1])[:, :4])


def test_draws_before_the_detached_samples_are_those_of_a_training_without(tiny_digits):
    batches = []
    for count in (0, 5):
        state, (positives, *_, schedule) = begun(adjust(tiny_digits, detached_samples=count))
        batches.append(draw_batch(state, positives, schedule))
    plain, further = batches
    assert plain.detached_noise is None
    assert torch.equal(plain.noise, further.noise)
    assert torch.equal(plain.positives["sample"], further.positives["sample"])


@pytest.mark.parametrize(("independent", "repelling"), [(False, 3 + 5), (True, 4 + 5)])
def test_guidance_counts_the_detached_samples(tiny_digits, independent, repelling):
    guided = {"guidance_scale": 1.5, "unconditional": 5, "independent_negatives": independent, "detached_samples": 5}
    state, (positives, *_, schedule) = begun(adjust(tiny_digits, labels_per_step=7, **guided))
    assert draw_batch(state, positives, schedule).unconditional_weight.tolist() == pytest.approx([0.5 * repelling / 5] * 7)


def test_one_generated_sample_trains_with_detached_ones(tiny_toy):
    state = trained(adjust(tiny_toy, generated=1, detached_samples=4))
    state.check_faults()


def test_processes_share_the_detached_samples_of_one_population(tiny_toy):
    schedule = adjust(tiny_toy, detached_samples=3).schedule
    with pytest.raises(InputError, match="world size is 2, which does not divide the 3 detached samples of a step"):
        check_shares(schedule, None, _two())
    check_shares(dataclasses.replace(schedule, labels_per_step=2), 2, _two())
    check_shares(dataclasses.replace(schedule, detached_samples=4), None, _two())


def _two() -> Processes:
    processes = Processes()
    processes.size = 2
    return processes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"detached_samples": -1}, "detached_samples is -1: pass 0 for none, or more"),
        ({"generated": 1}, "pass at least 2 per label, detached_samples or independent_negatives"),
        ({"temperature_factors": (1.0, 0.0)}, r"temperature_factors is \(1\.0, 0\.0\): pass two numbers above 0"),
        ({"temperature_learning_rate": 0.0}, r"temperature_learning_rate is 0\.0: pass a number above 0"),
        (
            {"temperature_learning_rate": 0.1, "temperature_factors": (2.0, 1.0)},
            r"temperature_factors is \(2\.0, 1\.0\) and temperature_learning_rate 0\.1: pass one of them",
        ),
        ({"drift_clip": 0.0}, r"drift_clip is 0\.0: pass a number above 0"),
    ],
)
def test_options_that_cannot_work_are_refused(tiny_toy, changes, words):
    with pytest.raises(InputError, match=words):
        adjust(tiny_toy, **changes)


def test_temperatures_are_annealed_by_the_same_ratio_in_every_step(tiny_toy):
    state, parts = begun(adjust(tiny_toy, temperature_factors=(4.0, 0.125)))
    factors = [step.temperature_factor for step in train(state, *parts)]
    assert factors == pytest.approx([4, 2, 1, 0.5, 0.25, 0.125])
    assert adjust(tiny_toy, steps=1, temperature_factors=(4.0, 0.5)).schedule.temperature_factor_at(1) == 4


def test_annealed_step_is_that_of_other_temperatures(tiny_digits, assert_same_tensors):
    state, parts = begun(adjust(tiny_digits, temperature_factors=(2.0, 2.0)))
    next(iter(train(state, *parts)))
    doubled = tuple(2 * temperature for temperature in tiny_digits.loss.temperatures)
    expected, parts = begun(adjust(tiny_digits, temperatures=doubled))
    next(iter(train(expected, *parts)))
    for name, value in expected.generator.state_dict().items():
        torch.testing.assert_close(state.generator.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_learned_temperature_follows_its_slope_without_decay_and_stays_positive(tiny_digits):
    config = adjust(tiny_digits, temperature_learning_rate=0.05, weight_decay=0.5)
    state, parts = begun(config)
    (group,) = state.temperature.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.05, 0)
    assert all(weight is not state.temperature.factor for each in state.optimizer.param_groups for weight in each["params"])
    steps = list(train(state, *parts))
    first = steps[0].report.features["sample"].temperature_slope
    assert first.abs() > 1e-6
    assert steps[0].temperature_factor == 1
    assert float(steps[1].temperature_factor) == pytest.approx(1 - 0.05 * float(first.sign()), abs=1e-4)
    assert {"temperature.factor", "temperature_optimizer.0.exp_avg", "temperature_optimizer.0.step"} <= state.tensors().keys()
    report = steps[-1].report
    falling = {name: dataclasses.replace(feature, temperature_slope=torch.tensor(1e4)) for name, feature in report.features.items()}
    for _ in range(40):
        state.temperature.learn(dataclasses.replace(report, features=falling))
    assert float(state.temperature.value) == pytest.approx(1e-3)


def test_checkpoint_of_a_fixed_temperature_is_refused_for_a_learned_one(tiny_toy):
    state, _ = begun(adjust(tiny_toy, temperature_learning_rate=0.05))
    with pytest.raises(InputError, match=r"checkpoint is 'here', which does not fit this run .*temperature"):
        state.restore(trained(tiny_toy).tensors(), 6, "here")


def test_processes_learn_a_temperature_by_labels_alone(tiny_toy):
    schedule = adjust(tiny_toy, temperature_learning_rate=0.05).schedule
    with pytest.raises(InputError, match=r"temperature_learning_rate is 0\.05, which several processes need labels for"):
        check_shares(schedule, None, _two())
    check_shares(dataclasses.replace(schedule, labels_per_step=2), 2, _two())


@pytest.mark.parametrize("options", [{"temperature_factors": (3.0, 1.0)}, {"temperature_learning_rate": 0.05}])
@pytest.mark.usefixtures("no_pictures")
def test_run_logs_the_factor_and_resumes(tiny_digits, tmp_path, options):
    config = adjust(tiny_digits, **options)
    run = runs.train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    factors = [line["temperature_factor"] for line in lines]
    assert len(set(factors)) == len(factors) >= 3
    longer = runs.train(adjust(run.config, steps=8), tmp_path / "run", resume=True)
    assert longer.config.schedule.steps == 8


def test_field_that_needs_an_independent_batch_is_refused_without_one(tiny_toy):
    with pytest.raises(InputError, match="field is Needing, which needs a second generated batch: pass independent_negatives"):
        dataclasses.replace(tiny_toy, loss=dataclasses.replace(tiny_toy.loss, field=Needing()))
    config = adjust(tiny_toy, independent_negatives=True)
    trained(dataclasses.replace(config, loss=dataclasses.replace(config.loss, field=Needing()))).check_faults()
