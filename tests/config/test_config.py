import dataclasses
import json

import pytest
import torch

from drifting import config as configuration
from drifting import presets
from drifting._json import load_json, save_json
from drifting.config import ClassifierConfig, RunConfig, from_json, to_json
from drifting.data import BankConfig, ImagesData, PointsData
from drifting.data.points import TOYS
from drifting.encoders import AutoencoderConfig, PixelsConfig
from drifting.errors import InputError
from drifting.generators import DecoderMLPConfig, MLPConfig
from drifting.runs.train import resolve


def _every_config() -> list[RunConfig]:
    made = [presets.preset(name, **{"data": "x"} if name.startswith("images") else {}) for name in presets.PRESETS]
    made += [presets.preset("toy", dataset=name) for name in TOYS]
    points = presets.preset("toy", data="points.npy")
    known = dataclasses.replace(points, data=PointsData(path="points.npy", center=(0.1, -1e300), scale=1 / 3))
    odd = {"max_grad_norm": None, "ema_decay": 0.1 + 0.2, "other_ema_decays": (1 / 3, 0.999), "microbatch_size": 7}
    fine = dataclasses.replace(made[0].schedule, independent_negatives=True, **odd)
    drawn = {"guidance_exponent": 1 / 3, "highest_guidance_scale": 3.5, "unguided_prob": 0.1 + 0.2, "unconditional": 3}
    digits = presets.preset("digits")
    made.append(dataclasses.replace(digits, schedule=dataclasses.replace(digits.schedule, guidance_scale=1.7, **drawn)))
    return [*made, *_image_configs(), points, known, dataclasses.replace(made[0], schedule=fine, seed=5, device="cuda:1")]


def _image_configs() -> list[RunConfig | ClassifierConfig]:
    """Return configurations with every field of images, encoder, bank and classifier away from its default."""
    data = ImagesData(name="own", path="/x", image_size=8, channels=3, conditional=False, image_shape=(3, 8, 8), num_classes=4)
    encoder = AutoencoderConfig(
        code_dim=3, width=5, features=("stage2_mean", "code"), steps=7, batch_size=9, learning_rate=0.1 + 0.2, noise=1 / 3
    )
    bank = BankConfig(capacity_per_class=3, unconditional_capacity=5, push_per_step=7)
    generator = DecoderMLPConfig(noise_dim=3, width=5, depth=2, code_dim=7, decoder_width=4)
    run = presets.preset("images", data="/x", unconditional=True)
    run = dataclasses.replace(run, data=data, encoder=encoder, bank=bank, generator=generator, cache_features=False)
    classifier = ClassifierConfig(
        preset="mnist-classifier",
        data=dataclasses.replace(data, conditional=True),
        width=3,
        steps=5,
        batch_size=7,
        learning_rate=1 / 3,
        shift=1,
        rotation=0.1,
        scale=0.2,
        label_smoothing=0.3,
        seed=9,
        device="mps",
    )
    return [run, dataclasses.replace(run, encoder=PixelsConfig(), bank=None), classifier]


@pytest.mark.parametrize("config", _every_config(), ids=str)
def test_configuration_goes_through_json_unchanged(config, tmp_path):
    save_json(tmp_path / "config.json", to_json(config))
    restored = from_json(load_json(tmp_path / "config.json"), "here")
    assert restored == config
    assert hash(restored) == hash(config)
    assert to_json(restored) == to_json(config)


def test_json_carries_its_version_and_the_kinds_of_its_parts(tiny_digits):
    values = to_json(tiny_digits)
    assert values["version"] == configuration.VERSION
    assert values["data"]["type"] == "DigitsData"
    assert values["generator"]["type"] == "MLPConfig"


def test_configuration_is_frozen_and_by_keyword_only(tiny_toy):
    for part in (tiny_toy, tiny_toy.data, tiny_toy.generator, tiny_toy.loss, tiny_toy.schedule):
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, getattr(part, field))
    with pytest.raises(TypeError):
        MLPConfig(1, 2, 3)


def test_newer_version_is_refused(tiny_toy):
    values = {**to_json(tiny_toy), "version": configuration.VERSION + 1}
    with pytest.raises(InputError, match=r"'here' has version \d+, newer than \d+: update drifting"):
        from_json(values, "here")


@pytest.mark.parametrize("values", [{}, [], None, "text", 3, {"version": "1"}, {"version": None}])
def test_json_that_is_no_configuration_is_refused(values):
    with pytest.raises(InputError, match="'here' has no version: name the folder of a run"):
        from_json(values, "here")


def _without(values: dict, key: str) -> dict:
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: _without(values, "data"),
        lambda values: _without(values, "schedule"),
        lambda values: _without(values, "preset"),
        lambda values: {**values, "unknown": 1},
        lambda values: {**values, "data": {"type": "Elsewhere"}},
        lambda values: {**values, "data": _without(values["data"], "type")},
        lambda values: {**values, "generator": []},
        lambda values: {**values, "loss": None},
        lambda values: {**values, "schedule": {**values["schedule"], "steps": "many"}},
        lambda values: {**values, "schedule": {**values["schedule"], "betas": [0.9], "odd": 1}},
    ],
)
def test_damaged_configuration_is_refused_with_its_place(tiny_toy, damage):
    with pytest.raises(InputError, match=r"configuration 'here' is damaged .*: restore it or train again"):
        from_json(damage(to_json(tiny_toy)), "here")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("schedule", name, 0) for name in ("steps", "generated", "positives", "labels_per_step", "statistics_every")),
        *((None, name, 0) for name in ("log_every", "checkpoint_every", "keep", "snapshots", "snapshot_samples")),
        ("schedule", "generated", 1),
        *(("schedule", "learning_rate", value) for value in (0.0, -1.0, float("nan"), float("inf"))),
        *(("schedule", "betas", value) for value in ((2.0, 2.0), (0.9, float("nan")), (0.9,))),
        *(("schedule", name, value) for name in ("weight_decay", "max_grad_norm") for value in (-1.0, float("nan"), float("inf"))),
        ("schedule", "max_grad_norm", 0.0),
        ("schedule", "warmup_steps", -1),
        *(("schedule", "guidance_scale", value) for value in (0.9, 1.5, float("nan"), float("inf"))),
        *(("schedule", "decay_power", value) for value in (-0.5, 1e3, float("nan"))),
        *(("schedule", "ema_decay", value) for value in (-0.1, 1.0, float("nan"))),
        *(("schedule", "other_ema_decays", value) for value in ((-0.1,), (0.5, 1.0), (0.5, 0.5), (0.9,))),
        *(("schedule", "microbatch_size", value) for value in (0, -1)),
        *(("schedule", "guidance_exponent", value) for value in (3.0, -1.0, float("nan"))),
        ("schedule", "unguided_prob", 0.5),
        *(("loss", "temperatures", value) for value in ((), (0.0,), (0.1, -1.0), (float("nan"),), (float("inf"),))),
    ],
)
def test_value_that_cannot_work_is_refused_by_name(tiny_toy, part, name, value):
    expected = {("generated", 1): "batch_size", ("guidance_exponent", value): "exponent"}.get((name, value), name)
    change = {name: value} if part is None else {part: dataclasses.replace(getattr(tiny_toy, part), **{name: value})}
    with pytest.raises(InputError, match=expected):
        dataclasses.replace(tiny_toy, **change)


def test_guidance_without_unconditional_samples_is_refused(tiny_digits):
    schedule = dataclasses.replace(tiny_digits.schedule, guidance_scale=1.5)
    with pytest.raises(InputError, match="unconditional is 0"):
        dataclasses.replace(tiny_digits, schedule=schedule)
    schedule = dataclasses.replace(schedule, unconditional=8)
    assert dataclasses.replace(tiny_digits, schedule=schedule).schedule.unconditional == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unconditional": 0}, "unconditional is 0"),
        ({"guidance_exponent": -0.5}, r"exponent is -0\.5"),
        ({"highest_guidance_scale": 1.0}, r"highest is 1\.0: the guidance scale is drawn from \[1, highest\]"),
        ({"unguided_prob": 1.5}, r"unguided_prob is 1\.5"),
        ({"guidance_scale": 0.5}, r"guidance_scale is 0\.5: pass a number from 1"),
        ({"guidance_scale": 4.5}, r"guidance_scale is 4\.5, but is drawn up to 4\.0: pass a number from 1 to 4\.0"),
    ],
)
def test_guidance_that_cannot_be_drawn_is_refused(tiny_digits, changes, words):
    drawn = dataclasses.replace(tiny_digits.schedule, guidance_exponent=3.0, unconditional=8)
    assert dataclasses.replace(tiny_digits, schedule=drawn).schedule.draws_guidance
    with pytest.raises(InputError, match=words):
        dataclasses.replace(tiny_digits, schedule=dataclasses.replace(drawn, **changes))


def test_configuration_written_before_guidance_could_be_drawn_is_read(tiny_digits):
    values, new = to_json(tiny_digits), ("guidance_exponent", "highest_guidance_scale", "unguided_prob", "microbatch_size")
    for name in (*new, "other_ema_decays"):
        del values["schedule"][name]
    assert from_json(values, "here") == tiny_digits


@pytest.mark.parametrize("kind", ["tiny_digits", "tiny_images"])
@pytest.mark.parametrize("drawn", [False, True])
def test_generator_takes_the_guidance_scale_where_it_is_drawn(kind, drawn, request):
    config = resolve(request.getfixturevalue(kind))
    schedule = dataclasses.replace(config.schedule, guidance_exponent=3.0 if drawn else None, unconditional=8)
    assert dataclasses.replace(config, schedule=schedule).build_generator().guided is drawn


def test_guidance_without_labels_is_refused(tiny_images):
    guided = dataclasses.replace(tiny_images.schedule, guidance_scale=1.5, unconditional=8)
    with pytest.raises(InputError, match=r"guidance_scale is 1\.5, but the data have no labels"):
        dataclasses.replace(tiny_images, schedule=guided, data=dataclasses.replace(tiny_images.data, conditional=False))


def test_one_generated_sample_is_accepted_with_independent_negatives(tiny_toy):
    schedule = dataclasses.replace(tiny_toy.schedule, generated=1, independent_negatives=True)
    assert dataclasses.replace(tiny_toy, schedule=schedule).schedule.generated == 1


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "meta", "xpu"])
def test_device_that_is_not_there_is_refused(tiny_toy, device):
    with pytest.raises(InputError, match=f"device is '{device}'"):
        resolve(dataclasses.replace(tiny_toy, device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_missing_cuda_is_reported_with_the_fix(tiny_toy, device):
    with pytest.raises(InputError, match=f"device is '{device}', which this machine does not offer: pass --device cpu"):
        resolve(dataclasses.replace(tiny_toy, device=device))


def test_cuda_device_beyond_the_last_one_is_refused(tiny_toy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="device is 'cuda:7'"):
        resolve(dataclasses.replace(tiny_toy, device="cuda:7"))


def test_resolving_finds_where_points_lie_and_happens_once(own_points):
    config = presets.preset("toy", data=str(own_points))
    with pytest.raises(InputError, match="center and scale are not known yet"):
        _ = config.data.frame
    resolved = resolve(config)
    assert resolved.data.frame.center == pytest.approx((1000, -3000), abs=20)
    assert resolved.data.frame.scale > 0
    assert resolve(resolved) == resolved
    assert resolved.data.source(resolved.seed).samples.square().mean().sqrt() == pytest.approx(0.5, rel=1e-4)


def test_resolving_leaves_everything_else_alone(tiny_toy, tiny_digits):
    assert resolve(tiny_toy) == tiny_toy
    assert resolve(tiny_digits) == tiny_digits


def test_initial_weights_depend_on_the_seed_alone(tiny_toy, assert_same_tensors):
    torch.manual_seed(1)
    first = tiny_toy.build_generator().state_dict()
    drawn = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), drawn)
    assert_same_tensors(tiny_toy.build_generator().state_dict(), first)
    other = dataclasses.replace(tiny_toy, seed=1).build_generator().state_dict()
    assert not torch.equal(other["output.weight"], first["output.weight"])


@pytest.mark.parametrize("kind", ["tiny_toy", "tiny_digits"])
def test_generator_and_source_fit(kind, request):
    config = request.getfixturevalue(kind)
    generator, source = config.build_generator(), config.data.source(config.seed)
    assert generator.sample_shape == source.sample_shape
    assert generator.num_classes == source.num_classes


def test_loss_has_the_settings_of_its_configuration(tiny_toy):
    loss = tiny_toy.loss.build()
    for name, value in vars(tiny_toy.loss).items():
        assert loss.settings[name] == value


def test_images_are_exported_as_rounded_bytes_channels_last(tiny_digits):
    export = tiny_digits.data.exporter()
    images = torch.tensor([-3.0, -1.0, -0.9999, 0.0, 0.999, 1.0, 7.0, 0.5]).reshape(1, 1, 2, 4)
    kept = images.clone()
    exported = export(images)
    assert exported.shape == (1, 2, 4, 1)
    assert exported.dtype == torch.uint8
    assert exported.flatten().tolist() == [0, 0, 0, 128, 255, 255, 255, 191]
    assert torch.equal(images, kept)


def test_points_are_exported_in_the_users_coordinates(tiny_toy):
    data = PointsData(path="points.npy", center=(1000.0, -3000.0), scale=50.0)
    export = dataclasses.replace(tiny_toy, data=data).data.exporter()
    assert export(torch.tensor([[0.0, 0.0], [1.0, -2.0]])).tolist() == [[1000, -3000], [1050, -3100]]


def test_json_is_plain(tiny_toy):
    assert json.loads(json.dumps(to_json(tiny_toy), allow_nan=False))["loss"]["temperatures"] == list(tiny_toy.loss.temperatures)
