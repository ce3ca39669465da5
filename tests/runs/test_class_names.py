"""Names of classes: kept with a run, taken by `--labels`, shown in pictures."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from drifting import runs
from drifting.errors import InputError
from drifting.plotting import image_grid
from drifting.plotting.images import short_name, show_grid
from drifting.sampling import label_numbers
from tests.cli.test_bad_input import refused
from tests.support.image_folders import write_images

__all__ = ["refused"]
pytestmark = pytest.mark.painted
ANIMALS = ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (None, ANIMALS, None),
        ([2, 0], ANIMALS, [2, 0]),
        (["cat", "ant", "cat"], ANIMALS, [2, 0, 2]),
        (["2", "bee"], ANIMALS, [2, 1]),
        (["2", "0"], None, [2, 0]),
        (["-1", "7"], ANIMALS, [-1, 7]),  # which are refused by those who know how many there are
        # Where a class is called by a number, numbers in texts are names, and integers are still numbers.
        (["1", "3"], ("1", "2", "3"), [0, 2]),
        ([1, 2], ("1", "2", "3"), [1, 2]),
        (["10", "11"], ("10", "11"), [0, 1]),
        (["3", "07"], ("03", "7"), [0, 1]),
        (["7", "cat"], ("7", "cat"), [0, 1]),
        (["10"], tuple(map(str, range(12))), [10]),
    ],
)
def test_labels_are_names_or_numbers(labels, names, numbers):
    assert label_numbers(labels, names) == numbers


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ("bea", ANIMALS, "labels has 'bea': did you mean 'bee'? The classes are 'ant', 'bee', 'cat'"),
        ("Cat", ANIMALS, "labels has 'Cat': did you mean 'cat'?"),
        ("", ANIMALS, "labels has '': did you mean"),
        ("0", ("10", "11"), "labels has '0': did you mean '10'? The classes are '10', '11'"),
        ("4", ("1", "2", "3"), "labels has '4': did you mean"),
        ("1.0", None, "labels has '1.0', but the names of the classes are not known here: pass their numbers"),
        ("x7", tuple(f"x{number}" for number in range(1000))[8:], "did you mean"),
    ],
)
def test_labels_that_are_no_class_are_refused(label, names, message):
    with pytest.raises(InputError) as error:
        label_numbers([label], names)
    assert message in str(error.value)
    assert len(str(error.value)) <= 300


@pytest.mark.usefixtures("small_presets", "no_pictures")
def test_a_run_takes_names(command, tmp_path, refused):
    folder = write_images(tmp_path / "own", dict.fromkeys(ANIMALS, 12))
    assert command("train", "images", "--data", folder, "--save-dir", tmp_path / "run").status == 0
    run = runs.load(tmp_path / "run")
    assert run.class_names == ANIMALS
    assert torch.equal(run.sample(4, labels=["cat", "ant"]), run.sample(4, labels=[2, 0]))
    files = []
    for labels in (("cat", "ant"), ("2", "0")):
        files.append(tmp_path / f"{labels[0]}.npy")
        assert command("sample", tmp_path / "run", "--num-samples", 4, "--labels", *labels, "--out", files[-1]).status == 0
    assert np.array_equal(*map(np.load, files))
    refused("sample run --labels bea", "labels has 'bea': did you mean 'bee'?")
    refused("sample run --labels 3", "labels is [3]: choose from 0 to 2")
    write_images(tmp_path / "loose", {".": 20})
    loose = ("train", "mnist-pixel", "--data", tmp_path / "loose", "--unconditional", "--save-dir", tmp_path / "joint")
    assert command(*loose).status == 0
    refused("sample joint --labels 1", "labels is [1]", "leave them out")
    refused("sample joint --labels cat", "labels has 'cat'", "names of the classes are not known here")


def test_names_stand_above_columns_where_they_fit():
    images = torch.zeros(6, 8, 8, 1, dtype=torch.uint8)
    plain, named = image_grid(images, 3), image_grid(images, 3, ["ant", "a very long name", "\u732b"])
    assert (named.width, named.height) == (plain.width, plain.height + 14)
    pixels = np.asarray(named)
    assert np.array_equal(pixels[14:], np.asarray(plain))
    left, middle, right = (pixels[:14, start : start + 72] for start in (0, 72, 144))
    assert left.min() < 128 > middle.min()
    assert right.min() == 255  # a sign that the font lacks
    small = torch.zeros(6, 80, 8, 3, dtype=torch.uint8)
    assert image_grid(small, 3, ["a", "b", "c"]).size == image_grid(small, 3).size  # nothing fits above 8 pixels


def test_rows_are_named():
    axes = Figure().add_subplot()
    show_grid(axes, torch.zeros(4, 2, 1, 4, 4), "title", ("$ant$", "a name of many letters", "\u732b", "caf\udce9"))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$ant$", "a name of ma..", "2", "caf?"]
    axes.figure.canvas.draw()
    show_grid(axes, torch.zeros(2, 2, 1, 4, 4), "title")
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "1"]
    assert (short_name("ant", 3), short_name("Z\u00fcrich", 8)) == ("ant", "Zurich")


@pytest.mark.usefixtures("small_presets")
def test_pictures_of_a_run_are_drawn_with_names(command, tmp_path):
    folder = write_images(tmp_path / "own", {"a $1 bill": 12, "\u732b": 12})
    assert command("train", "images", "--data", folder, "--save-dir", tmp_path / "run").status == 0
    assert command("sample", tmp_path / "run", "--out", tmp_path / "x.png").status == 0
    assert Image.open(tmp_path / "x.png").height % 9 != 0
