import dataclasses
import re

import pytest
import torch

from drifting.errors import InputError
from drifting.metrics.distances import energy_distance
from drifting.runs.train import build_encoder, build_positives
from drifting.sampling import sample
from drifting.training.loop import draw_batch, train
from drifting.training.state import DivergenceError, TrainingState


def _state(config, **schedule) -> tuple[TrainingState, list]:
    """Return a fresh state and what else `train` takes."""
    schedule = dataclasses.replace(config.schedule, **schedule)
    state, encoder = TrainingState(config.build_generator(), schedule, config.seed), build_encoder(config)
    return state, [build_positives(config, encoder), encoder, config.loss.build(), schedule]


def _trained(config, **schedule) -> TrainingState:
    state, parts = _state(config, **schedule)
    for _ in train(state, *parts):
        pass
    return state


def test_steps_are_counted_from_one_to_the_last(tiny_toy):
    state, parts = _state(tiny_toy)
    assert [(step.number, state.step) for step in train(state, *parts)] == [(number, number) for number in range(1, 7)]
    assert list(train(state, *parts)) == []


@pytest.mark.parametrize("kind", ["tiny_toy", "tiny_digits"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("independent", [False, True])
def test_n_and_n_steps_equal_2n_bit_for_bit(kind, independent, optimizer, request, assert_same_tensors):
    config = request.getfixturevalue(kind)
    options = {"independent_negatives": independent, "weight_decay": 0.01, "optimizer": optimizer}
    first = _trained(config, steps=3, **options)
    resumed, parts = _state(config, **options)
    resumed.restore({name: value.clone() for name, value in first.tensors().items()}, 3, "here")
    assert len(list(train(resumed, *parts))) == 3
    assert_same_tensors(resumed.tensors(), _trained(config, **options).tensors())


def test_state_names_generator_average_optimizer_and_stream(tiny_toy):
    names = {name.split(".")[0] for name in _trained(tiny_toy).tensors()}
    assert names == {"generator", "average", "optimizer", "rng"}


def test_same_seed_gives_the_same_training_and_another_seed_another(tiny_toy, assert_same_tensors):
    first = _trained(tiny_toy)
    torch.manual_seed(99)
    assert_same_tensors(_trained(tiny_toy).tensors(), first.tensors())
    other = _trained(dataclasses.replace(tiny_toy, seed=1))
    assert not torch.equal(other.generator.output.weight, first.generator.output.weight)


def test_restoring_weights_of_another_network_is_refused(tiny_toy):
    wide = dataclasses.replace(tiny_toy, generator=dataclasses.replace(tiny_toy.generator, width=8))
    state, _ = _state(tiny_toy)
    with pytest.raises(InputError, match=r"checkpoint is 'elsewhere', which does not fit .*: delete it"):
        state.restore(_trained(wide).tensors(), 6, "elsewhere")


def test_stream_of_another_kind_of_device_is_refused(tiny_toy):
    """That of CUDA has 16 bytes: seed and offset."""
    state, _ = _state(tiny_toy)
    saved = {**_trained(tiny_toy).tensors(), "rng.state": torch.zeros(16, dtype=torch.uint8)}
    with pytest.raises(InputError, match="device is 'cpu', but the random stream of 'elsewhere' is of another kind of device"):
        state.restore(saved, 6, "elsewhere")


def test_warm_up_raises_the_learning_rate_linearly(tiny_toy):
    state, parts = _state(tiny_toy, warmup_steps=4, learning_rate=0.4)
    rates = [state.optimizer.param_groups[0]["lr"] for _ in train(state, *parts)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_warm_up_acts_on_the_weights(tiny_toy):
    def first_move(warmup_steps):
        state, parts = _state(tiny_toy, warmup_steps=warmup_steps, learning_rate=1e-3, steps=1)
        before = state.generator.output.weight.detach().clone()
        list(train(state, *parts))
        return float((state.generator.output.weight.detach() - before).abs().max())

    assert first_move(0) == pytest.approx(1e-3, rel=0.02)
    assert first_move(10) == pytest.approx(1e-4, rel=0.02)


def test_clipping_bounds_the_gradient(tiny_digits):
    def norms(bound):
        state, parts = _state(tiny_digits, max_grad_norm=bound)
        for _ in train(state, *parts):
            yield float(torch.stack([weight.grad.norm() for weight in state.generator.parameters()]).norm())

    free = list(norms(None))
    bound = min(free) / 2
    assert list(norms(bound)) == pytest.approx([bound] * 6, rel=1e-3)
    assert list(norms(1e6)) == free


def test_average_follows_the_generator(tiny_toy):
    state = _trained(tiny_toy)
    assert [int(average.n_averaged) for average in state.averages.values()] == [6]
    assert state.averaged is not state.generator
    assert not torch.equal(state.averaged.output.weight, state.generator.output.weight)


def test_kernel_statistics_come_at_the_first_step_and_every_so_often(tiny_toy):
    state, parts = _state(tiny_toy, statistics_every=3)
    reported = [step.number for step in train(state, *parts) if step.report.features["sample"].statistics is not None]
    assert reported == [1, 3, 6]


def test_batch_of_a_toy_is_one_population_without_labels(tiny_toy):
    state, (positives, *_, schedule) = _state(tiny_toy)
    batch = draw_batch(state, positives, schedule)
    assert batch.labels is None
    assert batch.independent_noise is None
    assert batch.noise.shape == (1, 32, 4)
    assert {name: tuple(value.shape) for name, value in batch.positives.items()} == {"sample": (1, 32, 1, 2)}


def test_batch_of_digits_has_different_labels_and_a_population_for_each(tiny_digits):
    state, (positives, *_, schedule) = _state(tiny_digits, labels_per_step=7, positives=3)
    for _ in range(5):
        batch = draw_batch(state, positives, schedule)
        assert batch.labels.shape == (7,)
        assert len(batch.labels.unique()) == 7
        assert int(batch.labels.min()) >= 0
        assert int(batch.labels.max()) <= 9
        assert batch.noise.shape == (7, 4, 4)
        assert {name: tuple(value.shape) for name, value in batch.positives.items()} == {"sample": (7, 3, 1, 64)}


def test_independent_negatives_have_noise_of_their_own(tiny_toy):
    state, (positives, *_, schedule) = _state(tiny_toy, independent_negatives=True)
    batch = draw_batch(state, positives, schedule)
    assert batch.independent_noise.shape == batch.noise.shape
    assert not torch.equal(batch.independent_noise, batch.noise)


def test_batch_has_style_indices_where_the_generator_takes_some(tiny_digits):
    state, (positives, *_, schedule) = _state(tiny_digits, labels_per_step=7, generated=4, independent_negatives=True)
    plain = draw_batch(state, positives, schedule)
    assert plain.style_indices is plain.independent_style_indices is None
    state.generator.num_styles, state.generator.style_classes = 3, 5
    batch = draw_batch(state, positives, schedule)
    for codes in (batch.style_indices, batch.independent_style_indices):
        assert codes.shape == (7, 4, 3)
        assert codes.unique().tolist() == [0, 1, 2, 3, 4]
    assert not torch.equal(batch.style_indices, batch.independent_style_indices)


@pytest.mark.parametrize("size", [1, 7, 39])
def test_microbatches_train_as_the_whole_batch_does(tiny_digits, size):
    whole, parted = _trained(tiny_digits), _trained(tiny_digits, microbatch_size=size)
    for name, value in whole.generator.state_dict().items():
        torch.testing.assert_close(parted.generator.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stored"), [(7, 2 * 40 * 64 * 4), (40, 0), (None, 0)])
def test_step_tells_the_bytes_that_its_microbatches_stored(tiny_digits, size, stored):
    state, parts = _state(tiny_digits, microbatch_size=size)
    assert {step.stored_bytes for step in train(state, *parts)} == {stored}


def test_further_averages_follow_with_their_own_decay(tiny_toy, assert_same_tensors):
    state = _trained(tiny_toy, other_ema_decays=(0.0, 0.5))
    assert list(state.averages) == [0.9, 0.0, 0.5]
    assert state.averaged is state.averages[0.9].module
    alone = _trained(tiny_toy)
    assert_same_tensors(state.averaged.state_dict(), alone.averaged.state_dict())
    for decay in (0.0, 0.5):
        assert_same_tensors(state.averages[decay].state_dict(), _trained(tiny_toy, ema_decay=decay).averages[decay].state_dict())
    state.chosen = 0.5
    assert state.averaged is state.averages[0.5].module


def test_further_averages_go_on_bit_for_bit(tiny_toy, assert_same_tensors):
    options = {"other_ema_decays": (0.5, 0.99)}
    first = _trained(tiny_toy, steps=3, **options)
    resumed, parts = _state(tiny_toy, **options)
    resumed.restore({name: value.clone() for name, value in first.tensors().items()}, 3, "here")
    assert len(list(train(resumed, *parts))) == 3
    assert_same_tensors(resumed.tensors(), _trained(tiny_toy, **options).tensors())


def test_unguided_batch_has_no_unconditional_samples(tiny_digits):
    state, (positives, *_, schedule) = _state(tiny_digits, unconditional=5)
    assert draw_batch(state, positives, schedule).unconditional is None


def test_one_generated_sample_trains_with_independent_negatives(tiny_toy):
    state = _trained(tiny_toy, generated=1, independent_negatives=True)
    state.check_faults()
    assert all(bool(value.isfinite().all()) for value in state.tensors().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_faulty_step_is_named_with_feature_and_temperature(tiny_toy, value):
    state, parts = _state(tiny_toy)
    for step in train(state, *parts):
        state.check_faults()
        if step.number == 3:
            break
    with torch.no_grad():
        state.generator.output.bias.fill_(value)
    for _ in train(state, *parts):
        pass
    where = re.escape(f"NaN or infinite at step 4, in feature 'sample' at temperature {min(tiny_toy.loss.temperatures):g}: lower")
    with pytest.raises(DivergenceError, match=where):
        state.check_faults()


def test_generator_learns_the_modes(tiny_toy):
    config = dataclasses.replace(tiny_toy, data=dataclasses.replace(tiny_toy.data, dataset="eight_gaussians"))
    config = dataclasses.replace(config, generator=dataclasses.replace(config.generator, width=64))
    state, parts = _state(config, generated=128, positives=128, steps=150, learning_rate=3e-3)
    real = config.data.source(config.seed).draw(None, 1000, torch.Generator().manual_seed(1))[0]
    before = energy_distance(sample(state.averaged, 1000), real)
    for _ in train(state, *parts):
        pass
    assert energy_distance(sample(state.averaged, 1000), real) < before / 10
