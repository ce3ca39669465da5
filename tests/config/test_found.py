"""What a training says that it found, once, before it begins."""

import numpy as np
import pytest

from drifting.config import EncoderRunConfig
from drifting.data import ImageFilesData
from drifting.encoders import MAEConfig
from drifting.runs.train import resolve
from tests.support.image_folders import write_images

pytestmark = pytest.mark.usefixtures("small_presets", "no_pictures")


def said(result, word="images of"):
    """Return the lines on what was found, said before anything else."""
    assert result.status == 0, result
    lines = result.out.splitlines()
    end = next(index for index, line in enumerate(lines) if index and not line.startswith("note: "))
    assert sum(word in line and "class" in line for line in lines) == 1
    return lines[:end]


def few(count):
    """Return the note on test images that are too few to evaluate on."""
    needed = "precision, recall, density and coverage, which need 6: add a folder test/ with more to evaluate on"
    return f"note: {count} test images are too few for {needed}"


def test_own_images_are_reported_before_training(command, tmp_path):
    folder = write_images(tmp_path / "own", {"cats": 20, "dogs": 20}, channels=3)
    for name in ("a.xyz", "b.xyz", "c.xyz"):
        (folder / "cats" / name).write_text("no image")
    expected = ["36 train and 4 test images of 3 x 8 x 8, 2 classes: 0 cats (18), 1 dogs (18); left out: 3 files (.xyz)", few(4)]
    run = ("--data", folder, "--save-dir", tmp_path / "run")
    assert said(command("train", "images", *run)) == expected
    assert said(command("train", "images", "--save-dir", tmp_path / "run", "--resume", "--steps", 8)) == expected
    assert said(command("train", "mnist-classifier", "--data", folder, "--save-dir", tmp_path / "extractor"))[0].startswith(
        "36 train and 4"
    )
    sizes = ("--steps", 1, "--width", 9, "--batch-size", 4)
    assert said(command("train-encoder", "mae", "--data", folder, "--save-dir", tmp_path / "encoder", *sizes)) == expected


def test_streamed_images_are_reported_alike(tmp_path):
    folder = write_images(tmp_path, {"Train/cats": 4, "Train/dogs": 3, "valid/dogs": 2, "extra/cats": 1}, channels=3)
    data = ImageFilesData(path=str(folder), image_size=16)
    config = resolve(EncoderRunConfig(data=data, encoder=MAEConfig(width=9)))
    assert config.data.report() == [
        "7 train and 2 test images of 3 x 16 x 16, 2 classes: 0 cats (4), 1 dogs (3); left out: 1 folder ('extra')"
    ]
    assert (config.data.class_names, config.data.counts) == (("cats", "dogs"), (4, 3))


def test_many_classes_are_shortened(command, tmp_path):
    folder = write_images(tmp_path / "own", {str(number): 0 for number in range(12)})
    for number in range(12):
        write_images(folder, {".": 0})
        write_images(folder / str(number), {".": 10}, seed=number)
    (line,) = said(command("train", "images", "--data", folder, "--save-dir", tmp_path / "run"))
    assert line == "108 train and 12 test images of 1 x 8 x 8, 12 classes: 0 (9), 1 (9), 2 (9), ..., 11 (9)"


def test_unconditional_images_are_reported_without_classes(command, tmp_path):
    folder = write_images(tmp_path / "own", {".": 20})
    lines = said(command("train", "images", "--data", folder, "--unconditional", "--save-dir", tmp_path / "run"))
    assert lines == ["18 train and 2 test images of 1 x 8 x 8, not by class", few(2)]


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ({"cats": 20}, "all images are of one class: train without classes, or bring a folder with one sub-folder for each class"),
        ({"cats": 20, "dogs": 1}, "1 class has one image each (1 dogs), and samples will be copies of it"),
        (dict.fromkeys("abcd", 1), "4 classes have one image each (0 a, 1 b, 2 c, ...), and samples will be copies of it"),
        (dict.fromkeys("ab", 4), "no test images: data is"),
        ({"train/a": 9, "train/b": 9, "test": 3}, "the test images have no classes, and figures by class cannot be measured"),
        ({"x/a": 9, "x/b": 9, "y/a": 9, "y/b": 9}, "classes 'x', 'y' hold no images but sub-folders ('a', 'b')"),
    ],
)
def test_doubts_are_reported_before_training(command, tmp_path, counts, note):
    folder = write_images(tmp_path / "own", {})
    for name, count in counts.items():
        write_images(folder / name, {".": count})
    lines = said(command("train", "mnist-pixel", "--data", folder, "--save-dir", tmp_path / "run"))
    assert [line for line in lines if line.startswith(f"note: {note}")]
    assert all(len(line) <= 300 for line in lines)


def test_names_that_are_no_text_are_shown(command, tmp_path):
    folder = tmp_path / "own"
    write_images(folder / "caf\udce9", {".": 10})
    write_images(folder / "li\nne", {".": 10}, seed=1)
    lines = said(command("train", "images", "--data", folder, "--save-dir", tmp_path / "run"))
    assert lines == ["18 train and 2 test images of 1 x 8 x 8, 2 classes: 0 caf\ufffd (9), 1 li\ufffdne (9)", few(2)]


def test_few_points_are_doubted(command, tmp_path):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).standard_normal((60, 2)))
    result = command("train", "toy", "--data", tmp_path / "points.npy", "--save-dir", tmp_path / "run")
    assert result.out.splitlines()[:2] == ["60 points", "note: 60 points are few, and samples will be copies of them: bring more"]
