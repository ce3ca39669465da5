"""Run folders of an earlier version (0.1.0, November 2026) still load, sample and resume.

Each folder of `tests/earlier_runs` holds a finished run of 6 steps, its checkpoint of step 4, and samples of it in
expected.safetensors; figures.json holds what that version measured of them. The images are those of `tests.support.image_folders`,
drawn from a memory bank and compared in an auto-encoder. The runs were made on one processor; another may round differently, so
values are compared to the digits that survive six steps.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from drifting import runs
from drifting.checkpoint import load_tensors
from drifting.config import RENAMED, from_json
from drifting.evaluation.tables import read_figures
from drifting.runs.folder import saved_config
from tests.support.image_folders import write_images

EARLIER = Path(__file__).parent / "earlier_runs"
NAMES = ("toy", "digits", "images")
# Gray values of a byte, and points.
TOLERANCE = {torch.uint8: 1.0, torch.float32: 1e-4}

pytestmark = pytest.mark.usefixtures("no_pictures")


# Of each run, how it was evaluated.
EVALUATIONS = {"toy": {"count": 200}, "digits": {}, "images": {"extractor": "pixels"}}


@pytest.fixture(params=NAMES)
def earlier_run(request, tmp_path) -> Path:
    """A copy of a run folder, with its images where its configuration says."""
    images = write_images(tmp_path / "images", {"a": 30, "b": 30, "c": 30})
    folder = Path(shutil.copytree(EARLIER / request.param, tmp_path / "run"))
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace('"path": "images"', f'"path": "{images}"'))
    return folder


def test_samples_are_those_that_it_made(earlier_run):
    expected = load_tensors(earlier_run / "expected.safetensors")["samples"]
    samples = runs.load(earlier_run).sample(len(expected), seed=3)
    assert samples.dtype == expected.dtype
    assert float((samples.double() - expected.double()).abs().max()) <= TOLERANCE[expected.dtype]


def test_run_resumed_from_the_middle_ends_where_it_did(earlier_run):
    finished = load_tensors(earlier_run / "generator.safetensors")
    (earlier_run / "generator.safetensors").unlink()
    run = runs.train(saved_config(earlier_run), earlier_run, resume=True)
    resumed = load_tensors(run.folder / "generator.safetensors")
    assert resumed.keys() == finished.keys()
    for name, weights in finished.items():
        torch.testing.assert_close(resumed[name], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:9 samples of 64 features")
def test_figures_are_those_that_it_had(earlier_run, request):
    name = request.node.callspec.params["earlier_run"]
    figures = runs.load(earlier_run).evaluate(**EVALUATIONS[name])
    expected = json.loads((EARLIER / "figures.json").read_text())[name]
    neighbors = ("precision", "recall", "density", "coverage")
    later = {name + end for name in (*neighbors, "within_class_distance") for end in ("", "_floor")}
    assert figures.keys() - expected.keys() <= {"reference", "num_real", "num_features", *later}
    assert figures.get("extractor") == expected.pop("extractor", None)
    for figure, value in expected.items():
        assert figures[figure] == pytest.approx(value, rel=1e-4, abs=1e-6), figure


def test_snapshots_are_read(earlier_run):
    assert max(runs.load(earlier_run).snapshots()) == 6


def test_figures_are_read_under_their_former_names(tmp_path):
    earlier = {"judge": "pixels", "colour_mean": [0.5], "colour_std_floor": [0.25], "recall": 0.5}
    (tmp_path / "metrics.json").write_text(json.dumps(earlier))
    figures = read_figures(tmp_path / "metrics.json", "evaluate it")
    assert figures == {"extractor": "pixels", "color_mean": [0.5], "color_std_floor": [0.25], "recall": 0.5}


def test_settings_are_read_under_their_former_names(earlier_run):
    saved = json.loads((earlier_run / "config.json").read_text())
    saved["schedule"] |= {"micro_batch": 5, "labels_per_pass": None, "unguided_share": 0.0}
    for name in ("microbatch_size", "labels_per_microbatch", "unguided_prob"):
        saved["schedule"].pop(name, None)
    assert {"micro_batch", "labels_per_pass", "unguided_share"} <= RENAMED.keys()
    read = from_json(saved, "here")
    assert read.schedule.microbatch_size == 5
    assert (read.snapshots, read.snapshot_samples) == (saved["frames"], saved["frame_samples"])
