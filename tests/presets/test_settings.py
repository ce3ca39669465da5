"""Settings by their dotted names: every one that a person may set, how it is changed, and what is refused."""

import contextlib
import dataclasses

import numpy as np
import pytest

from drifting.config import to_json
from drifting.data import BankConfig, ImageFilesData, ImagesData
from drifting.encoders import PixelsConfig
from drifting.errors import InputError
from drifting.fields import KernelGradient, Lookahead, MeanShift, Sinkhorn
from drifting.presets import PRESETS, adjust, preset
from drifting.presets.settings import described, settings
from drifting.runs.train import resolve

NEEDS_DATA = {"images", "images-classifier"}


# Of these another value than those few that fit is refused.
RESTRICTED = {
    "scale_per_row",
    *("precision", "optimizer", "parallel", "arch", "guidance_scale", "unguided_prob", "conditional", "positives"),
    *("kernel", "normalization", "noise"),
}


def _config(name):
    return preset(name, **({"data": "nowhere"} if name in NEEDS_DATA else {}))


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _other(value):
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(map(_other, value)) or (0.25,)
    if isinstance(value, str):
        return f"{value}x"
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_settings_are_the_fields_that_are_not_found_in_the_data(name):
    config = _config(name)
    names = [setting.name for setting in settings(config)]
    found = ("image_shape", "num_classes", "class_names", "counts", "files", "fingerprint", "vae_fingerprint")
    values = {key for key in _flat(to_json(config)) if not key.endswith("type") and key not in ("version", "preset", "bank")}
    assert sorted(names) == sorted(values - {f"data.{key}" for key in found})


@pytest.mark.parametrize("name", ["toy", "cifar10-simclr", "imagenet256-pixel-b", "mae-latent-640", "mnist-classifier"])
def test_each_setting_is_changed_alone(name):
    config, changed = _config(name), set()
    before, known = _flat(to_json(config)), {setting.name for setting in settings(config) if setting.value is not None}
    for setting in settings(config):
        if setting.name in known:
            with contextlib.suppress(InputError):  # such as an optimizer of another name
                after = _flat(to_json(adjust(config, **{setting.name: _other(setting.value)})))
                differing = {key for key in before if before[key] != after[key]}
                assert differing - {"schedule.microbatch_size", "schedule.labels_per_microbatch"} <= {setting.name}
                changed |= differing
    assert {name.rpartition(".")[2] for name in known - changed} <= RESTRICTED


def test_settings_of_several_parts_are_changed_together():
    changes = {
        "encoder.width": 4,
        "generator.noise_dim": 3,
        "loss.temperatures": [0.1, 0.2],
        "schedule.betas": (0.5, 0.6),
        "seed": 3,
    }
    config = adjust(preset("cifar10-simclr"), **changes)
    assert (config.encoder.width, config.generator.noise_dim, config.seed) == (4, 3, 3)
    assert (config.loss.temperatures, config.schedule.betas) == ((0.1, 0.2), (0.5, 0.6))


def test_field_is_chosen_by_its_name_and_keeps_its_parameters_if_it_is_the_same():
    config = preset("toy", **{"loss.field.affinity_floor": 0.25})
    for name in ("mean-shift", "mean_shift", "MeanShift", MeanShift(0.25)):
        assert adjust(config, field=name) == adjust(config, **{"loss.field": name}) == config
    assert adjust(config, field=None) == config
    changed = adjust(config, **{"loss.field.kernel": "gaussian", "loss.field": MeanShift(0.5)})
    assert changed.loss.field == MeanShift(0.5, kernel="gaussian")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"field": "sinkhron"}, "loss.field is 'sinkhron', not .*: did you mean sinkhorn"),
        ({"field": "mean-shit"}, "loss.field is 'mean-shit', not .*: did you mean mean-shift"),
        ({"loss.field.kernel": "gausian"}, "kernel is 'gausian', not .*: did you mean gaussian"),
        ({"loss.field.field": "mean-shift"}, "loss.field.field is 'mean-shift', but MeanShift holds no other field: leave it out"),
    ],
)
def test_field_that_does_not_exist_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        adjust(preset("toy"), **changes)


def test_field_has_its_own_settings_and_may_hold_another_field():
    config = adjust(preset("toy"), **{"loss.field.iterations": 3, "loss.field": "sinkhorn"})
    assert config.loss.field == Sinkhorn(iterations=3)
    nested = {"loss.field.field": "kernel-gradient", "loss.field.field.kernel": "laplace", "loss.field.lookahead_steps": 2}
    assert adjust(config, field="lookahead", **nested).loss.field == Lookahead(KernelGradient("laplace"), lookahead_steps=2)


def test_none_is_a_value_of_a_dotted_name_and_no_change_of_a_short_one():
    config = preset("toy")
    assert adjust(config, **{"schedule.decay_after": None}).schedule.decay_after is None
    assert adjust(config, decay_after=None) == config


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (
            "digits",
            {"encoder.width": 3},
            "encoder.width is 3, which the preset 'digits' does not take: did you mean generator.width",
        ),
        ("toy", {"generator.widht": 3}, "generator.widht is 3, .* did you mean generator.width"),
        ("toy", {"generator.width": "many"}, "generator.width is 'many', not a whole number"),
        ("toy", {"batch_size": "many"}, "batch_size is 'many', not a whole number"),
        ("toy", {"batch_size": 3.5}, "batch_size is 3.5, not a whole number"),
        ("toy", {"loss.temperatures": (0.1, "x")}, r"loss.temperatures\[1\] is 'x', not a number"),
        ("cifar10-simclr", {"data.num_classes": 3}, "data.num_classes is 3, which the preset 'cifar10-simclr' does not take"),
    ],
)
def test_setting_that_does_not_fit_is_refused(name, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        adjust(preset(name), **changes)


def test_numbers_of_numpy_are_settings_as_those_of_python():
    adjusted = preset("toy", steps=np.int64(3), batch_size=np.int32(8), learning_rate=np.logspace(-3, -2, 3)[1])
    assert adjusted == preset("toy", steps=3, batch_size=8, learning_rate=float(np.logspace(-3, -2, 3)[1]))
    assert type(adjusted.schedule.steps) is int
    assert type(adjusted.schedule.learning_rate) is float


def test_batch_is_shared_among_as_many_labels_as_are_asked_for():
    schedule = adjust(preset("cifar10-resnet18"), batch_size=80, **{"schedule.labels_per_step": 4}).schedule
    assert (schedule.labels_per_step, schedule.generated, schedule.positives) == (4, 20, 40)
    schedule = adjust(preset("cifar10-resnet18"), batch_size=80, **{"schedule.positives": 7}).schedule
    assert (schedule.generated, schedule.positives) == (40, 7)


def test_other_data_are_searched_again(gray_folder, color_folder):
    config = resolve(preset("images", data=str(gray_folder)))
    assert config.data.image_shape == (1, 8, 8)
    assert adjust(config, **{"data.path": config.data.path}) == config
    other = resolve(adjust(config, **{"data.path": str(color_folder)}))
    assert other.data == resolve(preset("images", data=str(color_folder))).data


def test_bank_is_changed_where_there_is_one():
    config = dataclasses.replace(
        preset("images", data="nowhere"), data=ImageFilesData(path="nowhere"), encoder=PixelsConfig(), bank=BankConfig()
    )
    assert adjust(config, **{"bank.push_per_step": 3}).bank == BankConfig(push_per_step=3)
    with pytest.raises(InputError, match=r"bank\.push_per_step is 3, which the preset 'toy' does not take"):
        adjust(preset("toy"), **{"bank.push_per_step": 3})


def test_docstrings_say_what_each_argument_is():
    class Part:
        """Do a thing.

        Attributes:
            width, depth: of the network,
                which is small.
            seed: of all; none: by default.

        Source: somewhere.
        """

    assert described(Part) == {
        "width": "Of the network, which is small.",
        "depth": "Of the network, which is small.",
        "seed": "Of all; none: by default.",
    }
    assert described(ImagesData)["path"].startswith("Folder or Hub id")


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_is_described_in_words(name):
    bare = [setting.name for setting in settings(_config(name)) if len(setting.help.split()) < 3 or setting.help.startswith("Of ")]
    assert [each for each in bare if not each.startswith("data.")] == []


def test_preset_takes_any_setting():
    config = preset("cifar10-resnet18", steps=7, batch_size=40, **{"encoder.width": 3, "generator.noise_dim": 5})
    assert config == adjust(preset("cifar10-resnet18"), steps=7, batch_size=40, **{"encoder.width": 3, "generator.noise_dim": 5})
    assert (config.schedule.steps, config.encoder.width, config.generator.noise_dim) == (7, 3, 5)
    assert preset("toy", dataset="checker", seed=3).data.dataset == "checker"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stepz": 3}, "stepz is 3, .* leave it out, or did you mean steps?"),
        ({"batchsize": 3}, "batchsize is 3, .* did you mean batch_size?"),
        ({"generator.widht": 3}, "generator.widht is 3, .* did you mean generator.width?"),
        ({"image_size": 8}, "image_size is '8', .* leave it out$"),
    ],
)
def test_preset_names_the_setting_nearest_to_an_unknown_one(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        preset("toy", **changes)
