import dataclasses
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting import presets, runs
from drifting._progress import TrainingProgress
from drifting.checkpoint import checkpoints, load_tensors
from drifting.errors import InputError
from drifting.loss import DriftingLoss
from drifting.runs import Interrupted, pictures
from drifting.runs.pictures import draw_pictures
from drifting.training.state import DivergenceError
from tests.support.small_runs import CENTER, SCALE

pytestmark = pytest.mark.usefixtures("no_pictures")
RESOURCES = ("steps_per_second", "mean_steps_per_second", "samples_per_second", "peak_memory_bytes")


def _lines(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in RESOURCES} for line in lines]


def _steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(folder / "checkpoints")]


@pytest.fixture
def assert_same_run(assert_same_tensors) -> Callable[[Path, Path], None]:
    def check(first: Path, second: Path) -> None:
        names = ("generator.safetensors", "snapshots.safetensors", "checkpoints/step-00000006/state.safetensors")
        for name in names:
            assert_same_tensors(load_tensors(first / name), load_tensors(second / name))
        assert _lines(first) == _lines(second)
        assert (first / "config.json").read_text() == (second / "config.json").read_text()

    return check


@pytest.fixture
def at_step(monkeypatch) -> Callable[[int, Callable], None]:
    """Do something once after a step of training."""

    def arrange(number: int, act: Callable[[], object]) -> None:
        advance, done = TrainingProgress.advance, []

        def acting(self, step, figure=None):
            if step == number and not done:
                done.append(step)
                act()
            advance(self, step, figure)

        monkeypatch.setattr(TrainingProgress, "advance", acting)

    return arrange


def _crash() -> None:
    raise OSError("power cut")


def _signal(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("kind", ["tiny_toy", "tiny_digits"])
def test_run_resumed_after_a_crash_equals_the_uninterrupted_one(kind, request, tmp_path, at_step, assert_same_run):
    config = request.getfixturevalue(kind)
    whole = runs.train(config, tmp_path / "whole").folder
    at_step(5, _crash)
    with pytest.raises(OSError, match="power cut"):
        runs.train(config, tmp_path / "halves")
    assert _steps(tmp_path / "halves") == [2, 4]
    assert_same_run(runs.train(config, tmp_path / "halves", resume=True).folder, whole)


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGINT), (4, signal.SIGINT), (4, signal.SIGTERM)])
def test_run_resumed_after_a_signal_equals_the_uninterrupted_one(tiny_toy, tmp_path, at_step, assert_same_run, number, step):
    whole = runs.train(tiny_toy, tmp_path / "whole").folder
    before = signal.getsignal(number)
    at_step(step, _signal(number))
    with pytest.raises(Interrupted) as caught:
        runs.train(tiny_toy, tmp_path / "halves")
    fix = f"Go on with: drifting train toy --save-dir {tmp_path / 'halves'} --resume"
    assert str(caught.value) == f"Stopped at step {step} of 6; everything is saved. {fix}"
    assert _steps(tmp_path / "halves")[-1] == step
    assert signal.getsignal(number) == before
    assert_same_run(runs.train(tiny_toy, tmp_path / "halves", resume=True).folder, whole)


def test_stopped_run_that_is_to_go_no_further_ends_in_a_snapshot_of_its_last_step(tiny_toy, tmp_path, at_step):
    at_step(5, _signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        runs.train(tiny_toy, tmp_path / "run")
    assert max(load_tensors(tmp_path / "run" / "snapshots.safetensors"), key=int) != "5"
    run = runs.train(presets.adjust(tiny_toy, steps=5), tmp_path / "run", resume=True)
    assert max(run.snapshots()) == 5


def test_signal_at_the_last_step_finishes_the_run(tiny_toy, tmp_path, at_step):
    at_step(6, _signal(signal.SIGINT))
    runs.train(tiny_toy, tmp_path / "run")
    assert (tmp_path / "run" / "generator.safetensors").exists()


def test_longer_run_goes_on_from_a_shorter_one_after_pruning(tiny_toy, tmp_path, assert_same_tensors):
    config = presets.adjust(tiny_toy, keep=1)
    whole = runs.train(config, tmp_path / "whole").folder
    runs.train(presets.adjust(config, steps=3), tmp_path / "halves")
    assert _steps(tmp_path / "halves") == [3]
    halves = runs.train(config, tmp_path / "halves", resume=True).folder
    assert _steps(halves) == [6]
    for name in ("generator.safetensors", "checkpoints/step-00000006/state.safetensors"):
        assert_same_tensors(load_tensors(halves / name), load_tensors(whole / name))


def test_fewer_steps_than_were_done_are_refused_on_resume(toy_copy, tiny_toy):
    before = {path: path.read_bytes() for path in toy_copy.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="steps is 2, but the run to resume has done 6: pass at least as many"):
        runs.train(presets.adjust(tiny_toy, steps=2), toy_copy, resume=True)
    assert {path: path.read_bytes() for path in toy_copy.rglob("*") if path.is_file()} == before


def test_finished_run_resumes_to_itself(toy_copy, toy_run, tiny_toy, assert_same_run):
    assert_same_run(runs.train(tiny_toy, toy_copy, resume=True).folder, toy_run)


def test_figures_of_a_run_that_is_trained_further_are_forgotten(toy_copy, tiny_toy):
    (toy_copy / "metrics.json").write_text('{"energy_distance": 1.0}')
    runs.train(tiny_toy, toy_copy, resume=True)
    assert (toy_copy / "metrics.json").exists()
    runs.train(presets.adjust(tiny_toy, steps=8), toy_copy, resume=True)
    assert not (toy_copy / "metrics.json").exists()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_newest_checkpoints_are_kept(tiny_toy, tmp_path, keep):
    runs.train(presets.adjust(tiny_toy, keep=keep), tmp_path / "run")
    assert _steps(tmp_path / "run") == [2, 4, 6][-keep:]


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.5}, {"temperatures": (0.3,)}, {"batch_size": 16}])
def test_resumed_run_may_not_differ_in_what_it_learns(toy_copy, tiny_toy, change):
    before = (toy_copy / "config.json").read_text()
    changed = "generated" if "batch_size" in change else next(iter(change))
    free = (
        "only steps, microbatch_size, labels_per_microbatch, compile, gradient_checkpointing, parallel, device and keep may change"
    )
    with pytest.raises(InputError, match=rf"{changed} is .*, but the run to resume has .*: {free}"):
        runs.train(presets.adjust(tiny_toy, **change), toy_copy, resume=True)
    assert (toy_copy / "config.json").read_text() == before


def test_folder_with_a_run_is_refused_and_left_alone(toy_copy, tiny_toy):
    before = {path: path.read_bytes() for path in toy_copy.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already holds a run: pass --resume or --overwrite"):
        runs.train(tiny_toy, toy_copy)
    assert {path: path.read_bytes() for path in toy_copy.rglob("*") if path.is_file()} == before


def test_overwriting_starts_afresh(toy_copy, tiny_toy, tmp_path, assert_same_run):
    config = presets.adjust(tiny_toy, seed=3)
    assert_same_run(runs.train(config, toy_copy, overwrite=True).folder, runs.train(config, tmp_path / "fresh").folder)


def test_overwriting_keeps_files_that_are_not_of_the_run(toy_copy, tiny_toy):
    own = [toy_copy / name for name in ("notes.txt", "holiday.png", "deep/picture.png")]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    runs.train(tiny_toy, toy_copy, overwrite=True)
    assert [path.name for path in own if not path.exists()] == []


def test_folder_with_pictures_of_others_is_not_taken_for_a_run(tiny_toy, tmp_path):
    (tmp_path / "holiday.png").touch()
    runs.train(tiny_toy, tmp_path)
    assert (tmp_path / "config.json").exists()


def _poison(monkeypatch, call: int) -> None:
    """Make the generated samples of one step NaN."""
    forward, calls = DriftingLoss.forward, []

    def poisoned(self, generated, *rest, **more):
        calls.append(None)
        factor = float("nan") if len(calls) == call else 1.0
        return forward(self, {name: value * factor for name, value in generated.items()}, *rest, **more)

    monkeypatch.setattr(DriftingLoss, "forward", poisoned)


def test_nan_stops_the_run_with_its_place_and_keeps_the_last_good_checkpoint(tiny_toy, tmp_path, monkeypatch, assert_same_run):
    whole = runs.train(tiny_toy, tmp_path / "whole").folder
    temperature = f"{min(tiny_toy.loss.temperatures):g}"
    where = re.escape(f"at step 5, in feature 'sample' at temperature {temperature}: lower the learning rate")
    with monkeypatch.context() as patch:
        _poison(patch, call=5)
        with pytest.raises(DivergenceError, match=where):
            runs.train(tiny_toy, tmp_path / "run")
    assert _steps(tmp_path / "run") == [2, 4]
    assert not (tmp_path / "run" / "generator.safetensors").exists()
    assert [line["step"] for line in _lines(tmp_path / "run")] == [2, 4]
    state = load_tensors(checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.safetensors")
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert_same_run(runs.train(tiny_toy, tmp_path / "run", resume=True).folder, whole)


def test_run_is_loaded_from_config_and_weights_alone(toy_run, tmp_path):
    for name in ("config.json", "generator.safetensors"):
        shutil.copy(toy_run / name, tmp_path / name)
    assert torch.equal(runs.load(tmp_path).sample(5), runs.load(toy_run).sample(5))


def test_loaded_run_holds_the_averaged_weights(toy_run, assert_same_tensors):
    state = load_tensors(checkpoints(toy_run / "checkpoints")[-1] / "state.safetensors")
    prefix = "average.module."
    average = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    assert_same_tensors(runs.load(toy_run).generator.state_dict(), average)


def test_trained_run_and_loaded_run_sample_alike(tiny_digits, tmp_path):
    run = runs.train(tiny_digits, tmp_path / "run")
    assert torch.equal(run.sample(12, seed=3), runs.load(tmp_path / "run").sample(12, seed=3))
    assert run.generator.training is False


def test_weights_of_another_run_are_refused(toy_copy, digits_run):
    shutil.copy(digits_run / "generator.safetensors", toy_copy)
    with pytest.raises(InputError, match="do not fit the configuration"):
        runs.load(toy_copy)


def test_digits_are_sampled_as_bytes(digits_run):
    images = runs.load(digits_run).sample(7)
    assert images.shape == (7, 8, 8, 1)
    assert images.dtype == torch.uint8


def test_own_points_are_sampled_in_their_own_coordinates(points_run, own_points):
    samples = runs.load(points_run).sample(500).numpy()
    real = np.load(own_points)
    assert samples.dtype == np.float64
    assert np.abs(samples.mean(0) - real.mean(0)).max() < 0.5 * SCALE
    assert np.abs(samples - np.array(CENTER)).max() < 4 * SCALE
    assert 0.3 < samples.std() / real.std() < 1.7


def test_points_far_from_the_origin_are_sampled_and_drawn_with_their_digits(tiny_toy, tmp_path, own_points, monkeypatch):
    # Moments of some 20 seconds, in seconds since 1970: float32 has one number for all of them.
    times = 1.7e9 + 20 * (np.load(own_points) - np.array(CENTER)) / SCALE
    np.save(tmp_path / "times.npy", times)
    drawn = {}
    monkeypatch.setattr(pictures, "draw_points", lambda folder, **given: drawn.update(given) or [])
    run = runs.train(
        dataclasses.replace(tiny_toy, data=presets.preset("toy", data=str(tmp_path / "times.npy")).data), tmp_path / "run"
    )
    samples = run.sample(500)
    runs.write_samples(run, tmp_path / "s.npy", 500)
    draw_pictures(run.config, tmp_path, snapshots=run.snapshots(), log=[])
    assert np.array_equal(np.load(tmp_path / "s.npy"), samples.numpy())
    for points in (samples, drawn["real"], *drawn["snapshots"].values()):
        assert points.dtype == torch.float64
        assert len(points.unique(dim=0)) > 0.9 * min(len(points), len(times))
        assert float((points - times.mean()).abs().max()) < 200
    places = torch.from_numpy(times[:9])
    last = drawn["snapshots"][max(drawn["snapshots"])]
    assert len(drawn["drift"](places, last).unique(dim=0)) == 9


def test_own_points_are_sampled_without_their_file(tiny_toy, tmp_path, own_points):
    copy = Path(shutil.copy(own_points, tmp_path / "points.npy"))
    config = dataclasses.replace(tiny_toy, data=presets.preset("toy", data=str(copy)).data)
    runs.train(config, tmp_path / "run")
    copy.unlink()
    assert runs.load(tmp_path / "run").sample(3).shape == (3, 2)


def test_checkpoint_carries_the_whole_configuration(toy_run):
    facts = json.loads((checkpoints(toy_run / "checkpoints")[-1] / "state.json").read_text())
    assert facts == json.loads((toy_run / "config.json").read_text())


@pytest.mark.parametrize(
    ("count", "labels", "num_classes", "columns"),
    [
        (64, (3, 7), 10, 8),
        (64, (95, 22, 88), 1000, 9),
        (6, (1, 2, 3), 10, 3),
        (4, (5,), 10, 2),
        (64, None, 10, 10),
        (64, None, 1000, 10),
    ],
)
def test_pictures_are_about_square_and_their_columns_of_one_label(count, labels, num_classes, columns):
    assert runs.samples._columns(count, labels, num_classes) == columns
    assert columns % len(labels or [1]) == 0
