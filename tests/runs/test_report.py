"""The report of a run: what it shows, what it says is missing, and that it works in a browser."""

import dataclasses
import json
import platform
import re
import shutil
from pathlib import Path

import pytest
import torch

import drifting
from drifting import presets, runs
from drifting.data.pixels import to_signed
from drifting.diagnosis import Diagnosis, Finding
from drifting.errors import InputError
from drifting.runs import report as reporting
from drifting.runs import report_samples as shown
from drifting.runs.folder import read_environments
from drifting.runs.report import write_report
from tests.support.browser import CHROMIUM, visit

pytestmark = pytest.mark.painted
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def _facts(page: Path) -> dict:
    """Return the facts in a page."""
    return json.loads(re.search(r'id="facts">(.*?)</script>', page.read_text(), re.S)[1])


@pytest.fixture
def copy(tmp_path, request):
    """Copy one of the runs that tests share."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(request.getfixturevalue(name), tmp_path / name))

    return copied


@pytest.mark.parametrize(("name", "kind"), [("toy_run", "points"), ("points_run", "points"), ("digits_run", "images")])
def test_report_has_the_samples_of_every_snapshot_and_the_curves(copy, name, kind):
    folder = copy(name)
    facts = _facts(write_report([folder]))
    (run,) = facts["runs"]
    samples = run["samples"]
    assert samples["kind"] == kind
    steps = sorted(runs.load_run(folder).snapshots())
    assert samples["steps"] == steps
    assert len(samples["points" if kind == "points" else "images"]) == len(steps) > 1
    assert samples["real"]
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    charts = {chart["title"]: chart for chart in facts["charts"]}
    (loss,) = charts["loss"]["curves"]
    assert loss["steps"] == [line["step"] for line in log]
    assert loss["values"] == pytest.approx([line["loss"] for line in log])
    assert len(charts["raw drift norm"]["curves"]) == len(runs.load_run(folder).config.loss.temperatures)
    assert [line for line in run["missing"] if "Not evaluated yet" in line]


def test_points_are_where_they_were_sampled(copy):
    folder = copy("points_run")
    (facts,) = _facts(write_report([folder]))["runs"]
    run = runs.load_run(folder)
    frame, snapshots = run.config.data.frame, run.snapshots()
    samples = frame.restore(snapshots[max(snapshots)])
    placed = torch.tensor(facts["samples"]["points"][-1]).unflatten(0, (-1, 2)).double()
    inside = ((placed > -shown._LEVELS) & (placed < 2 * shown._LEVELS)).all(1)
    assert inside.float().mean() > 0.3
    # One affine map with a single scale takes samples to their places.
    x, y = samples[inside], placed[inside]
    scale = (y - y.mean(0)).norm() / (x - x.mean(0)).norm()
    torch.testing.assert_close(y - y.mean(0), scale * (x - x.mean(0)), rtol=0, atol=2.0)


def test_arrows_point_where_the_field_does():
    vectors = torch.tensor([[1.0, 0.0], [0.0, -0.01], [0.0, 0.0]], dtype=torch.float64)
    arrows = shown._arrows(vectors)
    torch.testing.assert_close(arrows[0], shown._LONGEST_ARROW * vectors[0])
    torch.testing.assert_close(arrows[1] / arrows[1].norm(), vectors[1] / vectors[1].norm())
    assert 5 < float(arrows[1].norm()) < 15
    assert arrows[2].tolist() == [0, 0]


def test_evaluated_run_has_figures_with_floors_and_their_direction(copy):
    folder = copy("digits_run")
    metrics = runs.load_run(folder).evaluate()
    (run,) = _facts(write_report([folder]))["runs"]
    rows = {row[0]: row[1:] for row in run["figures"]}
    assert rows["recall"] == [f"{metrics['recall']:.5g}", f"{metrics['recall_floor']:.5g}", "more"]
    assert rows["energy distance"][2] == "less"
    assert rows["nearest distance"][2] == "as real"
    assert not [line for line in run["missing"] if "evaluated" in line]


def test_settings_that_differ_from_the_preset_are_marked(copy):
    (run,) = _facts(write_report([copy("toy_run")]))["runs"]
    changed = {name: (value, preset) for name, value, preset in run["settings"] if preset}
    assert changed["schedule.steps"] == ("6", "2000")
    assert "data.dataset" not in changed
    assert "loss.temperatures" not in changed


def test_broken_run_shows_what_is_there_and_says_what_is_missing(copy):
    folder = copy("toy_run")
    for name in ("generator.safetensors", "snapshots.safetensors"):
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_text("damaged")
    (run,) = _facts(write_report([folder]))["runs"]
    assert run["samples"] is None
    assert any("not finished: 0 of 6 steps" in line for line in run["missing"])
    assert any("No samples were kept" in line for line in run["missing"])


def test_damaged_figures_and_curves_are_told(copy):
    folder = copy("toy_run")
    (folder / "metrics.json").write_text('{"frechet_curve": [1.0]}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "noise_floor/sample": 1.0}\n')
    (run,) = _facts(write_report([folder]))["runs"]
    assert any("frechet_curve_steps and frechet_curve differ in length" in line for line in run["missing"])
    assert any("noise_floor/sample is not a number of a known name" in line for line in run["missing"])


def test_samples_are_shown_without_data_that_are_gone(copy, tmp_path):
    folder = copy("points_run")
    config = json.loads((folder / "config.json").read_text())
    config["data"]["path"] = str(tmp_path / "gone.npy")
    (folder / "config.json").write_text(json.dumps(config))
    (run,) = _facts(write_report([folder]))["runs"]
    assert run["samples"]["real"] is None
    assert len(run["samples"]["points"]) > 1
    assert any("gone.npy" in line for line in run["missing"])


def test_nearest_training_images_are_beside_the_last_samples(copy):
    folder = copy("images_run")
    (facts,) = _facts(write_report([folder]))["runs"]
    run = runs.load_run(folder)
    train = run.config.data.load("train").images
    last = run.snapshots()[max(run.snapshots())]
    rows, columns = 3, min(10, len(last) // 3)
    indices = [int((to_signed(train) - sample).square().sum((1, 2, 3)).argmin()) for sample in last[: rows * columns]]
    assert len(set(indices)) > 1
    assert facts["samples"]["nearest"] == shown._sheet(train[indices], rows, columns)
    assert facts["samples"]["nearest"] != facts["samples"]["real"]


def test_environment_of_every_start_is_told(copy):
    folder = copy("toy_run")
    runs.train(presets.adjust(runs.load_run(folder).config, steps=8), folder, resume=True)
    runs.train(presets.adjust(runs.load_run(folder).config, steps=8), folder, resume=True)  # which is finished
    lines = _facts(write_report([folder]))["runs"][0]["environment"]
    assert len(lines) == 3
    for line, step in zip(lines, (0, 6), strict=False):
        assert line.startswith(f"From step {step} on 20")
        assert f"drifting {drifting.__version__}, torch {torch.__version__}, Python {platform.python_version()}, " in line
        assert f"device cpu, {torch.get_num_threads()} thread" in line
    assert lines[2].startswith("This report was made with drifting")


@pytest.mark.parametrize("damage", ["{\n", '{"step": "a"}\n', "[1]\n", b"\xff\xfe\n"])
def test_environment_that_is_damaged_or_lacks_is_told(copy, damage):
    folder = copy("toy_run")
    file = folder / "environment.jsonl"
    file.unlink()
    lines = _facts(write_report([folder]))["runs"][0]["environment"]
    assert lines[0] == "Runs of earlier versions did not keep the environment of their training."
    file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    (run,) = _facts(write_report([folder]))["runs"]
    assert any(line.startswith("Environment is '") and "damaged" in line for line in run["missing"])


def test_environment_alone_makes_no_run(tmp_path, tiny_toy):
    (tmp_path / "environment.jsonl").write_text('{"step": 5}\n')
    runs.train(presets.adjust(tiny_toy, steps=2), tmp_path)
    assert [each["step"] for each in read_environments(tmp_path)] == [0]


def test_page_holds_no_address_of_the_network(copy):
    text = write_report([copy("digits_run")]).read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_names_cannot_end_the_script_that_holds_the_facts(copy, monkeypatch):
    monkeypatch.setattr(reporting, "_lines", lambda *_: ["</script><b>", "x<!--<script>"])
    page = write_report([copy("toy_run")])
    assert not [name for name in ("</script><b>", "<!--<script>") if name in page.read_text()]
    assert _facts(page)["runs"][0]["lines"] == ["</script><b>", "x<!--<script>"]


def test_report_says_what_the_doctor_says(copy, monkeypatch):
    fault = Finding("samples collapse", "they are alike", "pass --temperatures 0.2")
    note = Finding("improving", "the norm falls", fault=False)
    diagnosis = Diagnosis((fault, note), ("the encoder",))
    monkeypatch.setattr(reporting, "examine", lambda _: diagnosis)
    (run,) = _facts(write_report([copy("toy_run")]))["runs"]
    texts = {one["text"]: one["good"] for one in run["verdicts"]}
    assert next(iter(texts.items())) == (diagnosis.lines()[0], False)
    assert texts["samples collapse: they are alike; pass --temperatures 0.2"] is False
    assert texts["improving: the norm falls"] is True
    assert texts["not judged: the encoder"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folders": []}, "runs is empty"),
        ({"out": "report.txt"}, "out is '.*report.txt': name an .html file"),
        ({"out": "there.html"}, "out is '.*there.html', which exists"),
        ({"folders": ["nothing"]}, "nothing"),
        ({"folders": ["toy_run", "toy_run"], "out": None}, "out is missing, but there are 2 runs"),
    ],
)
def test_wrong_requests_are_refused(copy, tmp_path, monkeypatch, changes, message):
    copy("toy_run")
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("mine")
    with pytest.raises(InputError, match=message):
        write_report(changes.get("folders", ["toy_run"]), changes.get("out", "page.html"))
    assert Path("there.html").read_text() == "mine"
    assert not Path("page.html").exists()


def test_training_ends_with_a_report_and_names_it(tmp_path, tiny_toy):
    config = dataclasses.replace(tiny_toy, schedule=dataclasses.replace(tiny_toy.schedule, steps=2))
    run = runs.train(config, tmp_path / "run")
    assert run.summary()[-1] == str(tmp_path / "run" / "report.html")
    assert _facts(tmp_path / "run" / "report.html")["runs"][0]["samples"]["steps"][-1] == 2
    runs.train(config, tmp_path / "run", overwrite=True)


_MOVE = """
const input = document.querySelector("input[type=range]"), canvas = document.querySelector("canvas");
const look = () => canvas ? canvas.toDataURL() : document.querySelectorAll("img.samples")[1].src;
const before = look(); input.value = 0; input.dispatchEvent(new Event("input")); const after = look();
input.value = input.max; input.dispatchEvent(new Event("input"));
const fits = document.documentElement.scrollWidth <= window.innerWidth;
const texts = (chart) => [...chart.querySelectorAll("text")].map((text) => text.textContent);
const ticks = [...document.querySelectorAll("svg")].map(texts);
const told = ticks.every((shown) => shown.length >= 6 && new Set(shown).size === shown.length);
return [before !== after, before === look(), fits, told, document.querySelectorAll("svg polyline").length > 2].join();
"""


@in_browser
@pytest.mark.parametrize(("name", "width", "dark"), [("toy_run", 500, True), ("digits_run", 1600, False)])
def test_slider_changes_the_picture_in_a_browser_without_errors(copy, name, width, dark):
    page = write_report([copy(name)])
    assert visit(page, _MOVE, width=width, dark=dark) == "true,true,true,true,true"


@in_browser
def test_two_runs_stand_side_by_side(copy, tmp_path):
    page = write_report([copy("toy_run"), copy("points_run")], tmp_path / "both.html")
    tops = """
    const panels = [...document.querySelector(".runs").children];
    return panels.map((panel) => Math.round(panel.getBoundingClientRect().top)).join();
    """
    first, second = visit(page, tops, width=1600).split(",")
    assert first == second
    first, second = map(int, visit(page, tops, width=500).split(","))
    assert first < second
