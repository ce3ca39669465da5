"""Trackers: what they receive, and that nothing in them reaches the training."""

import dataclasses
import json
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import presets, runs
from drifting.checkpoint import load_tensors
from drifting.errors import InputError
from drifting.training import Tracking
from drifting.training import tracking as trackers


def _events(folder):
    """Return the figures, the pictures and the texts of an event file, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {name: {event.step: event.value for event in events.Scalars(name)} for name in tags["scalars"]}
    images = {name: {event.step: event for event in events.Images(name)} for name in tags["images"]}
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in tags["tensors"]}
    return scalars, images, texts


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, toy_run):
    """The folder of the toy run, trained again with TensorBoard and resumed."""
    folder = tmp_path_factory.mktemp("tracked") / "toy"
    config = runs.load_run(toy_run).config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.pictures, "draw_pictures", lambda *_, **__: [])
        runs.train(presets.adjust(config, steps=4), folder, track="tensorboard")
        runs.train(config, folder, track="tensorboard", resume=True)
    return folder


def test_tensorboard_receives_figures_snapshots_and_the_configuration(tracked):
    scalars, images, texts = _events(tracked / "tensorboard")
    log = [json.loads(line) for line in (tracked / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "energy_distance"):
        expected = {line["step"]: line[name] for line in log if name in line}
        assert scalars[name] == pytest.approx(expected, rel=1e-6)
    assert {name for line in log for name in line} - {"step"} == scalars.keys()
    steps = set(runs.load_run(tracked).snapshots())
    assert {0, 4, 6} <= steps
    assert images["samples"].keys() == steps
    assert all(event.width > 50 for event in images["samples"].values())
    (text,) = texts.values()
    config = json.loads((tracked / "config.json").read_text())
    first = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    config["schedule"]["steps"] = 4
    assert first == config


def test_tracker_changes_no_result_and_no_configuration(tracked, toy_run, assert_same_tensors):
    assert_same_tensors(load_tensors(tracked / "generator.safetensors"), load_tensors(toy_run / "generator.safetensors"))
    # The first training had fewer steps, and others of them with snapshots.
    both = [load_tensors(folder / "snapshots.safetensors") for folder in (tracked, toy_run)]
    shared = both[0].keys() & both[1].keys()
    assert {"0", "6"} <= shared
    assert_same_tensors(*({name: one[name] for name in shared} for one in both))
    assert (tracked / "config.json").read_text() == (toy_run / "config.json").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_folder_of_a_tracker_is_deleted_with_its_run(tracked, tmp_path):
    import shutil

    folder = shutil.copytree(tracked, tmp_path / "copy")
    runs.train(presets.adjust(runs.load_run(folder).config, steps=2), folder, overwrite=True)
    assert not (folder / "tensorboard").exists()


class _Failing(trackers.Service):
    def __init__(self, after):
        self.after, self.sent, self.shown, self.closed = after, [], [], False

    def send(self, step, values):
        if len(self.sent) == self.after:
            raise OSError("the network is gone")
        self.sent.append((step, dict(values)))

    def show(self, step, picture):
        self.shown.append((step, picture.size))

    def close(self):
        self.closed = True


@pytest.fixture
def service(monkeypatch):
    """Put a service in the place of TensorBoard; it fails after some lines."""

    def put(after=-1):
        made = _Failing(after)
        monkeypatch.setitem(trackers._SERVICES, "tensorboard", lambda folder, configuration: made)
        return made

    return put


@pytest.mark.usefixtures("no_pictures")
def test_tracker_that_fails_leaves_the_training_alone(service, tmp_path, toy_run, assert_same_tensors):
    failing = service(after=1)
    config = runs.load_run(toy_run).config
    with pytest.warns(UserWarning, match=r"track is 'tensorboard', which failed .*: the training goes on") as told:
        runs.train(config, tmp_path / "run", track="tensorboard")
    assert len([one for one in told if "track is" in str(one.message)]) == 1
    assert (len(failing.sent), failing.closed) == (1, False)
    assert_same_tensors(load_tensors(tmp_path / "run/generator.safetensors"), load_tensors(toy_run / "generator.safetensors"))


def test_only_finite_figures_and_new_snapshots_are_sent(service, tmp_path):
    kept = service()
    snapshots = {0: torch.zeros(2), 2: torch.ones(2)}
    draw = lambda samples: Image.new("RGB", (5 + int(samples[0]), 5))  # noqa: E731
    with Tracking("tensorboard", tmp_path, {}, draw=draw) as tracking:
        tracking.record({"step": 2, "loss": 1.5, "bad": float("nan")}, snapshots)
        tracking.record({"step": 3, "loss": 2.5}, snapshots)
        tracking.record({"step": 4, "loss": 2.5}, {**snapshots, 4: torch.ones(2)})
    assert kept.sent[0] == (2, {"loss": 1.5})
    assert kept.shown == [(0, (5, 5)), (2, (6, 5)), (4, (6, 5))]
    assert kept.closed


def test_samples_of_a_resumed_training_are_sent_once(service, tmp_path):
    kept = service()
    draw = lambda samples: Image.new("RGB", (5, 5))  # noqa: E731
    with Tracking("tensorboard", tmp_path, {}, draw=draw, resumed=True) as tracking:
        tracking.record({"step": 6, "loss": 1.5}, {0: torch.zeros(2), 4: torch.ones(2), 6: torch.ones(2)})
        tracking.record({"step": 8, "loss": 1.5}, {7: torch.ones(2), 8: torch.ones(2)})
    assert [step for step, _ in kept.shown] == [6, 7, 8]


@pytest.fixture
def wandb(monkeypatch):
    """Stand in for wandb: keeps what it receives."""
    received = types.SimpleNamespace(options={}, lines=[], finished=False)

    class Run:
        def log(self, values, step):
            received.lines.append((step, values))

        def finish(self):
            received.finished = True

    def init(**options):
        received.options = options
        return Run()

    module = types.ModuleType("wandb")
    module.init, module.Settings, module.Image = init, lambda **values: values, lambda picture: np.asarray(picture).shape
    monkeypatch.setitem(sys.modules, "wandb", module)
    return received


@pytest.mark.usefixtures("no_pictures")
def test_wandb_receives_figures_snapshots_and_the_configuration(wandb, tmp_path, digits_run):
    config = presets.adjust(runs.load_run(digits_run).config, steps=2)
    runs.train(config, tmp_path / "digits", track="wandb")
    assert (wandb.options["name"], wandb.options["dir"]) == ("digits", str(tmp_path / "digits"))
    assert json.loads(json.dumps(wandb.options["config"])) == json.loads((tmp_path / "digits/config.json").read_text())
    steps = [step for step, _ in wandb.lines]
    assert steps == sorted(steps)  # others are dropped by wandb
    assert {step for step, values in wandb.lines if "samples" in values} == {0, 1, 2}
    assert wandb.lines[-1][1]["loss"] > 0
    assert wandb.finished


def test_wandb_that_does_not_start_names_its_offline_mode(wandb, tmp_path, tiny_toy, monkeypatch):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(InputError, match=r"track is 'wandb', which does not start \(division by zero\): .*WANDB_MODE=offline"):
        runs.train(tiny_toy, tmp_path / "run", track="wandb")
    runs.train(dataclasses.replace(tiny_toy, schedule=dataclasses.replace(tiny_toy.schedule, steps=2)), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_wandb_itself_works_offline(tmp_path, tiny_toy, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="track is")
        runs.train(presets.adjust(tiny_toy, steps=2), tmp_path / "run", track="wandb")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"energy_distance" in file.read_bytes()


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("wand", "track is 'wand', not tensorboard or wandb: did you mean wandb"),
        ("wandb", "whose library is not installed: pip install .*track"),
    ],
)
def test_tracker_that_cannot_be_is_refused_first(tmp_path, tiny_toy, monkeypatch, track, message):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=message):
        runs.train(tiny_toy, tmp_path / "run", track=track)
    assert not (tmp_path / "run").exists()


def test_classifier_is_not_tracked(tmp_path, gray_folder):
    config = presets.preset("mnist-classifier", data=str(gray_folder))
    with pytest.raises(InputError, match="track is 'tensorboard', but only generators are tracked"):
        runs.train(config, tmp_path / "run", track="tensorboard")


def test_flag_of_the_command(command, here, small_presets, wandb):
    assert command("train", "toy", "--steps", 2, "--save-dir", "x", "--track", "wandb").status == 0
    assert wandb.finished
    assert "track is 'w': pass tensorboard or wandb" in command("train", "toy", "--track", "w").err
    assert "track is given with smoke" in command("train", "toy", "--smoke", "--track", "wandb").err
