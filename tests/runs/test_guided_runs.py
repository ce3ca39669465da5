"""Runs whose guidance scale is drawn, that train in microbatches, or that keep several averages: train, sample, evaluate."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting import presets, runs
from drifting.checkpoint import checkpoints, load_tensors
from drifting.errors import InputError
from tests.support.small_runs import shrunk

pytestmark = pytest.mark.usefixtures("no_pictures", "small_presets")

DRAWN = {"guidance_exponent": 1.0, "highest_guidance_scale": 3.0, "guidance_scale": 1.5, "unconditional": 8}


def _with(config, **schedule):
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, **schedule))


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def guided_run(tmp_path_factory) -> Path:
    """The folder of a run of digits whose guidance scale was drawn."""
    config = _with(shrunk(presets.preset("digits")), **DRAWN, learning_rate=0.03, ema_decay=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drifting.runs.pictures.draw_pictures", lambda config, folder, **_: [])
        return runs.train(config, tmp_path_factory.mktemp("runs") / "guided").folder


def test_scale_of_the_samples_is_that_asked_for(guided_run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {}
    for scale in (None, 1, 1.5, 3):
        asked = [] if scale is None else ["--guidance-scale", scale]
        assert command("sample", guided_run, "--num-samples", 10, *asked, "--out", f"{scale}.npy").status == 0
        images[scale] = np.load(f"{scale}.npy")
    assert np.array_equal(images[None], images[1.5])
    for other in (1, 3):
        assert not np.array_equal(images[other], images[1.5])
    assert np.array_equal(images[3], runs.load(guided_run).sample(10, guidance_scale=3).numpy())


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
@pytest.mark.parametrize(("scale", "fix"), [("0.9", "pass a number from 1"), ("3.1", "trained up to 3: pass a number from 1 to 3")])
def test_scale_that_was_not_trained_is_refused(guided_run, command, tmp_path, monkeypatch, verb, scale, fix):
    monkeypatch.chdir(tmp_path)
    result = command(verb, guided_run, "--guidance-scale", scale)
    assert result.status == 2
    assert re.fullmatch(rf"drifting: guidance_scale is {scale}[^\n]*\n", result.err)
    assert fix in result.err


def test_evaluation_is_at_the_scale_that_it_tells(guided_run, command, tmp_path):
    folder = shutil.copytree(guided_run, tmp_path / "run")
    figures = {}
    for asked in ([], ["--guidance-scale", 3]):
        result = command("evaluate", folder, *asked)
        assert "guidance_scale" in result.out
        metrics = json.loads((folder / "metrics.json").read_text())
        figures[metrics["guidance_scale"]] = metrics["energy_distance"]
    assert figures.keys() == {1.5, 3}
    assert figures[1.5] != figures[3]


@pytest.mark.filterwarnings("ignore:9 samples of 64 features")
def test_evaluation_of_images_is_at_the_scale_that_is_asked_for(tiny_images, tmp_path):
    config = _with(tiny_images, **{**DRAWN, "guidance_scale": 1.0}, learning_rate=0.03, ema_decay=0.0)
    run = runs.train(config, tmp_path / "run")
    distances = {
        scale: run.evaluate(extractor="pixels", count=60, guidance_scale=scale)["frechet_distance"] for scale in (None, 1.0, 3.0)
    }
    assert distances[None] == distances[1.0]
    assert distances[3.0] != distances[1.0]


def test_guided_run_resumes_to_the_same(tiny_digits, tmp_path, assert_same_tensors):
    config = _with(tiny_digits, **DRAWN, unguided_prob=0.3)
    whole = runs.train(config, tmp_path / "whole").folder
    runs.train(presets.adjust(config, steps=3), tmp_path / "halves")
    halves = runs.train(config, tmp_path / "halves", resume=True).folder
    assert_same_tensors(*(load_tensors(folder / "generator.safetensors") for folder in (whole, halves)))


def test_microbatches_are_a_flag_and_change_nothing_else(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", "digits", "--save-dir", "whole").status == 0
    assert command("train", "digits", "--save-dir", "parts", "--microbatch-size", 7).status == 0
    whole, parts = (load_tensors(Path(name) / "generator.safetensors") for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)
    assert json.loads(Path("parts/config.json").read_text())["schedule"]["microbatch_size"] == 7
    assert _lines(Path("parts"))[-1]["stored_feature_bytes"] == 2 * 40 * 64 * 4
    assert "stored_feature_bytes" not in _lines(Path("whole"))[-1]


def test_last_line_tells_speed_and_memory(tiny_digits, tmp_path):
    *others, last = _lines(runs.train(tiny_digits, tmp_path / "run").folder)
    for name in ("mean_steps_per_second", "samples_per_second", "peak_memory_bytes"):
        assert last[name] > 0
        assert not any(name in line for line in others)
    assert math.isclose(last["samples_per_second"], 40 * last["mean_steps_per_second"])


def test_best_average_is_the_generator(tiny_toy, tmp_path, assert_same_tensors):
    config = _with(tiny_toy, other_ema_decays=(0.0, 0.3), learning_rate=0.002)
    run = runs.train(config, tmp_path / "run")
    last = _lines(run.folder)[-1]
    distances = {decay: last[f"energy_distance/ema-{decay}"] for decay in (0.9, 0.0, 0.3)}
    assert last["ema_decay"] == min(distances, key=distances.get) != 0.9
    assert last["energy_distance"] == min(distances.values())
    prefix = f"average-{last['ema_decay']}.module."
    state = load_tensors(checkpoints(run.folder / "checkpoints")[-1] / "state.safetensors")
    kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    assert_same_tensors(load_tensors(run.folder / "generator.safetensors"), kept)
    assert_same_tensors(runs.train(config, run.folder, resume=True).generator.state_dict(), kept)


def test_averages_of_a_run_are_not_changed_on_resume(tiny_toy, tmp_path):
    runs.train(tiny_toy, tmp_path / "run")
    with pytest.raises(InputError, match="other_ema_decays"):
        runs.train(_with(tiny_toy, other_ema_decays=(0.5,)), tmp_path / "run", resume=True)
