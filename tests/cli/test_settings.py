"""Every setting of what is trained is a flag: under its dotted name, the common ones under a short one too."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from drifting.config import to_json
from drifting.presets import GROUPS, PRESETS, adjust, preset
from drifting.presets.settings import settings
from tests.support.small_runs import shrunk

pytestmark = pytest.mark.usefixtures("small_presets", "no_pictures")


def _config(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def _flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text))


def _headings(text: str) -> list[str]:
    return re.findall(r"^ (\S.*) options *\n -+ *$", text, re.M)


# Flags -> where they are in the configuration -> the value there.
TOY = {
    "--generator.noise-dim 5": ("generator", "noise_dim", 5),
    "--generator.width=24": ("generator", "width", 24),
    "--loss.temperatures 0.2 0.5": ("loss", "temperatures", [0.2, 0.5]),
    "--temperatures 0.7": ("loss", "temperatures", [0.7]),
    "--loss.normalize-drift False": ("loss", "normalize_drift", False),
    "--loss.field mean-shift --loss.field.kernel gaussian": ("loss", "field", "kernel", "gaussian"),
    "--schedule.warmup-steps 3": ("schedule", "warmup_steps", 3),
    "--schedule.warmup_steps 1": ("schedule", "warmup_steps", 1),
    "--schedule.betas 0.5 0.6": ("schedule", "betas", [0.5, 0.6]),
    "--schedule.decay-after None": ("schedule", "decay_after", None),
    "--schedule.max-grad-norm 0.5": ("schedule", "max_grad_norm", 0.5),
    "--schedule.steps 2": ("schedule", "steps", 2),
    "--drift_steps 2": ("schedule", "steps", 2),
    "--data.dataset circles": ("data", "dataset", "circles"),
    "--log-every 3": ("log_every", 3),
    "--snapshot-samples 41": ("snapshot_samples", 41),
    # Names of version 0.1.
    "--frame-samples 41": ("snapshot_samples", 41),
    "--frame_samples=41": ("snapshot_samples", 41),
    "--schedule.micro-batch 5": ("schedule", "microbatch_size", 5),
}


@pytest.mark.parametrize("flags", TOY)
def test_setting_of_a_toy_reaches_its_run_and_nothing_else_changes(here, command, flags):
    *path, value = TOY[flags]
    # Circles have settings of their own.
    config = shrunk(preset("toy", dataset="circles" if "circles" in flags else "moons"))
    expected = to_json(adjust(config, steps=2 if path[-1] == "steps" else 1))
    part = expected
    for name in path[:-1]:
        part = part[name]
    assert path[-1] in part
    part[path[-1]] = value
    more = [] if path[-1] == "steps" else ["--steps", 1]
    assert command("train", *flags.split(), *more, "--save-dir", "x", "toy", "--keep", 2).status == 0
    assert _config(here / "x") == json.loads(json.dumps(expected))


def test_field_and_the_field_inside_of_it_are_chosen_by_their_names(here, command):
    flags = "--loss.field.field sinkhorn --loss.field lookahead --loss.field.field.iterations 3 --loss.field.lookahead-steps 2"
    assert command("train", "toy", *flags.split(), "--steps", 1, "--save-dir", "x").status == 0
    sinkhorn = {"type": "Sinkhorn", "iterations": 3, "tolerance": 0.01, "mask_self": True}
    ahead = {"lookahead_steps": 2, "weight": 1.0, "shared_moves": False}
    assert _config(here / "x")["loss"]["field"] == {"type": "Lookahead", "field": sinkhorn, **ahead}
    shown = _flags(command("train", "toy", "--loss.field", "sinkhorn", "--help").out)
    assert {"--loss.field", "--loss.field.tolerance"} <= shown
    assert not {"--loss.field.affinity-floor", "--loss.field.field"} & shown
    refused = command("train", "toy", "--loss.field", "sinkhron")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "did you mean sinkhorn?" in refused.err


@pytest.mark.parametrize("flag", ["--schedule.labels-per-microbatch", "--schedule.labels-per-pass"])
def test_value_that_does_not_fit_a_flag_with_a_former_name_ends_in_a_sentence(here, command, flag):
    ended = command("train", "cifar10-simclr", flag, "x", "--save-dir", "x")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "labels_per_microbatch is 'x': pass a whole number" in ended.err


def test_former_name_of_the_extractor_is_read(here, command):
    ended = command("evaluate", "nowhere", "--judge", "pixels")
    assert ended.status == 2
    assert "run is 'nowhere'" in ended.err


def test_former_names_are_not_shown(command):
    shown = _flags(command("train", "toy", "--help").out) | _flags(command("evaluate", "--help").out)
    assert {"--snapshot-samples", "--extractor"} <= shown
    assert not {"--frames", "--frame-samples", "--schedule.micro-batch", "--judge"} & shown


def test_settings_of_every_part_of_a_run_of_images(here, command, gray_folder):
    flags = "--encoder.width 5 --encoder-steps 3 --encoder.batch-size 9 --encoder.features code stage1_mean --generator.code-dim 6"
    flags += " --loss.temperatures 0.3 --schedule.labels-per-step 2 --batch-size 8 --data.channels 1 --seed 7"
    assert command("train", "images", "--data", gray_folder, "--save-dir", "x", "--steps", 1, *flags.split()).status == 0
    config = _config(here / "x")
    assert config["encoder"]["features"] == ["code", "stage1_mean"]
    assert [config["encoder"][name] for name in ("width", "steps", "batch_size")] == [5, 3, 9]
    assert [config["schedule"][name] for name in ("steps", "labels_per_step", "generated")] == [1, 2, 4]
    assert (config["generator"]["code_dim"], config["loss"]["temperatures"]) == (6, [0.3])
    assert (config["data"]["channels"], config["seed"], config["data"]["num_classes"]) == (1, 7, 3)


def test_settings_of_a_bank_of_a_recipe(here, command):
    flags = "--bank.push-per-step 3 --bank.capacity-per-class 5 --encoder.every 1 --generator.num-styles 2 --steps 1"
    assert command("train", "imagenet256-ablation", "--smoke", "--save-dir", "x", *flags.split()).status == 0
    config = _config(here / "x")
    assert (config["bank"]["push_per_step"], config["bank"]["capacity_per_class"]) == (3, 5)
    assert (config["encoder"]["every"], config["generator"]["num_styles"]) == (1, 2)


def test_settings_of_a_classifier_and_of_an_encoder(here, command, gray_folder):
    train = ("--data", gray_folder, "--steps", 1, "--batch-size", 5, "--save-dir")
    assert command("train", "mnist-classifier", *train, "a", "--shift", 1, "--label-smoothing", 0.1).status == 0
    assert command("train-encoder", "mae", *train, "b", "--width", 9, "--encoder.weight-decay", 0.5, "--log", 3).status == 2
    assert (
        command("train-encoder", "mae", *train, "b", "--width", 9, "--encoder.weight-decay", 0.5, "--betas", 0.1, 0.2).status == 0
    )
    assert [_config(here / "a")[name] for name in ("steps", "shift", "label_smoothing")] == [1, 1, 0.1]
    assert [_config(here / "b")["encoder"][name] for name in ("width", "weight_decay", "betas")] == [9, 0.5, [0.1, 0.2]]


@pytest.mark.parametrize(
    "name",
    ["toy", "digits", "mnist-encoder", "cifar10-simclr", "images", "imagenet256-pixel-b", "mae-latent-256", "mnist-classifier"],
)
def test_help_of_a_preset_shows_its_own_values_under_headings(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    result = command("train", name, "--help")
    assert result.status == 0
    config = preset(name, **({"data": "nowhere"} if name == "images" else {}))
    lines = result.out.splitlines()
    for setting in settings(config):
        flag = f"--{setting.name}".replace("_", "-")
        if setting.name == "data.conditional" and "--unconditional" in result.out:
            continue
        start = next(index for index, line in enumerate(lines) if flag in re.split(r"[ ,│]+", line))
        value = setting.value
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        below = "".join(lines[start : start + 6]).replace("│", " ")
        if flag != "--data.path":
            assert f"(default: {shown})" in " ".join(below.split()), setting.name
    parts = {"data": "Data", "generator": "Generator", "encoder": "Feature encoder", "loss": "Loss", "schedule": "Schedule"}
    there = ["Run", *(title for part, title in parts.items() if f"--{part}." in result.out)]
    assert _headings(result.out) == there + (["Memory bank"] if "imagenet256" in name else [])
    assert {"--save-dir", "--data.num-classes"} & _flags(result.out) == {"--save-dir"}


def test_help_of_training_lists_the_presets_in_their_groups(command):
    result = command("train", "--help")
    lines = result.out.splitlines()
    assert result.status == 0
    assert [line for line in lines if line in GROUPS] == list(GROUPS)
    assert [found[1] for line in lines if (found := re.match(r"  ([\w-]+): ", line)) and found[1] in PRESETS] == list(PRESETS)
    assert "drifting train PRESET --help" in " ".join(result.out.split())


@pytest.mark.parametrize("kind", ["supervised", "simclr", "mae"])
def test_help_of_an_encoder_shows_its_settings(command, kind):
    result = command("train-encoder", kind, "--help")
    assert result.status == 0
    assert {"--width", "--encoder.width", "--steps", "--data", "--seed", "--save-dir"} <= _flags(result.out)
    assert ("--temperature" in _flags(result.out)) == (kind == "simclr")


WRONG = {
    "train digits --encoder.width 3": "option '--encoder.width' does not exist: did you mean --generator.width?",
    "train mnist-encoder --encoder.widht 3": "option '--encoder.widht' does not exist: did you mean --encoder.width?",
    "train mnist-encoder --width 3": "option '--width' does not exist: did you mean --generator.width or --encoder.width?",
    "train toy --schedule.warmup-step 3": "option '--schedule.warmup-step' does not exist: did you mean --schedule.warmup-steps?",
    "train cifar10-simclr --data.num-classes 3": "option '--data.num-classes' does not exist",
    "train cifar10-simclr --data.image-shape 3 3 3": "option '--data.image-shape' does not exist",
    "train toy --generator.width many": "generator.width is 'many': pass a whole number",
    "train toy --generator.width 1.5": "generator.width is '1.5': pass a whole number",
    "train toy --generator.gain x": "generator.gain is 'x': pass a number",
    "train toy --loss.temperatures 0.1 x": "loss.temperatures is '0.1 x': pass a number",
    "train toy --loss.normalize-drift maybe": "loss.normalize_drift is 'maybe': pass False or True",
    "train toy --schedule.betas 0.1": "schedule.betas has too few values: name 2 after --schedule.betas",
    "train toy --schedule.decay-after x": "schedule.decay_after is 'x': pass a whole number",
    "train toy --schedule.decay-after 0": "decay_after is 0: pass at least 1",
    "train mnist-encoder --encoder.steps 0": "encoder.steps is 0: pass at least 1",
    "train toy --schedule.noise sobl": "noise is 'sobl', not independent or sobol: did you mean sobol?",
    "train mnist-pixel --encoder-weights x": "encoder_weights is 'x'",
    "train --save-dir toy --steps 3": "preset is missing: see drifting train --help",
    "train --config nowhere.json": "save_dir is missing: pass --save-dir",
    "train --config nowhere.json --save-dir x": "config is 'nowhere.json', where there is none: name the config.json of a run",
    "train toy --config nowhere.json": "config is 'nowhere.json', but the preset 'toy' is named too: leave one of them out",
    "train --config nowhere.json --save-dir x --resume": "config is 'nowhere.json', which starts a run anew: leave out --resume",
    "train-encoder --width 3": "kind is missing: see drifting train-encoder --help",
    "train-encoder simclr --crop x": "crop is 'x': pass a number",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_setting_that_does_not_fit_is_one_sentence(here, command, arguments):
    result = command(*arguments.split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"drifting: {WRONG[arguments]}")
    assert result.err.count("\n") == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("place", ["", "/config.json"])
def test_saved_configuration_is_trained_again(here, command, toy_run, assert_same_tensors, place):
    from drifting.checkpoint import load_tensors

    assert command("train", "--config", f"{toy_run}{place}", "--save-dir", "again").status == 0
    assert _config(here / "again") == _config(toy_run)
    assert_same_tensors(*(load_tensors(folder / "generator.safetensors") for folder in (toy_run, here / "again")))


def test_saved_configuration_is_trained_with_flags_on_top(here, command, images_run, color_folder):
    flags = ("--steps", 2, "--generator.width", 8, "--data", color_folder)
    assert command("train", "--config", images_run, "--save-dir", "again", *flags).status == 0
    before, after = _config(images_run), _config(here / "again")
    assert (after["schedule"]["steps"], after["generator"]["width"]) == (2, 8)
    assert (after["data"]["path"], after["data"]["image_shape"]) == (str(color_folder), [3, 16, 16])
    assert after["data"]["fingerprint"] != before["data"]["fingerprint"]
    assert after["encoder"] == before["encoder"]


def test_run_that_goes_on_keeps_its_settings(here, command, toy_run):
    shutil.copytree(toy_run, "x")
    resume = ("train", "toy", "--save-dir", "x", "--resume")
    for flags in (["--generator.width", 17], ["--schedule.warmup-steps", 4], ["--loss.normalize-drift", "False"]):
        result = command(*resume, *flags)
        assert result.status == 2
        assert f"{flags[0][2:].replace('-', '_')} is {flags[1]}, but the run to resume has" in result.err
    assert command(*resume, "--generator.width", 16, "--schedule.steps", 8, "--schedule.microbatch-size", 4).status == 0
    assert _config(here / "x")["schedule"]["steps"] == 8


def test_help_is_shown_before_torch_is_loaded():
    code = "import sys; from drifting.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ, timeout=60)
    assert result.stdout.splitlines()[-1] == "False"
