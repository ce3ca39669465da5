"""`drifting compare`: a table that says what the files of the runs say, a picture of their own samples, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import config as configuration
from drifting import runs
from drifting._json import save_json
from drifting.checkpoint import save_tensors
from drifting.config import RunConfig
from drifting.encoders import ResNetConfig
from drifting.evaluation import as_text
from drifting.plotting import RunColumn, figures, runs_figure
from drifting.runs import compare as comparing
from drifting.runs.train import resolve

pytestmark = pytest.mark.painted

FIGURES = {"extractor": "columns", "num_samples": 100_000, "frechet_distance": 2.34567891, "frechet_distance_floor": 0.5}
CURVE = {"frechet_curve_steps": [0, 2, 6], "frechet_curve": [9.0, 4.0, 2.5], "frechet_curve_floor": 0.5}
GRAY = torch.zeros(2, 3, 1, 4, 4)


def _made(folder: Path, config: RunConfig, metrics: dict | None = None, **changes) -> Path:
    """Make the folder of a run that is not trained, of another configuration of its data where there are changes."""
    data = dataclasses.replace(config.data, **changes)
    config = resolve(dataclasses.replace(config, data=data))
    folder.mkdir(parents=True)
    save_json(folder / "config.json", configuration.to_json(config))
    save_tensors(folder / "generator.safetensors", config.build_generator().state_dict())
    if metrics is not None:
        save_json(folder / "metrics.json", metrics)
    return folder


@pytest.fixture
def three(tmp_path, monkeypatch, tiny_images) -> list[str]:
    """Names of three runs of unlike weights in the folder where one is: a and b with figures, c without."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, distance) in enumerate({"a": 3.0, "b": 1.25, "c": None}.items()):
        config = dataclasses.replace(tiny_images, seed=seed)
        _made(tmp_path / name, config, None if distance is None else {**FIGURES, "frechet_distance": distance})
    return ["a", "b", "c"]


def _update(folder: str, **changes) -> None:
    path = Path(folder) / "metrics.json"
    save_json(path, {**json.loads(path.read_text()), **changes})


def _table(path: Path | str = "out/comparison.md") -> dict[str, dict[str, str]]:
    """Read the table: row -> column -> cell."""
    lines = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in Path(path).read_text().splitlines()]
    names, ruler, *rows = lines
    assert set(ruler) == {"---"}
    assert {len(row) for row in lines} == {len(names)}
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


@pytest.mark.filterwarnings("ignore:9 samples of 64 features")
def test_table_holds_the_figures_of_every_run_and_the_floors_once(three, command):
    for name in "ab":
        assert runs.load(name).evaluate(extractor="pixels", count=60)["extractor"] == "pixels"
    measured = {name: json.loads((Path(name) / "metrics.json").read_text()) for name in "ab"}
    assert measured["a"]["frechet_distance"] != measured["b"]["frechet_distance"]
    result = command("compare", *three, "--out", "out")
    assert (result.status, result.err) == (0, "drifting: 'c' has not been evaluated: drifting evaluate c\n")
    table = _table()
    better = table.pop("better")
    assert (better["recall"], better["copy_share"], better["steps"]) == ("more", "less", "-")
    assert list(table) == ["a", "b", "c", "real against real"]
    names = [name for name in measured["a"] if not name.endswith("_floor")]
    assert {"frechet_distance", "recall", "copy_share", "color_mean"} < set(names)
    assert list(table["a"]) == ["run", "preset", "encoder", "steps", "minutes", *names]
    assert [table[row].pop("extractor") for row in table] == ["pixels", "pixels", "-", "-"]
    assert [table[row].pop("reference") for row in table] == ["images gray/test", "images gray/test", "-", "-"]
    for name in names[2:]:
        for row in "ab":
            assert float(table[row][name]) == pytest.approx(np.ravel(measured[row][name]), rel=6e-4)
        floor, shown = measured["a"].get(f"{name}_floor"), table["real against real"][name]
        assert shown == "-" if floor is None else float(shown) == pytest.approx(np.ravel(floor), rel=6e-4)
    assert {table["c"][name] for name in names[2:]} == {"-"}
    assert table["c"]["preset"] == "images"


def test_terminal_shows_the_same_table_turned_and_the_two_files(three, command):
    result = command("compare", *three, "--out", "out")
    *shown, table, picture = result.out.splitlines()
    assert (table, picture) == ("out/comparison.md", "out/compare.png")
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in shown]
    rows = {row[0]: row[1:] for row in cells if row}
    written = _table()
    for name in ("run", "preset", "steps", "extractor", "frechet_distance"):
        assert rows[name][:3] == [written[row][name] for row in "abc"]
    assert rows["frechet_distance"][3:5] == ["0.5", "less"]


def test_encoder_steps_and_minutes_are_those_of_the_files(three, tiny_images):
    encoder = ResNetConfig(width=4, feature_dims=(24,), features=("stage4_mean", "stage1_mean"))
    _made(Path("d"), dataclasses.replace(tiny_images, encoder=encoder))
    save_json(Path("d/encoder.json"), {"linear_probe_accuracy": 0.875, "num_train_images": 81})
    Path("d/metrics.jsonl").write_text('{"step": 2, "mean_steps_per_second": 9}\n{"step": 6, "mean_steps_per_second": 0.02}\n')
    comparing.write_comparison(["a", "d"], "out")
    table = _table()
    assert table["a"]["encoder"] == "Autoencoder, 7 features"
    assert table["d"]["encoder"] == "ResNet resnet18, 2 features, linear probe 0.875"
    assert [table[name]["steps"] for name in "ad"] == ["6", "6"]
    assert [table[name]["minutes"] for name in "ad"] == ["-", "5.0"]


def test_floors_that_differ_stand_beside_each_figure_and_are_reported(three, command):
    _update("b", frechet_distance_floor=0.75, color_mean=[0.5, -1], color_mean_floor=[0.25, 0])
    result = command("compare", "a", "b", "--out", "out")
    assert result.status == 0
    words = r"frechet_distance_floor is 0\.5 of 'a' and 0\.75 of 'b'"
    assert re.fullmatch(rf"drifting: the runs were .*different real images \({words}\).* cannot be compared[^\n]*\n", result.err)
    table = _table()
    assert list(table) == ["a", "b", "better"]
    assert [table[row]["frechet_distance"] for row in "ab"] == ["3 (0.5)", "1.25 (0.75)"]
    assert [table[row]["color_mean"] for row in "ab"] == ["-", "0.5 -1 (0.25 0)"]
    assert [table[row]["num_samples"] for row in "ab"] == ["100000", "100000"]


def test_floors_that_differ_by_rounding_agree(three, command):
    _update("b", frechet_distance_floor=0.50001, **CURVE)
    assert command("compare", "a", "b", "--out", "out").err == ""
    _update("a", **{**CURVE, "frechet_curve_floor": 0.75})
    error = command("compare", "a", "b", "--out", "out", "--overwrite").err
    assert re.fullmatch(r"drifting: the curves .*\(frechet_curve_floor is 0\.75 of 'a' and 0\.5 of 'b'\)[^\n]*\n", error)
    assert _table()["real against real"]["frechet_distance"] == "0.5"


@pytest.mark.parametrize("floor", [0.5, 0.75])
def test_extractors_that_differ_are_reported_in_one_line(three, command, floor):
    _update("b", extractor="pixels", frechet_distance_floor=floor)
    error = command("compare", "a", "b", "--out", "out").err
    assert re.fullmatch(r"drifting: different extractors .*\(columns 'a', pixels 'b'\).* cannot be compared[^\n]*\n", error)


def _samples_in(sheet: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cut the images out of a sheet with an edge of one pixel around each: [rows, columns, h, w] bytes."""
    cells = sheet.reshape(rows, sheet.shape[0] // rows, columns, sheet.shape[1] // columns)
    return np.rint(255 * cells[:, 1:-1, :, 1:-1].swapaxes(1, 2)).astype(np.uint8)


@pytest.mark.parametrize(("classes", "rows"), [(3, 3), (12, 10), (None, 10)])
def test_picture_shows_the_samples_of_every_run_one_class_a_row(tmp_path, tiny_images, monkeypatch, classes, rows):
    drawn = []
    monkeypatch.setattr(comparing, "draw_runs", lambda path, columns, title: drawn.append(runs_figure(columns, title)))
    folders = [
        _made(tmp_path / f"{seed}", dataclasses.replace(tiny_images, seed=seed), image_shape=(1, 8, 8), num_classes=classes)
        for seed in (1, 2)
    ]
    comparing.write_comparison(folders, tmp_path / "out")
    sheets = [np.asarray(axes.images[0].get_array()) for axes in drawn[0].axes]
    assert len(sheets) == 2
    for folder, sheet in zip(folders, sheets, strict=True):
        found = _samples_in(sheet, rows, 10)
        for row in range(rows):
            expected = runs.load(folder).sample(10 * rows, labels=None if classes is None else range(rows))[row::rows]
            assert np.array_equal(found[row], expected.squeeze(-1).numpy())
    assert not np.array_equal(sheets[0], sheets[1])
    assert ("one class a row" in drawn[0].get_suptitle()) == (classes is not None)


def test_rows_of_the_picture_bear_the_names_that_each_run_keeps(tmp_path, tiny_images, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparing, "draw_runs", lambda path, columns, title: drawn.append(runs_figure(columns, title)))
    data = {"image_shape": (1, 8, 8), "num_classes": 3}
    folders = [
        _made(tmp_path / "own", tiny_images, **data, class_names=("ant", "$b$", "cat")),
        _made(tmp_path / "unknown", tiny_images, **data, class_names=None),
        _made(tmp_path / "joint", tiny_images, **(data | {"num_classes": None}), class_names=("ant", "$b$", "cat")),
    ]
    comparing.write_comparison(folders, tmp_path / "out")
    shown = [[text.get_text() for text in axes.get_yticklabels()] for axes in drawn[0].axes]
    assert shown == [["ant", "$b$", "cat"], ["0", "1", "2"], [str(row) for row in range(10)]]


def test_picture_is_as_wide_as_its_runs_and_grows_by_the_curves(three, command):
    sizes = {}
    for names in (["a"], three):
        for curve in ({}, CURVE):
            _update("a", **curve)
            assert command("compare", *names, "--out", "out", "--overwrite").status == 0
            with Image.open("out/compare.png") as picture:
                picture.load()
                sizes[len(names), bool(curve)] = picture.size
        save_json(Path("a/metrics.json"), FIGURES)
    assert {key: width for key, (width, _) in sizes.items()} == {(1, False): 550, (1, True): 550, (3, False): 1650, (3, True): 1650}
    assert all(sizes[count, True][1] == sizes[count, False][1] + 374 for count in (1, 3))


def test_titles_are_names_and_distances_and_no_formulas():
    columns = [RunColumn("cost $x", "Frechet distance 3", GRAY), RunColumn("_$\\frac$", "", GRAY, [0, 1], [1.0, 2.0], 0.5)]
    first, second, curves = runs_figure(columns, "").axes
    assert [axes.get_title() for axes in (first, second)] == ["cost $x\nFrechet distance 3", "_$\\frac$"]
    legend = curves.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["_$\\frac$"]
    figures.pixels(runs_figure(columns, ""))


@pytest.mark.parametrize(("floors", "colors"), [((0.5, 0.5), [figures.REAL]), ((0.5, 0.7), figures.LINES[:2]), ((None, None), [])])
def test_curves_lie_above_dashed_floors(floors, colors):
    columns = [
        RunColumn("a", "", GRAY, [0, 2, 6], [9.0, 4.0, 2.0], floors[0]),
        RunColumn("b", "", GRAY, [0, 3], [8.0, 1.0], floors[1]),
    ]
    curves = runs_figure([*columns, RunColumn("c", "", GRAY)], "").axes[-1]
    solid = [line.get_xydata() for line in curves.lines if line.get_linestyle() == "-"]
    dashed = [line for line in curves.lines if line.get_linestyle() == "--"]
    assert [np.asarray(points).tolist() for points in solid] == [[[0, 9], [2, 4], [6, 2]], [[0, 8], [3, 1]]]
    assert [line.get_color() for line in dashed] == list(colors)
    assert {np.asarray(line.get_ydata())[0] for line in dashed} == set(floors) - {None}


def test_curves_of_the_files_are_drawn_and_not_in_the_table(three, monkeypatch):
    _update("b", **CURVE)
    drawn = []
    monkeypatch.setattr(comparing, "draw_runs", lambda path, columns, title: drawn.extend(columns))
    comparing.write_comparison(["a", "b"], "out")
    assert [(list(column.steps), list(column.distances), column.floor) for column in drawn] == [
        ([], [], None),
        ([0, 2, 6], [9, 4, 2.5], 0.5),
    ]
    assert [column.title for column in drawn] == ["Frechet distance 3", "Frechet distance 1.25"]
    assert not any(name.startswith("frechet_curve") for name in _table()["b"])


def test_runs_of_one_folder_name_are_told_apart_and_digits_are_images(three, tiny_images, tiny_digits, command):
    _made(Path("x/a|b"), tiny_images)
    _made(Path("y/a|b"), tiny_digits, {"logistic_accuracy": 0.5, "logistic_accuracy_floor": 0.875})
    assert command("compare", "x/a|b", "y/a|b", "c", "--out", "out").status == 0
    table = _table()
    assert list(table) == [r"x/a\|b", r"y/a\|b", "c", "real against real", "better"]
    assert table[r"y/a\|b"]["logistic_accuracy"] == "0.5"


def test_files_are_replaced_only_when_asked(three, command):
    assert command("compare", "a", "--out", "out").status == 0
    before = Path("out/comparison.md").read_text()
    result = command("compare", "b", "--out", "out")
    assert result.status == 2
    assert re.fullmatch(r"drifting: out is 'out', where 'comparison\.md' exists: pass --overwrite [^\n]*\n", result.err)
    assert Path("out/comparison.md").read_text() == before
    assert command("compare", "b", "--out", "out", "--overwrite").status == 0
    assert list(_table()) == ["b", "real against real", "better"]
    assert {path.name for path in Path("out").iterdir()} == {"comparison.md", "compare.png"}


BAD = {
    "": ("runs is empty", "name the folder"),
    "a b a": ("runs has 'a' twice",),
    "a ./b/../a": ("runs has 'b/../a' twice",),
    "a nowhere": ("run is 'nowhere'", "not a folder"),
    "a empty": ("empty/config.json", "does not exist"),
    "a toy": ("runs has 'toy', which makes points",),
    "a large": ("runs has 'large' of images (1, 12, 12) and 'a' of images (1, 8, 8)",),
    "a --out file": ("out is 'file'", "may write to"),
    "a --out taken": ("out is 'taken', where 'compare.png' exists", "--overwrite"),
    "a --out folder --overwrite": ("out is 'folder', where 'compare.png' exists", "another folder"),
}


@pytest.fixture
def refused(three, command, monkeypatch):
    """Check that a comparison is refused with these words before a sample is made."""
    monkeypatch.setattr(runs.Run, "sample", lambda *_, **__: pytest.fail("samples were made"))

    def check(arguments: str, *words: str) -> None:
        before = sorted(Path.cwd().rglob("*"))
        result = command("compare", *arguments.split())
        assert (result.status, result.out) == (2, "")
        assert re.fullmatch(r"drifting: [^\n]+\n", result.err), result.err
        assert [word for word in words if word not in result.err] == []
        assert sorted(Path.cwd().rglob("*")) == before

    return check


@pytest.mark.parametrize("arguments", BAD)
def test_what_cannot_be_compared_is_refused(refused, tiny_toy, tiny_images, arguments):
    _made(Path("toy"), tiny_toy)
    _made(Path("large"), tiny_images, image_shape=(1, 12, 12), num_classes=3)
    Path("file").touch()
    for folder in ("empty", "taken", "folder/compare.png"):
        Path(folder).mkdir(parents=True)
    Path("taken/compare.png").touch()
    refused(arguments, *BAD[arguments])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is corrupted"),
        ("[1]", "no figures by name"),
        ('{"recall": null}', "recall is not a figure"),
        ('{"recall": "high"}', "recall is not a figure"),
        ('{"color_mean": [0.1, "x"]}', "color_mean is not a figure"),
        ('{"extractor": 3}', "extractor is not a figure"),
        ('{"frechet_curve_steps": [0, 1], "frechet_curve": [2.0]}', "differ in length"),
    ],
)
def test_damaged_figures_are_refused(refused, text, reason):
    Path("b/metrics.json").write_text(text)
    refused("a b", "b/metrics.json", reason, "evaluate the run again")


@pytest.mark.parametrize(
    ("value", "text"), [(100_000, "100000"), (0.0123456789, "0.012346"), ([1.0, 0.123456], "1 0.1235"), ("pixels", "pixels")]
)
def test_figures_as_text(value, text):
    assert as_text(value) == text
