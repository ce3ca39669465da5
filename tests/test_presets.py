import dataclasses

import pytest

from drifting import presets
from drifting.config import PointsData, RunConfig, ToyData, resolve
from drifting.data.toys import TOYS
from drifting.errors import InputError
from drifting.presets import PRESETS, adjust, check_choices, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_complete_configuration_of_its_name(name):
    config = preset(name)
    assert isinstance(config, RunConfig)
    assert config.preset == name
    assert resolve(config) == config
    assert preset(name) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_tells_what_it_is(name):
    assert all(vars(PRESETS[name]).values())
    assert PRESETS[name].make.__doc__


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_can_be_chosen(name):
    assert preset("toy", dataset=name).data == ToyData(dataset=name)


def test_own_points_take_the_place_of_a_toy():
    assert preset("toy", data="points.npy").data == PointsData(path="points.npy")


@pytest.mark.parametrize("name", ["swiss_roll", "checker"])
def test_toys_of_the_notebook_keep_its_single_temperature(name):
    assert preset("toy", dataset=name).loss.temperatures == (0.05,)


@pytest.mark.parametrize(
    ("typed", "meant"), [("toys", "toy"), ("digit", "digits"), ("Digits", "digits"), ("mnist_digits", "digits")]
)
def test_nearest_preset_is_offered(typed, meant):
    with pytest.raises(InputError, match=rf"preset is '{typed}': did you mean '{meant}'\? There are .*toy"):
        preset(typed)


@pytest.mark.parametrize("choice", [{"dataset": "moons"}, {"data": "x.npy"}, {"colour": "red"}])
def test_choice_that_a_preset_does_not_take_is_refused(choice):
    (name, value), *_ = choice.items()
    with pytest.raises(InputError, match=f"{name} is '{value}', which the preset 'digits' does not take: leave it out"):
        preset("digits", **choice)


def test_nothing_is_adjusted_without_being_asked(tiny_toy):
    assert adjust(tiny_toy) == tiny_toy


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("schedule", "steps", 7),
        ("schedule", "learning_rate", 0.5),
        ("loss", "temperatures", (0.3, 0.4)),
        (None, "seed", 0),
        (None, "seed", 9),
        (None, "device", "cuda:1"),
        (None, "keep", 5),
    ],
)
def test_one_setting_is_adjusted_and_no_other(tiny_toy, part, name, value):
    adjusted = adjust(tiny_toy, **{name: value})
    assert getattr(adjusted if part is None else getattr(adjusted, part), name) == value
    before = tiny_toy if part is None else getattr(tiny_toy, part)
    back = dataclasses.replace(adjusted if part is None else getattr(adjusted, part), **{name: getattr(before, name)})
    assert (back if part is None else dataclasses.replace(adjusted, **{part: back})) == tiny_toy


def test_batch_size_is_shared_among_the_labels_and_positives_follow():
    config = preset("digits")
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, generated=64, positives=32))
    schedule = adjust(config, batch_size=100).schedule
    assert (schedule.labels_per_step, schedule.generated, schedule.positives) == (10, 10, 5)


@pytest.mark.parametrize(("name", "size"), [("digits", 15), ("digits", 0), ("digits", -10), ("toy", 0), ("toy", -1)])
def test_batch_size_that_does_not_divide_is_refused(name, size):
    with pytest.raises(InputError, match=rf"batch_size is {size}: pass a positive multiple of"):
        adjust(preset(name), batch_size=size)


@pytest.mark.parametrize(("name", "size"), [("digits", 10), ("toy", 1)])
def test_batch_of_one_sample_per_label_is_refused(name, size):
    with pytest.raises(InputError, match=r"batch_size leaves 1 generated sample per label .*: pass at least 2"):
        adjust(preset(name), batch_size=size)


def test_saved_run_of_the_same_choices_is_accepted(own_points):
    check_choices(preset("digits"), "digits")
    check_choices(preset("toy", dataset="checker"), "toy", dataset="checker")
    check_choices(preset("toy", dataset="checker"), "toy")
    check_choices(resolve(preset("toy", data=str(own_points))), "toy", data=str(own_points))


@pytest.mark.parametrize(("name", "choices"), [("digits", {}), ("toy", {"dataset": "moons"}), ("toy", {"data": "x.npy"})])
def test_saved_run_of_other_choices_is_refused(name, choices):
    asked = next(iter(choices.values()), name)
    with pytest.raises(InputError, match=f"is '{asked}', but the run to resume has"):
        check_choices(preset("toy", dataset="checker"), name, **choices)


def test_presets_are_listed_under_their_names():
    assert {"toy", "digits"} <= presets.PRESETS.keys()
