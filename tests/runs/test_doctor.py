"""The verdict on the folder of a run, finished or not, of this version or an earlier one."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from drifting import runs
from drifting.config import LossConfig
from drifting.diagnosis import judge
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.presets import adjust, preset
from drifting.runs.doctor import examine, settings_of
from tests.support.small_runs import shrunk, without_pictures

EARLIER = Path(__file__).parents[1] / "earlier_runs"
FIGURES = {"statistics_every": 1, "log_every": 1}


def trained(config, folder):
    with without_pictures():
        runs.train(config, folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["toy", "digits", "images"])
def test_earlier_runs_are_examined_and_say_what_cannot_be_judged(name):
    found = examine(EARLIER / name)
    assert found.faults == ()
    assert any("earlier versions" in reason for reason in found.unknown)


@pytest.mark.parametrize(
    ("name", "changes", "flag"),
    [
        ("toy", {"loss.field.affinity_floor": 1e-6}, "--loss.field.affinity-floor"),
        ("digits", {"loss.field.field.affinity_floor": 1e-6}, "--loss.field.field.affinity-floor"),
        ("toy", {}, None),
        ("digits", {}, None),
        ("toy", {"field": "energy-distance"}, None),
    ],
)
def test_fix_names_the_flag_of_the_field_of_the_run(name, changes, flag):
    settings = settings_of(preset(name, **changes))
    assert settings.floor_flag == flag
    lines = [
        {"step": step, "flat_share/a/0.1": 1.0, "negative_neighbors/a/0.1": 2.0, "generated_count/a": 64.0} for step in range(9)
    ]
    assert [fault.fix for fault in judge(lines, settings).faults] == ([f"lower {flag}, such as 0"] if flag else [])


@pytest.mark.parametrize(
    ("name", "flag"),
    [("toy", None), ("digits", "--loss.field.weight"), ("mnist-pixel", "--loss.field.repulsion"), ("images", None)],
)
def test_setting_that_spreads_samples_is_known(name, flag, gray_folder):
    config = preset(name, **({} if name in ("toy", "digits") else {"data": str(gray_folder)}))
    assert settings_of(config).spread_flag == flag
    balanced = dataclasses.replace(config, loss=LossConfig(field=MeanShift(balance=1.0)))
    assert settings_of(balanced).spread_flag == "--loss.field.balance"


def test_log_holds_the_figures_of_every_temperature_and_part(tiny_digits, tmp_path):
    line = trained(adjust(tiny_digits, **FIGURES), tmp_path / "run")[-1]
    for temperature in tiny_digits.loss.temperatures:
        for kind in ("noise_floor", "half_cosine", "positive_neighbors", "one_hot_share", "flat_share", "positive_share"):
            assert f"{kind}/sample/{temperature:g}" in line
    assert {"diversity/sample", "least_diversity/sample", "remoteness/sample"} <= line.keys()
    parts = {name.partition("/")[2] for name in line if name.startswith("gradient_norm/")}
    assert parts == {"hidden", "shifts", "output"}
    assert {name.partition("/")[2] for name in line if name.startswith("weight_change/")} == parts
    assert line["positive_count/sample"] == tiny_digits.schedule.positives


def test_figures_change_no_bit_of_a_training(tiny_digits, tmp_path):
    folders = [tmp_path / name for name in ("seldom", "often")]
    for folder, every in zip(folders, (100, 1), strict=True):
        trained(adjust(tiny_digits, statistics_every=every), folder)
    first, second = ((folder / "generator.safetensors").read_bytes() for folder in folders)
    assert first == second


def test_fault_is_said_during_the_training_and_in_the_end_and_found_in_the_folder(tiny_toy, tmp_path, capsys):
    trained(adjust(tiny_toy, temperatures=(1e-6,), generated=16, positives=16, **FIGURES), tmp_path / "run")
    said = capsys.readouterr().out.splitlines()
    during = [line for line in said if line.startswith("step ") and "temperatures too small" in line]
    assert len(during) == 1
    assert "The training has 1 fault." in said
    (finding,) = examine(tmp_path / "run").faults
    assert f"- {finding}" in said
    assert "--temperatures" in finding.fix


def test_unfinished_run_is_judged_so_far(tiny_toy, tmp_path):
    trained(adjust(tiny_toy, **FIGURES), tmp_path / "run")
    (tmp_path / "run" / "generator.safetensors").unlink()
    found = examine(tmp_path / "run")
    assert "unfinished, its log ends at step 6 of 6" in found.unknown[-1]
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert "its log ends at step 0 of 6" in examine(tmp_path / "run").unknown[-1]


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        examine(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no config\.json"):
        examine(tmp_path)


def test_responses_of_an_encoder_are_logged_once(color_folder, tmp_path):
    log = trained(adjust(shrunk(preset("images", data=str(color_folder))), **FIGURES), tmp_path / "run")
    named = [{name for name in line if name.startswith("response/")} for line in log]
    assert {name.split("/")[1] for name in named[0]} == {"shuffled", "recolored"}
    assert not any(named[1:])


def test_command_prints_the_verdict_and_its_status_tells_faults(toy_run, tmp_path, command):
    healthy = command("doctor", str(toy_run))
    assert (healthy.status, healthy.err) == (0, "")
    assert healthy.out.startswith(("The training is healthy.", "Nothing is wrong"))
    sick = shutil.copytree(toy_run, tmp_path / "sick")
    lines = [{"step": number, "drift_norm/sample/0.1": 0.0} for number in (100, 200, 300)]
    (sick / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = command("doctor", str(sick))
    assert (found.status, found.err) == (1, "")
    assert "no drift" in found.out
    assert command("doctor", str(tmp_path / "nowhere")).status == 2


# Short forms of runs of benchmarks/doctor.py: settings, and the fault that was seen to pass without a word.
_DIGITS = {"steps": 100, "warmup_steps": 10, "generated": 16, "positives": 16, "generator.width": 64, "statistics_every": 20}
RUNS = {
    "healthy": ({"learning_rate": 2e-3}, None),
    "temperatures 1e-6": ({"temperatures": (1e-6,)}, "temperatures too small"),
    "temperatures 1e4": ({"temperatures": (1e4,)}, "temperatures too large"),
    "learning rate 0.5": ({"learning_rate": 0.5}, "learning rate too high"),
    "batch 8": ({"generated": 8, "positives": 8}, "too few positives"),
}


@pytest.mark.parametrize(("changes", "fault"), RUNS.values(), ids=list(RUNS))
def test_short_run_with_a_fault_is_told_from_a_healthy_one(changes, fault, tmp_path):
    config = adjust(preset("digits"), **{**_DIGITS, "log_every": 20, "snapshots": 1, "snapshot_samples": 50, **changes})
    trained(config, tmp_path / "run")
    assert [finding.name for finding in examine(tmp_path / "run").faults] == ([] if fault is None else [fault])
