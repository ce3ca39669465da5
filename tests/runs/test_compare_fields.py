"""`drifting compare-fields`: the same terms for every field, what is kept when it is stopped, and what is refused."""

import dataclasses
import json

import pytest

from drifting import presets
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.presets.fields import FIELDS, field_choice
from drifting.runs import compare_fields as comparing
from drifting.runs.compare_fields import FieldComparison, Row, compare_fields, table
from drifting.training.state import DivergenceError

SHORT = {"presets": ("moons",), "fields": ("mean-shift", "second-batch"), "seeds": 2, "minutes": 1e-4, "num_samples": 40}


@pytest.fixture
def quick(monkeypatch, small_presets, no_pictures) -> None:
    """Measure the time of a step on few steps of small runs."""
    monkeypatch.setattr(comparing, "_TIMED_SECONDS", 0.0)


def test_comparison_trains_each_field_once_and_goes_on_where_it_was_stopped(tmp_path, quick, monkeypatch):
    shown: list[str] = []
    rows = compare_fields(FieldComparison(**SHORT), tmp_path, on_run=shown.append)
    assert [(row.problem, row.field, len(row.figures), row.failures) for row in rows] == [
        ("moons", "mean-shift", 2, 0),
        ("moons", "second-batch", 2, 0),
    ]
    assert [line.partition(":")[0] for line in shown] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert rows[0].figures[0]["energy_distance"] != rows[0].figures[1]["energy_distance"]
    written = (tmp_path / "fields.md").read_text()
    assert "| moons | second-batch |" in written
    assert len(json.loads((tmp_path / "fields.json").read_text())["rows"]) == 2
    assert (tmp_path / "fields.png").exists()

    (tmp_path / "moons" / "second-batch" / "seed-1" / "metrics.json").unlink()
    monkeypatch.setattr(comparing, "train", lambda *_, **__: pytest.fail("a finished run was trained again"))
    again = compare_fields(FieldComparison(**SHORT), tmp_path, on_run=shown.append)
    for before, after in zip(rows, again, strict=True):
        assert after.values("energy_distance") == pytest.approx(before.values("energy_distance"))
    assert (tmp_path / "fields.md").read_text() == written
    with pytest.raises(InputError, match=r"minutes is 5, but the comparison in .* has 0.0001"):
        compare_fields(FieldComparison(**{**SHORT, "minutes": 5}), tmp_path)


def test_stopped_run_is_resumed_with_its_own_steps(tmp_path, quick, monkeypatch):
    request = FieldComparison(**{**SHORT, "fields": ("mean-shift",), "seeds": 1})
    trained = comparing.train

    def stopped(config, folder, **options):
        assert options["resume"] is False
        trained(comparing._of_length(config, 4), folder, **options)
        (folder / "generator.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare_fields(request, tmp_path)
    monkeypatch.setattr(comparing, "train", trained)
    compare_fields(request, tmp_path)
    assert comparing.read_config(tmp_path / "moons" / "mean-shift" / "seed-0" / "config.json").schedule.steps == 4


def test_training_that_fails_is_counted_and_not_repeated(tmp_path, quick, monkeypatch):
    tries = []

    def diverges(config, folder, **options):
        tries.append(folder)
        folder.mkdir(parents=True)
        raise DivergenceError("loss is NaN")

    monkeypatch.setattr(comparing, "train", diverges)
    request = FieldComparison(**{**SHORT, "fields": ("mean-shift",)})
    for _ in range(2):
        (row,) = compare_fields(request, tmp_path)
        assert (row.failures, row.figures, len(tries)) == (2, [], 2)
        assert table([row])[1][2:5] == ("-", "-", "-")


def test_encoder_is_trained_once_for_all_fields(tmp_path, quick, monkeypatch, gray_folder):
    config = presets.preset("mnist-encoder", data=str(gray_folder))
    trained = comparing._with_trained_encoder(config, tmp_path / "encoder")
    assert trained.encoder.weights == str(tmp_path / "encoder" / "encoder.safetensors")
    assert not trained.trains_encoder
    monkeypatch.setattr(comparing, "train", lambda *_, **__: pytest.fail("the encoder was trained again"))
    assert comparing._with_trained_encoder(config, tmp_path / "encoder") == trained


def test_problems_have_the_sizes_and_temperatures_that_are_asked_for():
    request = FieldComparison(presets=("digits",), fields=("mean-shift",), group_sizes=(8, 16), temperature_factors=(0.5, 2))
    problems = request.problems()
    assert list(problems) == ["digits-of-8-at-0.5", "digits-of-8-at-2", "digits-of-16-at-0.5", "digits-of-16-at-2"]
    last = problems["digits-of-16-at-2"]
    assert (last.config.schedule.generated, last.config.schedule.positives) == (16, 16)
    usual = presets.preset("digits").loss.temperatures
    for name, values in (("mean-shift", usual), ("sinkhorn", (0.05,))):
        chosen = last.with_field(name, last.config)
        assert chosen.loss.temperatures == pytest.approx([2 * value for value in values])


def test_learning_rate_falls_at_the_same_share_of_a_run_of_another_length():
    # The steps of a cool-down are a share already, and the rate of its last one depends on their number.
    config = presets.preset("mnist-pixel", cooldown=0.0)
    half = comparing._of_length(config, config.schedule.steps / 2)
    for share in (0.3, 0.5, 0.9, 1.0):
        step = round(share * half.schedule.steps)
        assert half.schedule.learning_rate_at(step) == pytest.approx(config.schedule.learning_rate_at(2 * step), rel=1e-3)


def test_row_has_medians_with_the_spread_over_seeds():
    figures = [{"energy_distance": distance, "energy_distance_floor": 2.0, "recall": 0.5} for distance in (2.0, 8.0, 3.0)]
    row = Row("moons", "mean-shift", figures, 1, 0.0125, 100)
    assert table([row])[1] == ("moons", "mean-shift", "1.5 (1 to 4)", "0.5 (0.5 to 0.5)", "-", "12.5", "100", "1")
    assert table([row], spread=False)[1][2] == "1.5"


def test_choice_changes_the_field_and_its_settings_alone():
    config = presets.preset("digits")
    changed = FIELDS["second-batch"].apply(config)
    assert changed.schedule == dataclasses.replace(config.schedule, independent_negatives=True)
    assert FIELDS["release"].apply(config).loss.field == MeanShift(affinity_floor=1e-6)


@pytest.mark.parametrize("preset", ["digits", "mnist-pixel", "cifar10-multiscale"])
def test_choice_named_preset_changes_nothing(preset):
    config = presets.preset(preset)
    assert FIELDS["preset"].apply(config) == config
    assert FIELDS["mean-shift"].apply(config) != config


@pytest.mark.parametrize("name", FIELDS)
def test_every_choice_fits_a_preset_with_classes_and_one_without(name):
    for preset in ("digits", "toy"):
        assert field_choice(name).apply(presets.preset(preset)).preset == preset


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": ("mean-shfit",)}, "fields has 'mean-shfit': did you mean 'mean-shift'"),
        ({"fields": ()}, "fields is empty"),
        ({"fields": ("mean-shift", "mean-shift")}, "fields is mean-shift mean-shift: name each once"),
        ({"seeds": 0}, "seeds is 0"),
        ({"minutes": 0.0}, "minutes is 0.0: pass a number above 0"),
        ({"minutes": float("nan")}, "minutes is nan: pass a number above 0"),
        ({"temperature_factors": (1.0, -2.0)}, "temperature_factors is -2.0: pass a number above 0"),
        ({"temperature_factors": (0.12345671, 0.12345672)}, "temperature_factors is 0.123457 0.123457: name each once"),
        ({"group_sizes": (8, 1)}, "group_sizes is 1: pass at least 2"),
        ({"group_sizes": (8, 8)}, "group_sizes is 8 8: name each once"),
        ({"num_samples": 1}, "num_samples is 1: pass at least 2"),
        ({"presets": ("mnist-classifier",)}, "presets has 'mnist-classifier', which trains no generator"),
        ({"presets": ("mooons",)}, "presets has 'mooons': did you mean 'moons'"),
        ({"presets": ("moons", "images"), "data": "x"}, "data is 'x', but presets is moons images: name the one that takes it"),
        ({"presets": ("digits",), "data": "x"}, "data is 'x', which the preset 'digits' does not take"),
        ({"extractor": "pixels"}, "extractor is 'pixels', but no preset makes images: leave it out"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        compare_fields(FieldComparison(**{**SHORT, **changes}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extractor", "message"), [(None, "run drifting train mnist-classifier"), ("a.pt", "extractor is 'a.pt', which is not a file")]
)
def test_images_need_their_extractor_before_their_data_are_read(here, monkeypatch, small_presets, extractor, message):
    monkeypatch.setattr(comparing, "with_network", lambda *_, **__: pytest.fail("the data were read"))
    with pytest.raises(InputError, match=message):
        compare_fields(FieldComparison(presets=("mnist-pixel",), fields=("mean-shift",), extractor=extractor), "out")
    assert not (here / "out").exists()


def test_own_images_are_compared_by_the_extractor_that_is_named(here, quick, gray_folder, extractor_folder):
    own = {"presets": ("images",), "fields": ("preset",), "data": str(gray_folder), "seeds": 1}
    request = FieldComparison(**{**SHORT, **own}, extractor=str(extractor_folder))
    (row,) = compare_fields(request, "out")
    assert row.figures[0]["extractor"].startswith("classifier-")
    with pytest.raises(InputError, match="extractor is pixels, but the comparison in 'out' has"):
        compare_fields(dataclasses.replace(request, extractor="pixels"), "out")
