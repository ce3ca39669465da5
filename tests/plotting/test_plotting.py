import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from drifting import runs
from drifting.data.points import toy
from drifting.plotting import draw_comparison, draw_images, draw_points, figures, image_grid, points_figure, save_image
from drifting.plotting.images import show_grid
from drifting.runs.pictures import draw_pictures

pytestmark = pytest.mark.painted
LOG = [{"step": step, "loss": 1.0 / step, "drift_norm/sample/0.1": 0.5 / step, "energy_distance": 0.3 / step} for step in (1, 2, 4)]


def _points(count: int, seed: int) -> torch.Tensor:
    return toy("moons").draw(count, torch.Generator().manual_seed(seed))


def _verified(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.verify()
        return picture.size


def test_pictures_of_points_are_made_and_the_field_is_that_of_the_first_and_the_last_samples(tmp_path):
    snapshots = {step: _points(40, step) for step in (0, 2, 4)}
    asked = []

    def drift(places, generated):
        asked.append(generated)
        return torch.ones_like(places)

    made = draw_points(tmp_path, title="moons", real=_points(60, 9), snapshots=snapshots, log=LOG, drift=drift, floor=0.01)
    assert [path.name for path in made] == ["samples.png", "progress.png", "drift_field.png", "losses.png", "training.gif"]
    assert sorted(tmp_path.iterdir()) == sorted(made)
    assert all(min(_verified(path)) > 200 for path in made)
    with Image.open(tmp_path / "training.gif") as animation:
        assert animation.n_frames == len(snapshots)
    assert [any(torch.equal(one, snapshots[step]) for one in asked) for step in (0, 2, 4)] == [True, False, True]


def test_field_is_asked_for_at_different_places_far_from_the_origin(tmp_path):
    snapshots = {step: 1.7e9 + _points(20, step).double() for step in (0, 4)}
    asked = []

    def drift(places, generated):
        asked.append(len(places.unique(dim=0)))
        return torch.ones_like(places)

    draw_points(tmp_path, title="times", real=1.7e9 + _points(60, 9).double(), snapshots=snapshots, log=LOG, drift=drift)
    assert asked == [23 * 23] * 2


def test_figures_of_the_batches_have_a_row_of_their_own_and_the_noise_floor_is_dashed():
    log = [
        {
            "step": n,
            "loss": 1.0,
            **{f"drift_norm/{name}/0.1": 1.0 for name in "ab"},
            **{f"noise_floor/{name}/0.1": value for name, value in zip("ab", (1e-2, 1e-4), strict=True)},
            **{f"half_cosine/{name}/0.1": value for name, value in zip("ab", (0.2, 0.4), strict=True)},
            "diversity/a": 0.5,
            "least_diversity/a": 0.25,
            "remoteness/a": 2.0,
            "one_hot_share/a/0.1": 0.75,
            "flat_share/a/0.1": 0.125,
        }
        for n in (1, 2)
    ]
    axes = figures.losses_figure("x", log, None).axes
    assert len(axes) == 6
    (floor,) = [line for line in axes[1].lines if line.get_linestyle() == "--"]
    assert list(floor.get_ydata()) == pytest.approx([1e-3, 1e-3])
    assert [[list(line.get_ydata()) for line in panel.lines] for panel in axes[3:]] == [
        [pytest.approx([0.3, 0.3])],
        [[0.5, 0.5], [0.25, 0.25], [2.0, 2.0]],
        [[0.75, 0.75], [0.125, 0.125]],
    ]
    without = figures.losses_figure("x", [{"step": 1, "loss": 1.0, "drift_norm/a/0.1": 1.0}], None)
    assert len(without.axes) == 3


@pytest.mark.parametrize(
    ("more", "last"), [({}, "spread of the samples"), ({"marginal_residual/a/0.1": 0.125}, "errors of the rows")]
)
def test_fields_without_a_kernel_have_no_empty_panel_of_its_spread(more, last, recwarn):
    log = [{"step": n, "loss": 1.0, "drift_norm/a/0.1": 1.0, "diversity/a": 0.5, **more} for n in (1, 2)]
    drawn = [panel for panel in figures.losses_figure("x", log, None).axes[3:] if panel.axison]
    assert len(drawn) == 1 + len(more)
    assert all(panel.lines for panel in drawn)
    assert drawn[-1].get_title().startswith(last)
    assert not recwarn.list


def test_drift_norms_of_many_features_are_one_curve_a_temperature_and_thin_ones():
    norms = {
        "a/0.1": (4.0, 1.0),
        "b/0.1": (1.0, 0.0),
        "c/0.1": (2.0, 2.0),
        "a/0.2": (1.0, 1.0),
        "b/0.2": (1.0, 1.0),
        "c/0.2": (8.0, 1.0),
    }
    log = [{"step": n, "loss": 1.0, **{f"drift_norm/{name}": pair[n] for name, pair in norms.items()}} for n in (0, 1)]
    middle = figures.losses_figure("x", log, None).axes[1]
    named = {line.get_label(): list(line.get_ydata()) for line in middle.lines if line.get_label().startswith("temperature")}
    assert named == {"temperature 0.1": pytest.approx([2.0, 0.0], abs=1e-12), "temperature 0.2": pytest.approx([2.0, 1.0])}
    assert len(middle.lines) == 8
    assert [text.get_text() for text in middle.get_legend().get_texts()] == list(named)


@pytest.mark.parametrize("first", [1e-36, 0.0])
def test_axis_of_drift_norms_leaves_out_those_that_underflowed(first):
    values = {"0.02": (first, 1e-6, 1e-4), "0.2": (2e-3, 1e-2, 3e-3)}
    log = [{"step": n, **{f"drift_norm/x/{name}": series[n] for name, series in values.items()}} for n in range(3)]
    low, high = figures.losses_figure("x", log, None).axes[1].get_ylim()
    assert 1e-7 < low < 1e-6
    assert 1e-2 < high < 1e-1


def test_axis_of_drift_norms_shows_all_where_none_underflowed():
    values = (1e-2, float("nan"), 1e-9)
    low, high = figures.losses_figure("x", [{"step": n, "drift_norm/x/0.1": values[n]} for n in range(3)], None).axes[1].get_ylim()
    assert 1e-10 < low < 1e-9
    assert 1e-2 < high < 1e-1


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_extreme_fields_far_samples_and_one_line_of_metrics_can_be_drawn(tmp_path, value):
    snapshots = {0: _points(9, 0) * 1e4, 1: _points(9, 1)}
    draw_points(
        tmp_path, title="x", real=_points(9, 9), snapshots=snapshots, log=LOG[:1], drift=lambda places, _: places * 0 + value
    )
    assert _verified(tmp_path / "drift_field.png")
    assert _verified(tmp_path / "losses.png")


def test_pictures_of_images_are_made_and_named(tmp_path):
    snapshots = {step: torch.rand(8, 1, 4, 4) * 2 - 1 for step in (0, 2, 4)}
    made = draw_images(tmp_path, title="digits", real=torch.rand(2, 3, 1, 4, 4) * 2 - 1, snapshots=snapshots, log=LOG)
    assert [path.name for path in made] == ["samples.png", "progress.png", "losses.png", "training.gif"]
    assert all(min(_verified(path)) > 200 for path in made)


def test_pictures_of_few_classes_leave_little_paper_empty(tmp_path):
    """Two classes of ten images: their rows, which fill a fifth of a square, stand below the title without a gap."""
    grid = torch.zeros(2, 10, 3, 8, 8)
    snapshots = {step: torch.zeros(20, 3, 8, 8) for step in (0, 2)}
    made = draw_images(tmp_path, title="pets", real=grid, snapshots=snapshots, log=LOG, names=["cat", "dog"])
    made.append(draw_comparison(tmp_path, title="pets", real=grid, generated=grid, nearest=grid, names=["cat", "dog"]))
    for path in made:
        if path.name != "losses.png":
            with Image.open(path) as picture:
                gray = np.asarray(picture.convert("L"))
            empty = (gray > 250).all(1).astype(int)
            longest = max(map(len, "".join(map(str, empty)).split("0")))
            assert longest < 60, (path.name, gray.shape, longest)
    assert _verified(tmp_path / "samples.png")[1] < 250


@pytest.mark.parametrize("name", ["toy_run", "digits_run"])
def test_pictures_of_a_whole_run_are_drawn(name, request, tmp_path):
    run = runs.load(request.getfixturevalue(name))
    made = draw_pictures(run.config, tmp_path, snapshots=run.snapshots(), log=LOG)
    assert {path.name for path in made} == {path.name for path in run.folder.iterdir() if path.suffix in (".png", ".gif")}
    assert all(min(_verified(path)) > 200 for path in made)


def test_grid_holds_every_image_in_its_place():
    images = torch.arange(5, dtype=torch.uint8).mul(50)[:, None, None, None].expand(5, 8, 6, 1).contiguous()
    grid = np.asarray(image_grid(images, columns=2))
    factor = 8
    assert grid.shape == (factor * (3 * 9 + 1), factor * (2 * 7 + 1))
    middles = [grid[factor * (5 + row * 9), factor * (4 + column * 7)] for row in range(3) for column in range(2)]
    assert middles == [0, 50, 100, 150, 200, 255]
    assert set(np.unique(grid)) == {0, 50, 100, 150, 200, 255}


def test_grid_keeps_colors_and_the_size_of_large_images():
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    images[0, ..., 2] = 255
    grid = image_grid(images, columns=2)
    assert grid.mode == "RGB"
    assert grid.size == (131, 66)
    assert grid.getpixel((10, 10)) == (0, 0, 255)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_points_are_drawn_in_orange(shift):
    pixels = np.asarray(points_figure(_points(200, 0) + shift)).astype(int)
    red, green, blue = pixels.reshape(-1, 3).T
    assert int(((red > green + 60) & (green > blue)).sum()) > 500


def test_real_and_generated_have_one_color_everywhere():
    assert figures.REAL != figures.GENERATED


def test_picture_is_written_whole_or_not_at_all(tmp_path):
    picture = Image.new("RGB", (3, 3))
    save_image(picture, tmp_path / "a.png")
    assert _verified(tmp_path / "a.png") == (3, 3)
    with pytest.raises(ValueError, match="unknown file extension"):
        save_image(picture, tmp_path / "a.unknown")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_steps_shown_include_the_first_and_the_last():
    for count in (1, 2, 3, 7, 25):
        shown = []
        snapshots = dict.fromkeys(range(10, 10 + count), torch.empty(0))
        figures.progress_figure("title", snapshots, lambda axes, step, shown=shown: shown.append(step), lambda axes: None)
        assert (len(shown), shown[0], shown[-1]) == (7, 10, 9 + count)
        assert shown == sorted(shown)


@pytest.mark.parametrize(("side", "shown"), [(28, 28), (48, 48), (256, 43)])
def test_large_images_are_shrunk_and_keep_the_lines_between_them(side, shown):
    axes = Figure().subplots()
    images = -torch.ones(2, 10, 3, side, side)
    images[:, :, 0] = torch.linspace(-1, 1, side)
    show_grid(axes, images, "x")
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.shape == (2 * (shown + 2), 10 * (shown + 2), 3)
    assert (sheet[:, :: shown + 2] == 1).all()
    cell = sheet[1 : shown + 1, 1 : shown + 1]
    assert np.abs(cell[0, :-1, 0] - np.linspace(0, 1, shown)[:-1]).max() < 0.03
    assert (cell[:, :, 1:] == 0).all()


def test_dollars_in_names_begin_no_formula(tmp_path):
    name = r"$\x$ and $_^{"
    snapshots = {0: _points(9, 1), 1: _points(9, 2)}
    assert len(draw_points(tmp_path, title=name, real=_points(9, 9), snapshots=snapshots, log=LOG)) > 2
    grids = {step: torch.zeros(4, 1, 4, 4) for step in (0, 1)}
    assert len(draw_images(tmp_path, title=name, real=torch.zeros(2, 2, 1, 4, 4), snapshots=grids, log=LOG)) > 2


_SHOWS = """
import os, sys
from drifting.cli import main
main(["sample", sys.argv[1], "--out", "x.png"])
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams._get_backend_or_none())
"""


@pytest.mark.parametrize(
    "backend",
    [
        "module://matplotlib_inline.backend_inline",
        pytest.param("nonsense", marks=pytest.mark.slow),
        pytest.param("svg", marks=pytest.mark.slow),
    ],
)
def test_pictures_are_drawn_whatever_backend_is_asked_for(toy_run, tmp_path, backend):
    environment = {**os.environ, "MPLBACKEND": backend}
    arguments = [sys.executable, "-c", _SHOWS, str(toy_run)]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120, env=environment, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    variable, used = ran.stdout.splitlines()[1].split(" ")
    assert variable == backend
    assert used == backend or importlib.util.find_spec("matplotlib_inline") is None
    assert backend != "svg" or used == "svg"
    assert ran.stdout.splitlines()[:1] == ["x.png"]
    with Image.open(tmp_path / "x.png") as picture:
        picture.verify()
