import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import __version__, runs
from drifting._progress import TrainingProgress
from drifting.checkpoint import checkpoints, load_tensors
from drifting.presets import GROUPS, PRESETS
from drifting.runs import pictures as drawing
from tests.support.small_runs import CENTER, SCALE

small = pytest.mark.usefixtures("small_presets", "no_pictures")


def _schedule(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["schedule"]


@small
@pytest.mark.parametrize("arguments", [["--save-dir", "x", "--steps", "3"], ["--save_dir", "x", "--drift_steps", "3"]])
def test_hyphens_and_underscores_and_both_names_of_the_steps_are_alike(here, command, arguments):
    assert command("train", "toy", *arguments).status == 0
    assert _schedule(here / "x")["steps"] == 3


@small
@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["toy"], "toy"),
        (["digits"], "digits"),
        (["toy", "--dataset", "checker"], "checker"),
        (["toy", "--data", "mine.npy"], "mine"),
    ],
)
def test_run_folder_is_named_after_preset_dataset_or_file(here, command, own_points, arguments, folder):
    np.save("mine.npy", np.load(own_points))
    assert command("train", *arguments, "--steps", 1).status == 0
    assert (here / "runs" / folder / "generator.safetensors").exists()


@small
def test_every_setting_reaches_the_run(here, command):
    settings = "--steps 2 --batch-size 8 --learning-rate 0.01 --temperatures 0.1 0.4 --seed 5 --device cpu --keep 1"
    assert command("train", "toy", "--dataset", "circles", "--save-dir", "x", *settings.split()).status == 0
    config = json.loads((here / "x" / "config.json").read_text())
    assert config["data"]["dataset"] == "circles"
    assert config["loss"]["temperatures"] == [0.1, 0.4]
    assert (config["seed"], config["device"], config["keep"]) == (5, "cpu", 1)
    assert (config["schedule"]["steps"], config["schedule"]["generated"], config["schedule"]["learning_rate"]) == (2, 8, 0.01)


@small
def test_training_shows_its_progress_and_names_the_pictures(here, command, monkeypatch):
    monkeypatch.setattr(drawing, "draw_pictures", lambda config, folder, **_: [folder / "a.png", folder / "b.gif"])
    result = command("train", "toy", "--save-dir", "x")
    assert result.status == 0
    progress, *pictures = result.out.splitlines()
    assert re.match(r"step 6/6 .*steps/s.*drift norm", progress)
    assert pictures == ["x/a.png", "x/b.gif"]
    assert result.err == ""


def test_finished_run_holds_the_promised_files(toy_run, digits_run):
    files = {"config.json", "metrics.jsonl", "generator.safetensors", "snapshots.safetensors", "checkpoints"}
    files |= {"report.html", "environment.jsonl"}
    pictures = {"samples.png", "progress.png", "losses.png", "training.gif"}
    assert {path.name for path in toy_run.iterdir()} == files | pictures | {"drift_field.png"}
    assert {path.name for path in digits_run.iterdir()} == files | pictures | {"comparison.png"}


@small
def test_interrupt_exits_130_and_tells_how_to_go_on(here, command, monkeypatch, assert_same_tensors):
    assert command("train", "toy", "--save-dir", "whole").status == 0
    advance = TrainingProgress.advance

    def interrupting(self, step, figure=None):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        advance(self, step, figure)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "advance", interrupting)
        result = command("train", "toy", "--save-dir", "halves")
    assert result.status == 130
    assert "saved. Go on with: drifting train toy --save-dir halves --resume" in result.err
    arguments = result.err.strip().split("Go on with: drifting ")[1].split()
    assert command(*arguments).status == 0
    assert_same_tensors(*(load_tensors(here / name / "generator.safetensors") for name in ("whole", "halves")))


@small
def test_resuming_with_more_steps_goes_on(here, command):
    assert command("train", "toy", "--save-dir", "x", "--steps", 2).status == 0
    assert command("train", "toy", "--save-dir", "x", "--steps", 4, "--resume").status == 0
    assert checkpoints(here / "x" / "checkpoints")[-1].name == "step-00000004"
    assert _schedule(here / "x")["steps"] == 4


@small
def test_overwriting_replaces_the_run(here, command):
    for arguments in ([], ["--seed", 3, "--overwrite"]):
        assert command("train", "toy", "--save-dir", "x", *arguments).status == 0
    assert json.loads((here / "x" / "config.json").read_text())["seed"] == 3


@small
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried a lot.\nMore words."),
        MemoryError("no more"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
)
def test_running_out_of_memory_names_the_flag_that_lowers_it(here, command, monkeypatch, error):
    def grow(*_, **__):
        raise error

    monkeypatch.setattr(runs, "train", grow)
    result = command("train", "toy", "--save-dir", "x")
    assert result.status == 1
    bounds = "--microbatch-size, --labels-per-microbatch or --gradient-checkpointing True"
    flags = f"pass a smaller --batch-size or, for a generator, {bounds}"
    assert re.fullmatch(rf"drifting: out of memory \(.*\): {flags}\n", result.err)


def test_divergence_exits_1_with_one_line(here, command):
    result = command("train", "toy", "--save-dir", "x", "--learning-rate", "1e30")
    assert result.status == 1
    assert re.fullmatch(
        r"drifting: the loss became NaN or infinite at step \d, in feature 'sample' at temperature .*\n", result.err
    )
    assert not (here / "x" / "generator.safetensors").exists()


def test_toy_samples_are_float32_points(here, command, toy_run):
    assert command("sample", toy_run, "--num-samples", 11, "--out", "s.npy").out == "s.npy\n"
    samples = np.load("s.npy")
    assert (samples.shape, samples.dtype) == ((11, 2), np.float32)
    assert np.array_equal(samples, runs.load(toy_run).sample(11).numpy())


def test_own_points_are_sampled_in_their_own_coordinates(here, command, points_run):
    assert command("sample", points_run, "--out", "s.npy").status == 0
    samples = np.load("s.npy")
    assert (samples.shape, samples.dtype) == ((64, 2), np.float64)
    assert np.abs(samples - np.array(CENTER)).max() < 4 * SCALE


def test_digit_samples_are_uint8_images(here, command, digits_run):
    assert command("sample", digits_run, "--num-samples", 6, "--labels", 3, 7, "--out", "s.npy").status == 0
    images = np.load("s.npy")
    assert (images.shape, images.dtype) == ((6, 8, 8, 1), np.uint8)
    assert np.array_equal(images, runs.load(digits_run).sample(6, labels=[3, 7]).numpy())


@pytest.mark.parametrize("kind", ["toy_run", "digits_run", "points_run", "images_run"])
def test_array_written_in_parts_is_that_of_all_samples_byte_for_byte(here, command, kind, request, monkeypatch):
    folder = request.getfixturevalue(kind)
    monkeypatch.setattr("drifting.sampling.batch_of", lambda shape: 5)
    np.save("whole.npy", runs.load(folder).sample(13, seed=3).numpy())
    made, decoder = [], runs.Run.parts
    monkeypatch.setattr(runs.Run, "parts", lambda *args, **options: (made.append(len(x)) or x for x in decoder(*args, **options)))
    assert command("sample", folder, "--num-samples", 13, "--seed", 3, "--out", "parts.npy").status == 0
    assert made == [5, 5, 3]
    assert (here / "parts.npy").read_bytes() == (here / "whole.npy").read_bytes()


def test_array_that_the_disk_has_no_room_for_is_not_begun(here, command, toy_run, monkeypatch):
    usage = shutil.disk_usage(here)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    result = command("sample", toy_run, "--num-samples", 2_000_000_000, "--out", "s.npy")
    assert result.status == 1
    assert result.err == "drifting: out is '.', where 16,000 MB are needed and 0 MB free: make room, or name another disk\n"
    assert list(here.iterdir()) == []


def test_array_that_is_written_in_part_leaves_nothing(here, command, toy_run, monkeypatch):
    def parts(*_, **__):
        yield torch.zeros(5, 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.Run, "parts", parts)
    result = command("sample", toy_run, "--num-samples", 13, "--out", "s.npy")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "no space left on device" in result.err.lower()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("kind", ["toy_run", "digits_run", "points_run"])
def test_samples_can_be_a_picture(here, command, kind, request):
    assert command("sample", request.getfixturevalue(kind), "--num-samples", 20).out == "samples.png\n"
    with Image.open("samples.png") as picture:
        picture.verify()
        assert min(picture.size) > 60


def test_samples_are_the_same_for_a_seed_and_others_for_another(here, command, toy_run):
    for name, seed in (("a.npy", 4), ("b.npy", 4), ("c.npy", 5)):
        command("sample", toy_run, "--seed", seed, "--out", name)
    first, again, other = (np.load(name) for name in ("a.npy", "b.npy", "c.npy"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_samples_are_replaced_only_when_asked(here, command, toy_run):
    assert command("sample", toy_run, "--out", "new/s.npy").status == 0
    before = (here / "new" / "s.npy").read_bytes()
    assert command("sample", toy_run, "--out", "new/s.npy", "--seed", 1).status == 2
    assert (here / "new" / "s.npy").read_bytes() == before
    assert command("sample", toy_run, "--out", "new/s.npy", "--seed", 1, "--overwrite").status == 0
    assert (here / "new" / "s.npy").read_bytes() != before


def test_sampling_and_evaluating_leave_the_run_as_it_was(here, command, digits_run):
    before = {path: path.stat().st_mtime_ns for path in digits_run.rglob("*") if path.is_file()}
    command("sample", digits_run, "--out", "s.png")
    assert {path: path.stat().st_mtime_ns for path in digits_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["points_run", "digits_run"])
def test_evaluation_prints_a_table_and_writes_it(here, command, kind, request):
    folder = request.getfixturevalue(kind)
    result = command("evaluate", folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").unlink()
    assert result.status == 0
    assert {"energy_distance", "energy_distance_floor"} <= metrics.keys()
    rows = {
        cells[1]: cells[2:4] for line in result.out.splitlines() if len(cells := [part.strip() for part in line.split("│")]) > 3
    }
    assert rows.keys() == {name for name in metrics if not name.endswith("_floor")}
    heads = next([part.strip() for part in line.split("┃")] for line in result.out.splitlines() if "metric" in line)
    assert heads[1:5] == ["metric", "value", "real against real", "better"]
    for name, (value, floor) in rows.items():
        for shown, measured in ((value, metrics[name]), (floor, metrics.get(f"{name}_floor"))):
            assert shown == "" if measured is None else float(shown) == pytest.approx(measured, rel=1e-4)


def test_doubt_about_samples_and_real_data_is_told_once(here, command, points_run):
    result = command("evaluate", points_run, "--num-samples", 3)
    (points_run / "metrics.json").unlink()
    assert result.status == 0
    assert result.err.count("3 points against 3 are too few for precision") == 1


@pytest.mark.parametrize("width", [40, 80, 200])
def test_presets_are_all_listed_in_groups_of_whole_words(command, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    result = command("presets")
    assert result.status == 0
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= width
    assert [line.strip() for line in lines if line and not line.startswith(" ")][-len(GROUPS) :] == list(GROUPS)
    named = [found[1] for line in lines if (found := re.match(r"  (\S+):", line))]
    assert named == list(PRESETS)
    said = " ".join(result.out.split())
    for name, preset in PRESETS.items():
        facts = f"data: {preset.data}; minutes: {preset.minutes}; expected: {preset.expected}"
        assert f"{name}: {preset.what} {facts}" in said


_NAMES = ("[red]x[/red]", "[/bold]", ":smile:", "{task}", "$a$ b$")


@pytest.mark.parametrize("name", _NAMES)
def test_names_of_runs_are_printed_as_they_are(here, command, monkeypatch, toy_run, name):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(runs.Run, "evaluate", lambda self, **_: {"energy_distance": 0.5})
    (here / name.partition("/")[0]).mkdir()
    shutil.copytree(toy_run, here / name, dirs_exist_ok=True)
    result = command("evaluate", name)
    assert (result.status, result.err) == (0, "")
    assert name in result.out


def test_module_can_be_run_and_answers_quickly_when_asked_for_help():
    result = subprocess.run([sys.executable, "-m", "drifting", "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("train", "train-encoder", "sample", "evaluate", "compare", "presets"))


def test_version_is_a_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
