"""Options of a training that are off by default: what they change, that they resume exactly, and what is refused."""

import dataclasses

import pytest
import torch

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
    "clip": {"drift_clip": 0.5},
}


class Needing(MeanShift):
    """A field that is of no use without an independent batch."""

    needs_independent_negatives = True


def begun(config: RunConfig) -> tuple[TrainingState, list]:
    """Return a fresh state and what else `train` takes."""
    state, encoder = TrainingState(config.build_generator(), config.schedule, config.seed), build_encoder(config)
    return state, [build_positives(config, encoder), encoder, config.loss.build(), config.schedule]


def trained(config: RunConfig) -> TrainingState:
    state, parts = begun(config)
    for _ in train(state, *parts):
        pass
    return state


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["tiny_toy", "tiny_digits"])
def test_n_and_n_steps_equal_2n_bit_for_bit_and_differ_from_the_usual_training(kind, options, request, assert_same_tensors):
    usual = request.getfixturevalue(kind)
    config = adjust(usual, **options)
    first = trained(adjust(config, steps=3))
    resumed, parts = begun(config)
    resumed.restore({name: value.clone() for name, value in first.tensors().items()}, 3, "here")
    assert len(list(train(resumed, *parts))) == 3
    whole = trained(config)
    assert_same_tensors(resumed.tensors(), whole.tensors())
    weights = trained(usual).generator.state_dict()
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
        ({"drift_clip": 0.0}, r"drift_clip is 0\.0: pass a number above 0"),
    ],
)
def test_options_that_cannot_work_are_refused(tiny_toy, changes, words):
    with pytest.raises(InputError, match=words):
        adjust(tiny_toy, **changes)


def test_field_that_needs_an_independent_batch_is_refused_without_one(tiny_toy):
    with pytest.raises(InputError, match="field is Needing, which needs a second generated batch: pass independent_negatives"):
        dataclasses.replace(tiny_toy, loss=dataclasses.replace(tiny_toy.loss, field=Needing()))
    config = adjust(tiny_toy, independent_negatives=True)
    trained(dataclasses.replace(config, loss=dataclasses.replace(config.loss, field=Needing()))).check_faults()
