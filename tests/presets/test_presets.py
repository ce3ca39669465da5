import dataclasses

import pytest

from drifting import presets
from drifting.config import ClassifierConfig, RunConfig
from drifting.data import PointsData, ToyData
from drifting.data.points import TOYS
from drifting.errors import InputError
from drifting.presets import PRESETS, adjust, check_choices, preset
from drifting.runs.train import resolve

# Those whose data stay on disk are in test_presets_imagenet.
IN_MEMORY = [name for name in PRESETS if not name.startswith(("imagenet256-", "mae-"))]


@pytest.mark.parametrize("name", IN_MEMORY)
def test_every_preset_is_a_complete_configuration_of_its_name(name, gray_folder, color_folder):
    folder, shape = (color_folder, (3, 16, 16)) if name.startswith("cifar10") else (gray_folder, (1, 8, 8))
    choices = {} if name in ("toy", "digits") else {"data": str(folder)}
    config = preset(name, **choices)
    assert isinstance(config, ClassifierConfig if name.endswith("classifier") else RunConfig)
    assert config.preset == name
    resolved = resolve(config)
    if choices:
        found = (resolved.data.path, resolved.data.image_shape, resolved.data.num_classes)
        assert found == (str(folder), shape, 3)
        resolved = dataclasses.replace(resolved, data=config.data)
    assert resolved == config
    assert preset(name, **choices) == config


@pytest.mark.parametrize("name", ["mnist-pixel", "mnist-encoder", "images", "cifar10-resnet18", "cifar10-simclr-gpu"])
def test_unconditional_images_are_one_population_as_large_as_all_classes_together(name):
    classes, joint = (preset(name, data="x", **choices) for choices in ({}, {"unconditional": True}))
    assert (classes.data.conditional, joint.data.conditional) == (True, False)
    assert joint.schedule.labels_per_step == 1
    for count in ("generated", "positives"):
        assert getattr(joint.schedule, count) == classes.schedule.labels_per_step * getattr(classes.schedule, count)


def test_own_images_keep_what_was_asked_of_them():
    data = preset("images", data="folder", image_size=24, channels=3).data
    assert (data.path, data.image_size, data.channels, data.conditional) == ("folder", 24, 3, True)


@pytest.mark.parametrize("choices", [{}, {"unconditional": True}])
def test_own_images_must_be_named(choices):
    with pytest.raises(InputError, match="data is missing: pass --data FOLDER, or a Hub id"):
        preset("images", **choices)


def test_classifier_takes_settings_of_its_training_and_no_others():
    config = preset("mnist-classifier")
    assert adjust(config, steps=7, batch_size=9, seed=2, learning_rate=None) == dataclasses.replace(
        config, steps=7, batch_size=9, seed=2
    )
    for name, value in (("temperatures", (0.1,)), ("keep", 3)):
        with pytest.raises(InputError, match=f"{name} is .*, which the preset 'mnist-classifier' does not take: leave it out"):
            adjust(config, **{name: value})


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


@pytest.mark.parametrize("choice", [{"dataset": "moons"}, {"data": "x.npy"}, {"color": "red"}])
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
    assert adjust(config, batch_size=109).schedule == schedule


@pytest.mark.parametrize(("name", "size"), [("digits", 9), ("digits", 0), ("digits", -10), ("toy", 0), ("toy", -1)])
def test_batch_that_leaves_nothing_for_a_label_is_refused(name, size):
    with pytest.raises(InputError, match=rf"batch_size is {size}: pass at least (10, one for each label|1, one)"):
        adjust(preset(name), batch_size=size)


@pytest.mark.parametrize(("name", "size"), [("digits", 10), ("toy", 1)])
def test_batch_of_one_sample_per_label_is_refused(name, size):
    with pytest.raises(InputError, match=r"batch_size leaves 1 generated sample per label .*: pass at least 2"):
        adjust(preset(name), batch_size=size)


def test_saved_run_of_the_same_choices_is_accepted(own_points, gray_folder):
    check_choices(preset("digits"), "digits")
    check_choices(preset("toy", dataset="checker"), "toy", dataset="checker")
    check_choices(preset("toy", dataset="checker"), "toy")
    check_choices(resolve(preset("toy", data=str(own_points))), "toy", data=str(own_points))
    images = resolve(preset("images", data=str(gray_folder), unconditional=True))
    check_choices(images, "images", data=str(gray_folder), unconditional=True)
    check_choices(images, "images")


@pytest.mark.parametrize(("name", "choices"), [("digits", {}), ("toy", {"dataset": "moons"}), ("toy", {"data": "x.npy"})])
def test_saved_run_of_other_choices_is_refused(name, choices):
    asked = next(iter(choices.values()), name)
    with pytest.raises(InputError, match=f"is '{asked}', but the run to resume has"):
        check_choices(preset("toy", dataset="checker"), name, **choices)


@pytest.mark.parametrize("choices", [{"unconditional": True}, {"image_size": 8}, {"channels": 3}, {"data": "elsewhere"}])
def test_saved_run_of_other_images_is_refused(choices, gray_folder):
    saved = resolve(preset("images", data=str(gray_folder)))
    (name, value), *_ = choices.items()
    with pytest.raises(InputError, match=f"{name} is '{value}', but the run to resume has"):
        check_choices(saved, "images", **choices)


def test_presets_are_listed_under_their_names():
    assert {"toy", "digits"} <= presets.PRESETS.keys()
